"""What is trained on what: the whole network on images, or its tail on activations that are computed once.

Letters: N images, F numbers per image that cross the boundary.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from graftline.augment.draw import InTwoSteps
from graftline.augment.policy import Augment, EvalTransform, Policy
from graftline.data.image_memory import Pictures
from graftline.data.loaders import Batch, Loaders, make_loader
from graftline.data.picture_loader import picture_loader
from graftline.data.remote_cache import warn_of_small_cache
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.features.cache import ActivationRequest, Activations, CacheFullError, ImageBatcher, activation_loader
from graftline.features.cut import Cut
from graftline.features.key import view_key
from graftline.features.precision import largest_change
from graftline.features.trace import main_logits, mode_kept
from graftline.freezing.plan import FreezePlan
from graftline.training.activations import activation_key, activation_requests, engine_maker, open_plain, transforms
from graftline.training.setup import TrainingSetup

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 8  # on which the trained tail is asked whether the cache has served it well
FEW_IMAGES = 64  # that a predictor classifies in less time than it takes to get an engine ready
TAIL_BATCH = 1024  # activations that a trained head reads at once


class TrainingSource(Protocol):
    """A network, or the part of it that is trained, and what it is trained on."""

    @property
    def setup(self) -> TrainingSetup:
        """Of the training, with the images that it sees."""
        ...

    @property
    def network(self) -> nn.Module:
        """What takes the loaders' batches."""
        ...

    @property
    def sentence(self) -> str:
        """What is trained on what, and why."""
        ...

    @property
    def augmented(self) -> bool:
        """Whether the training images are augmented."""
        ...

    @property
    def threads(self) -> int | None:
        """How many threads of torch the fit should use; None: as many as it likes."""
        ...

    def make_loaders(self) -> Loaders:
        """Return this process's loaders of the training and the validation images."""
        ...

    def cache_change(self) -> float | None:
        """Return by how much a probability differs between cached activations and images; None: nothing is cached."""
        ...

    def logits(self, split: str) -> np.ndarray | None:
        """Return what the trained network gives for the images of a split, (N, K); None: run the network on them."""
        ...

    def inputs(self, split: str) -> np.ndarray | None:
        """Return what the head is given for the images of a split, (N, E); None: as above."""
        ...

    def validation_logits(self) -> np.ndarray | None:
        """Return what it gives for the validation images of ``setup`` as it was trained, (N, K); None: as above."""
        ...

    def validation_inputs(self) -> np.ndarray | None:
        """Return what the last layer is given for these images, (N, E); None: as above, or nobody knows."""
        ...

    def head_inputs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what the head is given for training and validation images of ``setup``, (N, E) each; None: as above.

        The training images are as they are, not augmented.
        """
        ...


@dataclass(frozen=True)
class LiveSource:
    """The whole network, which runs on the images at every step.

    Attributes:
        setup: of the training.
        why: nothing is cached, as a part of a sentence.
    """

    setup: TrainingSetup
    why: str

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.setup.graft.network

    @property
    def augmented(self) -> bool:
        """Whether the training images are augmented."""
        return self.setup.policy.crop is not None or any(self.setup.policy.transforms.values())

    @property
    def sentence(self) -> str:
        """What is trained on what, and why."""
        images = "images as they are"
        if self.augmented:
            images = f"images augmented anew each time ({self.setup.policy.name})"
        return f"The whole network runs at every step, on {images}: {self.why}."

    @property
    def threads(self) -> None:
        """As many as torch likes."""
        return

    def make_loaders(self) -> Loaders:
        """Return this process's loaders of the training and the validation images."""
        setup = self.setup
        augment, plain = transforms(setup)
        train, validation = setup.version.samples("train"), setup.version.samples("validation")
        if setup.execution.rank == 0:
            warn_of_small_cache(chain(train.paths, validation.paths))
        return self._loader(train, augment, shuffle=True), self._loader(validation, plain, shuffle=False)

    def _loader(self, samples: Samples, transform: Augment | EvalTransform, *, shuffle: bool) -> DataLoader[Batch]:
        """Return a loader that keeps the images in memory, or one that decodes them in worker processes.

        On a CPU, workers and training have the same cores: each batch is made between two steps, by a thread per core.
        A GPU trains on while workers decode.
        """
        setup, execution = self.setup, self.setup.execution
        common: dict[str, Any] = {
            "batch_size": setup.batch_size,
            "shuffle": shuffle,
            "seed": setup.seed,
            "rank": execution.rank,
            "world_size": execution.world_size,
        }
        if (pictures := self._pictures(samples, transform)) is not None:
            threads = max(1, execution.num_threads // execution.local_world_size)
            return picture_loader(samples, transform, pictures, threads=threads, **common)
        workers = setup.recipe.loader_processes(execution)
        return make_loader(samples, InTwoSteps(transform), workers=workers, pin_memory=execution.is_cuda, **common)

    def images_to_decode(self) -> int | None:
        """Return how many images are still to be decoded; None: all of them each time, as memory does not keep them."""
        version, (augment, plain) = self.setup.version, transforms(self.setup)
        train = self._pictures(version.samples("train"), augment)
        validation = self._pictures(version.samples("validation"), plain)
        return None if train is None or validation is None else train.missing + validation.missing

    def _pictures(self, samples: Samples, transform: Augment | EvalTransform) -> Pictures | None:
        """Return the memory for the images of a split; None where workers decode them, or there is no room."""
        execution = self.setup.execution
        if execution.device != "cpu":
            return None
        return self.setup.images.open(samples, transform, processes=execution.local_world_size)

    def cache_change(self) -> None:
        """Return None: nothing is cached."""
        return

    def logits(self, split: str) -> None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is cached."""
        return

    def inputs(self, split: str) -> None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is cached."""
        return

    def validation_logits(self) -> None:
        """Return None: nothing is cached."""
        return

    def validation_inputs(self) -> None:
        """Return None: nothing is cached."""
        return

    def head_inputs(self) -> None:
        """Return None: nothing is cached."""
        return


@dataclass(frozen=True)
class CachedSource:
    """The tail of the network, which runs on cached activations.

    Attributes:
        setup: of the training.
        plan: which part is trained.
        parts: the network, cut.
        activations: of the validation images, then of the training images in each of their views; nobody removes them
            from the cache while they are held.
        why: they are cached, as a part of a sentence, or empty.
    """

    setup: TrainingSetup
    plan: FreezePlan
    parts: Cut
    activations: Sequence[Activations]
    why: str

    @property
    def network(self) -> nn.Module:
        """The tail."""
        return self.parts.tail

    @property
    def augmented(self) -> bool:
        """Whether the training images are augmented."""
        return self.setup.features.views > 0

    @property
    def sentence(self) -> str:
        """What is trained on what, and why."""
        seen = f"{self.setup.features.views} augmented views of each image"
        if not self.augmented:
            policy = self.setup.policy.name
            seen = f"each image once, without augmentation (Features.views=3 would use the policy {policy})"
        because = f" ({self.why})" if self.why else ""
        what = "head" if self.plan.only_head else "tail"
        return f"Trained on cached activations{because}: {seen}; only the {what} runs at each step."

    @property
    def threads(self) -> int | None:
        """One for a head: on two cores that others used too, its small steps were 15 times slower with two threads."""
        return 1 if self.plan.only_head else None

    def make_loaders(self) -> Loaders:
        """Return this process's loaders of the training and the validation images."""
        setup = self.setup
        train, validation = setup.version.samples("train"), setup.version.samples("validation")
        array, *views = [activations.array for activations in self.activations]
        loader = partial(
            activation_loader,
            batch_size=setup.batch_size,
            seed=setup.seed,
            rank=setup.execution.rank,
            world_size=setup.execution.world_size,
        )
        return loader(views, train, shuffle=True), loader([array], validation, shuffle=False)

    def cache_change(self) -> float:
        """Return by how much a probability of the tail differs between activations (N, F) and a few images."""
        array = self.activations[0].array
        images = ImageBatcher(activation_requests(self.setup, self.plan, self.parts)[0])(
            range(min(CHECKED_IMAGES, len(array)))
        )
        with mode_kept(self.parts.trunk), torch.inference_mode():
            exact = self.parts.trunk.eval()(images)
        kept = array.take(np.arange(len(exact)), axis=0)
        return largest_change(self.parts.tail, exact, torch.from_numpy(kept).float())

    def logits(self, split: str) -> np.ndarray | None:
        """Return what the trained head gives for the images of a split, (N, K), from activations kept as float32.

        Returns:
            None where this is no faster than to run the network, or there is no room for the activations.
        """
        kept = self._kept(split)
        return None if kept is None else self._tail_logits(kept)

    def inputs(self, split: str) -> np.ndarray | None:
        """Return what the head is given for the images of a split, (N, E); None where their logits are not known."""
        kept = self._kept(split)
        return None if kept is None else kept.array.take(np.arange(len(kept.array)), axis=0)

    def _kept(self, split: str) -> Activations | None:
        """Return the activations of a split, as float32; None: as for ``logits``."""
        setup = self.setup
        samples = setup.version.samples(split)
        if not self.plan.only_head or setup.execution.is_cuda or len(samples.paths) <= FEW_IMAGES:
            return None
        exact = replace(setup, features=replace(setup.features, precision="float32"))
        try:
            kept = open_plain(exact, self.plan, self.parts, samples)
        except (CacheFullError, UserError) as error:  # the trained network can do without
            logger.info(f"The activations of the {split} images are not kept: {error}")
            return None
        return kept

    def validation_logits(self) -> np.ndarray:
        """Return what the trained tail gives for the validation images, (N, K); computed once: train first."""
        return self._validated[0]

    def validation_inputs(self) -> np.ndarray | None:
        """Return what the classifier is given for the validation images, (N, E); computed with their logits."""
        return self._validated[1]

    @cached_property
    def _validated(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Run the tail on the validation images, and note what its classifier is given."""
        network: Any = self.setup.graft.network
        classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
        if not isinstance(classifier, nn.Module):  # none, or two as a distilled network has
            return self._tail_logits(self.activations[0]), None
        given: list[Tensor] = []
        hook = classifier.register_forward_pre_hook(lambda _layer, inputs: given.append(inputs[0]))
        try:
            logits = self._tail_logits(self.activations[0])
        finally:
            hook.remove()
        inputs = torch.cat(given).numpy() if given and all(one.ndim == 2 for one in given) else None
        return logits, inputs if inputs is not None and len(inputs) == len(logits) else None

    def head_inputs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the activations (N, E) of training and validation images; None where more than a head is trained."""
        if not self.plan.only_head or self.augmented:
            return None
        validation, training = (one.array.take(np.arange(len(one.array)), axis=0) for one in self.activations)
        return training.astype(np.float32), validation.astype(np.float32)

    def augmented_logits(self, samples: Samples, policies: Sequence[Policy]) -> list[np.ndarray]:
        """Return what the trained tail gives for images that are augmented by one policy after the other.

        Args:
            samples: N images.
            policies: what happens to each of them, the same in each call.

        Returns:
            (N, K) for each policy.

        Raises:
            CacheFullError: there is no room for the activations.
        """
        setup = self.setup
        key = activation_key(setup, self.plan, self.parts)
        requests = [
            ActivationRequest(
                samples,
                Augment(policy, setup.graft.preprocessing, setup.seed),
                0,
                {**key, **view_key(policy, setup.seed, 0)},
            )
            for policy in policies
        ]
        maker = engine_maker(setup, self.plan, self.parts)
        opened = setup.features.open(requests, maker, self.parts.tail, self.parts.width)
        return [self._tail_logits(activations) for activations in opened]

    def _tail_logits(self, activations: Activations) -> np.ndarray:
        """Return what the tail gives for activations (N, F): logits (N, K)."""
        tail, array = self.parts.tail, activations.array
        rows = np.array_split(np.arange(len(array)), -(-len(array) // TAIL_BATCH))
        with mode_kept(tail), torch.inference_mode():
            tail.eval()
            given = [tail(torch.from_numpy(array.take(some, axis=0)).float()) for some in rows]
            return np.concatenate([main_logits(one).numpy() for one in given])
