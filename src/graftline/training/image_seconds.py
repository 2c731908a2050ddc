"""How long an image takes to be decoded, to pass through a network and to train it: measured where the training runs.

Letters: C channels, H height, W width, F numbers per image that a tail takes.
"""

import copy
import math
import time
import weakref
from contextlib import suppress

import torch
from torch import nn
from torch.nn import functional

from graftline.errors import TooLittleMemoryError
from graftline.features.trace import main_logits
from graftline.freezing.depth import DEEP_BATCH, PASSES_PER_STEP
from graftline.training.allocator import freed_memory_kept
from graftline.training.forecast import autocast, decode_seconds
from graftline.training.memory_format import memory_format
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import CachedSource, TrainingSource

STEPS, TIMED_BATCH = 2, 16  # that are timed, after one that warms up; images of each on a CPU

_measured: "weakref.WeakKeyDictionary[nn.Module, float]" = weakref.WeakKeyDictionary()
_decoded: "weakref.WeakKeyDictionary[nn.Module, float]" = weakref.WeakKeyDictionary()


def seconds_per_image(setup: TrainingSetup) -> float:
    """Return how long an image takes to train the whole network, forward and backward; measured once per network.

    Raises:
        TooLittleMemoryError: a step of two images takes more memory than the GPU has.
    """
    network = setup.graft.network
    if network not in _measured:
        whole = copy.deepcopy(network).requires_grad_(True).train()
        _measured[network] = _time_steps(whole, _image_shape(setup), setup)
    return _measured[network]


def pass_seconds(setup: TrainingSetup) -> float:
    """Return how long an image takes to be decoded and to pass through the frozen network."""
    return decoding_seconds(setup) + seconds_per_image(setup) / PASSES_PER_STEP


def decoding_seconds(setup: TrainingSetup) -> float:
    """Return how long an image takes to be decoded; measured once per network."""
    network = setup.graft.network
    if network not in _decoded:
        _decoded[network] = decode_seconds(setup.version.samples("train"), setup.execution)
    return _decoded[network]


def step_seconds(source: TrainingSource) -> float:
    """Return how long an image takes to train what is trained, forward and backward.

    Args:
        source: of a fit whose plan is applied to the network.
    """
    setup, network = source.setup, source.network
    if isinstance(source, CachedSource):
        return _time_steps(copy.deepcopy(network), (source.parts.width,), setup)
    if all(parameter.requires_grad for parameter in network.parameters()):
        return seconds_per_image(setup)
    return _time_steps(copy.deepcopy(network), _image_shape(setup), setup)


def _image_shape(setup: TrainingSetup) -> tuple[int, ...]:
    preprocessing = setup.graft.preprocessing
    return preprocessing.channels, *preprocessing.image_size


def _time_steps(network: nn.Module, shape: tuple[int, ...], setup: TrainingSetup) -> float:
    """Return how long an input takes, (C, H, W), or (F,) of a tail, in the precision of the training.

    Where the GPU has no room for as many as are timed together, there are fewer. The steps change the network.

    Raises:
        TooLittleMemoryError: it has no room for two.
    """
    batch = timed_batch(setup)
    while True:
        with suppress(torch.OutOfMemoryError):  # kept as a cause, it would keep what lies on the GPU
            return _time_batch(network, batch, shape, setup)
        if batch <= 2:  # BatchNorm does not train on one
            raise TooLittleMemoryError
        batch = math.ceil(batch / 2)


def _time_batch(network: nn.Module, batch: int, shape: tuple[int, ...], setup: TrainingSetup) -> float:
    """Return how long an input of so many takes, which are zeros."""
    execution = setup.execution
    device = execution.torch_device
    layout = memory_format(network, on_cpu=device.type == "cpu")
    network.to(device).to(memory_format=layout)
    inputs, seconds = torch.zeros(batch, *shape, device=device), []
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=layout)
    forked = torch.random.fork_rng(devices=[device] if execution.is_cuda else [])  # dropout draws lots
    with freed_memory_kept(), forked:
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            with autocast(execution):
                loss = functional.cross_entropy(main_logits(network(inputs)), labels)
            loss.backward()  # type: ignore[no-untyped-call]  # as torch has it
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:]) / batch


def timed_batch(setup: TrainingSetup) -> int:
    """Return how many images are timed together: on a GPU as many as a step has, since few leave it idle."""
    if setup.execution.torch_device.type == "cpu":
        return TIMED_BATCH
    return DEEP_BATCH if setup.recipe.batch_size is None else setup.recipe.batch_size
