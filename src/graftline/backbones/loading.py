"""Create a timm network and load weights into it: all of the body, or an error that says what does not fit."""

import textwrap
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv, get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from graftline.backbones.weights import WeightsFile
from graftline.errors import UserError, first_line

NUM_NAMES = 3  # that a message gives, of the tensors that do not fit

# arguments of timm's models → the arguments of ``Backbone`` that stand for them
OWN_KEYS = {
    "in_chans": "channels",
    "img_size": "image_size",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "pretrained": "weights",
}
ADAPTED = ("in_chans", "img_size")  # to which timm, as a rule, brings tensors of another shape
STAGES, STAGES_HEAD = "stages", "stages_head"  # the network of zoo/stages.py, and its classifier
DROP_RATES = ("drop_rate", "drop_path_rate")  # that graftline always gives, and some networks do not have

StateDict = Mapping[str, Tensor]


def create(name: str, num_classes: int | None, options: Mapping[str, Any], **timm_arguments: Any) -> nn.Module:
    """Create a timm network.

    Args:
        name: a timm model's name.
        num_classes: size of the head; 0: no head; None: as the model's pretrained weights have it.
        options: arguments of the network. A drop rate that the network does not know is left out if it is zero anyway.
        timm_arguments: of ``timm.create_model``.

    Raises:
        UserError: the network does not know an option.
    """
    options = dict(options)
    while True:
        try:
            network: nn.Module = timm.create_model(name, num_classes=num_classes, **options, **timm_arguments)
        except TypeError as error:
            text = str(error)  # python's own, or timm's HRNet's: unexpected keyword argument(s): ['drop_path_rate']
            unknown = next((key for key in options if f"'{key}'" in text.partition("unexpected keyword")[2]), None)
            if unknown is None:
                raise
            if options.pop(unknown) or unknown not in DROP_RATES:
                raise UserError(_unknown_option(name, unknown)) from error
        else:
            return network


def _unknown_option(name: str, option: str) -> str:
    if option in DROP_RATES:
        return f"The backbone '{name}' has no {option}: leave it out or set it to 0."
    if option == "in_chans":
        return f"The number of channels of the backbone '{name}' cannot be changed: leave Backbone.channels out."
    return f"The backbone '{name}' has no option {option}: leave Backbone.options.{option} out."


def create_pretrained(name: str, weights: WeightsFile, options: Mapping[str, Any]) -> nn.Module:
    """Create a timm network with weights, whose head is that of the weights (none if they have none).

    A network that is built around a body (``options["body"]``) also takes the weights of that.

    Raises:
        UserError: the file cannot be read, or its tensors are not exactly the network's.
    """
    state = read(weights)
    around = any(key.startswith(f"{STAGES_HEAD}.") for key in state)
    if name == STAGES and not around:
        return _create_around(weights, options)
    if name != STAGES and around:
        raise UserError(f"{weights.path} is of a network whose head reads all stages: give Backbone.head='{STAGES}'.")
    if weights.source == "packaged":
        return _create_packaged(name, weights, state, options)
    candidates = _head_sizes(name, state)
    for num_classes in candidates:
        # timm loads strictly if the head's size is the one that its configuration gives. It also knows how to bring
        # foreign checkpoints and other image sizes into the network's form.
        overlay = {"file": str(weights.path), "num_classes": num_classes}
        try:
            return create(name, num_classes, options, pretrained=True, pretrained_cfg_overlay=overlay)
        except UserError:
            raise
        except Exception as error:  # timm's converters fail in any way on tensors of another architecture
            reason = error
    raise UserError(_misfit(name, candidates[0], weights, state, options, reason)) from reason


def _create_around(weights: WeightsFile, options: Mapping[str, Any]) -> nn.Module:
    """Create ``stages`` with the weights of its body and without a classifier."""
    of_body = {key: value for key, value in options.items() if key != "body"}
    body: Any = create_pretrained(options["body"], weights, of_body)
    body.reset_classifier(0)
    network = create(STAGES, 0, options)
    network.load_state_dict(body.state_dict())
    return network


def _create_packaged(name: str, weights: WeightsFile, state: StateDict, options: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):  # the network that the weights are of: names and shapes only
        original = create(name, None, {})
    renamed = in_order(state, original.state_dict())
    network: Any = create(name, None, options)
    first = f"{network.pretrained_cfg['first_conv']}.weight"
    renamed[first] = adapt_input_conv(network.in_chans, renamed[first])
    try:
        network.load_state_dict(renamed)
    except RuntimeError as error:  # an option has changed the shape of a tensor
        raise UserError(_misfit(name, network.num_classes, weights, renamed, options, error)) from error
    return network  # type: ignore[no-any-return]  # timm is not typed


def read(weights: WeightsFile) -> StateDict:
    """Read the tensors of a file, which may be a training checkpoint. Nothing but tensors is unpickled.

    Raises:
        UserError: the file is broken or holds something else.
    """
    try:
        state = load_state_dict(str(weights.path))  # unwraps state_dict, model, model_ema, module.
    except Exception as error:  # safetensors, zipfile, pickle and torch each have their own
        if "weights_only=True blocked" in str(error):
            raise UserError(
                f"{weights.path} is no weights file, or holds pickled objects, which we do not load: "
                "save the network's state_dict() as .safetensors."
            ) from error
        raise UserError(f"{weights.path} cannot be read as weights ({first_line(error)}).") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{weights.path} holds no state_dict: save the network's state_dict() as .safetensors.")
    return state


def in_order(state: StateDict, target: StateDict) -> dict[str, Tensor]:
    """Rename the tensors of another port of the same network: its n-th gets the name of the target's n-th.

    Asserts what makes that safe: as many tensors, of equal shapes, each of the same kind in the same block.
    """
    assert len(state) == len(target), f"{len(state)} tensors for {len(target)}"
    ours, theirs = _BlockNumbers(), _BlockNumbers()
    for source_key, key in zip(state, target, strict=True):
        assert theirs.position(source_key) == ours.position(key), f"{source_key} is no {key}"
        assert state[source_key].shape == target[key].shape, f"{source_key} is not of the shape of {key}"
    return dict(zip(target, state.values(), strict=True))


class _BlockNumbers:
    """Number a network's blocks in the order of their appearance, whether they are called 3 or 1.2."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def position(self, key: str) -> tuple[int, bool, str]:
        """Return block, whether it is of a normalization, and which of a layer's tensors ``key`` is."""
        *layer, tensor = key.split(".")
        block = ".".join(part for part in layer if part.isdigit()) or layer[0]
        if block not in self.blocks:
            self.blocks.append(block)
        return self.blocks.index(block), "bn" in layer[-1], tensor


def _head_sizes(name: str, state: StateDict) -> list[int]:
    """Return the sizes that the head of the weights may have, the likeliest first."""
    config = get_pretrained_cfg(name)
    classifier = () if config is None else config.classifier
    names = (classifier,) if isinstance(classifier, str) else classifier or ()
    for head in names:
        if f"{head}.weight" in state:
            return [state[f"{head}.weight"].shape[0]]
    # no head, or one that has another name until timm has converted it
    return [0] if config is None else list(dict.fromkeys((config.num_classes, 0)))


def _misfit(
    name: str, num_classes: int, weights: WeightsFile, state: StateDict, options: Mapping[str, Any], reason: Exception
) -> str:
    """Return a sentence that says what does not fit, and whether an option is the reason."""
    around = {key: value for key, value in options.items() if key == "body"}
    shaping = {key: value for key, value in options.items() if key not in (*DROP_RATES, *around)}
    findings = _findings(name, num_classes, state, around | {k: v for k, v in shaping.items() if k not in ADAPTED})
    findings = findings or _findings(name, num_classes, state, around | shaping)
    found = ", ".join(findings) or textwrap.shorten(str(reason) or type(reason).__name__, 200, placeholder=" …")
    way_out = "name the architecture that the weights are of"
    if shaping:
        given = ", ".join(f"{OWN_KEYS.get(key, key)}={value}" for key, value in shaping.items())
        way_out += f", with its options (now {given})"
        if findings and not _findings(name, num_classes, state, around):
            way_out = f"they fit without {given}: leave that out"
    return f"{weights.path} does not fit the backbone '{around.get('body', name)}': {found}; {way_out}."


def _findings(name: str, num_classes: int, state: StateDict, options: Mapping[str, Any]) -> list[str]:
    """Return how the tensors differ from the network's, in words."""
    with torch.device("meta"):  # names and shapes only
        target = create(name, num_classes, options).state_dict()
    # older checkpoints lack num_batches_tracked, which torch forgives
    missing = [key for key in target if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in target]
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(target[key].shape)}"
        for key in state
        if key in target and state[key].shape != target[key].shape
    ]
    return [
        f"{len(keys)} {what} ({', '.join(keys[:NUM_NAMES])}{', …' if len(keys) > NUM_NAMES else ''})"
        for keys, what in (
            (missing, "tensors are missing"),
            (unexpected, "are unexpected"),
            (reshaped, "have another shape"),
        )
        if keys
    ]
