"""Build a pretrained network with a new head: any of timm's models, its weights and its preprocessing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from graftline.augment.preprocess import CROP_MODES, CropMode, Preprocessing
from graftline.backbones import catalog
from graftline.backbones.loading import OWN_KEYS, create, create_pretrained
from graftline.backbones.single_image import check_single_image
from graftline.backbones.sizes import check_size, find_refusal, size_for_images, takes_as_it_is
from graftline.backbones.weights import Weights, WeightsFile, WeightsSourceChoice, locate
from graftline.errors import UserError, first_line

MAX_IMAGE_SIZE = 10_000  # px; the first maps of one image alone would take gigabytes
HEADS = ("last", "stages")
ELONGATED = 2.0  # long side by short side: from here on, a crop of the center shows half of an image or less


@dataclass(frozen=True)
class Graft:
    """A network that is ready to be trained.

    Attributes:
        network: the timm model with a head for the wanted number of classes; float32, on the CPU, in training mode.
        preprocessing: what the network wants done to an image.
        weights: what it was loaded with.
        arguments: what ``timm.create_model`` needs beside the name, ``num_classes`` and ``pretrained`` to build the
            same network again. timm keeps them itself, and writes them into a bundle's config.json as ``model_args``.
        drop_rates: its ``drop_rate`` and ``drop_path_rate``, which matter only where it is trained.
    """

    network: nn.Module
    preprocessing: Preprocessing
    weights: Weights
    arguments: Mapping[str, Any] = field(default_factory=dict)
    drop_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Backbone:
    """Which network to graft a head onto (Hydra target of conf/backbone/*.yaml).

    Attributes:
        name: a timm model, with or without a tag (``resnet50``, ``resnet50.a1_in1k``).
        head: what the new head reads: ``last``, the network's last features, or ``stages``, the averages and maxima of
            the maps of all its stages beside them, which plain timm cannot build.
        weights: ``auto`` takes the first of: the file, a package, the weights directory, the local hub cache, the hub.
        file: a .safetensors, .pth, .pt or .bin file with the network's weights.
        image_size: side of the square input, in pixels; None: what the weights were trained with; ``auto``: the same,
            but less for small images, once ``for_images`` is told of them.
        channels: of the input: 3, or 1 for gray images, for which the weights of the first convolution are summed;
            None: what the weights were trained with.
        crop_pct: share of the resized image's edge that the evaluation crop keeps, 0 to 1; None: as the weights ask.
        crop_mode: ``center`` crops to a square, ``squash`` stretches the whole image to one, ``border`` fills it up;
            None: as the weights ask, but ``squash`` for elongated images, once ``for_images`` is told of them.
        drop_rate: dropout before the head, 0 to 1.
        drop_path_rate: stochastic depth, 0 to 1.
        options: arguments of the timm model that are its own, such as ``{"groups": 2}`` for alexnet.
        weights_dir: the weights directory, which `graftline.backbones.fetch.fetch` fills; need not exist.
    """

    name: str
    head: Literal["last", "stages"] = "last"
    weights: WeightsSourceChoice = "auto"
    file: str | None = None
    image_size: int | Literal["auto"] | None = None
    channels: int | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    weights_dir: str = "weights"

    def __post_init__(self) -> None:
        for key in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"Backbone.{key} is {getattr(self, key)}, but must be at least 0 and below 1.")
        if self.given_size is not None and not 1 <= self.given_size <= MAX_IMAGE_SIZE:
            raise UserError(
                f"Backbone.image_size is {self.given_size} px, but must be above 0 and at most {MAX_IMAGE_SIZE}."
            )
        if self.head not in HEADS:
            raise UserError(f"Backbone.head is {self.head!r}: use one of {', '.join(HEADS)}.")
        if self.crop_mode not in (None, *CROP_MODES):
            raise UserError(f"Backbone.crop_mode is {self.crop_mode!r}: use one of {', '.join(CROP_MODES)}.")
        if self.channels not in (None, 1, 3):
            raise UserError(f"Backbone.channels is {self.channels}, but images have 3, or 1 if gray.")
        for option in self.options.keys() & OWN_KEYS.keys():
            raise UserError(f"Backbone.options.{option} is an argument of its own: give Backbone.{OWN_KEYS[option]}.")

    @property
    def network_name(self) -> str:
        """What the network is called: its name in timm, and whether its head reads all stages.

        >>> Backbone("resnet50.a1_in1k").network_name, Backbone("resnet50.a1_in1k", head="stages").network_name
        ('resnet50.a1_in1k', 'resnet50.a1_in1k+stages')
        """
        return self.name if self.head == "last" else f"{self.name}+{self.head}"

    @property
    def built_as(self) -> str:
        """The model of timm's that is built: the one of its name, or the one that is built around it."""
        return self.name if self.head == "last" else self.head

    @property
    def given_size(self) -> int | None:
        """The image size in px, None for the network's own, which is what ``auto`` means until there are images."""
        return None if self.image_size == "auto" else self.image_size

    def for_images(self, side: int, aspect: float = 1.0) -> Self:
        """Return the backbone for images of a size and shape, where it leaves these open.

        ``image_size="auto"`` is the network's own size, or the smaller one of ``size_for_images`` where the network
        takes it as it is: the positions of a transformer, for one, are of a single size. Images at least ``ELONGATED``
        times as long as wide are seen whole, squashed to a square, where no ``crop_mode`` is given.

        Args:
            side: the shorter side of nearly all images, in px.
            aspect: the longer side of most images by the shorter one.
        """
        return self._for_side(side).for_aspect(aspect)

    def for_aspect(self, aspect: float) -> Self:
        """Return the backbone for images of a shape: what ``for_images`` does but for their size."""
        if self.crop_mode is not None or aspect < ELONGATED:
            return self
        return replace(self, crop_mode="squash", crop_pct=1.0 if self.crop_pct is None else self.crop_pct)

    def _for_side(self, side: int) -> Self:
        if self.image_size != "auto":
            return self
        preprocessing, config = self.preprocessing(), get_pretrained_cfg(self.name)
        usual = min(preprocessing.image_size)
        size = size_for_images(side, usual)
        if size == usual or (config is not None and config.fixed_input_size):
            return self
        fits = takes_as_it_is(self.build_on_meta(), size, preprocessing.channels)
        return replace(self, image_size=size) if fits else self

    def build(self, classes: int | Sequence[str]) -> Graft:
        """Build the network, load its weights and give it a head.

        Args:
            classes: names of the K classes in the order of the head. The weights' own head is kept if it is known to be
                for the very same ones, as that of a bundle is, else replaced. K, a number: it is kept if it has that
                size, for whoever looks at a network as it was published.

        Raises:
            UserError: unknown name, no such file, weights of another architecture, an image size that the network
                cannot take, nothing local while offline.
        """
        num_classes = classes if isinstance(classes, int) else len(classes)
        file = self.check()
        if file is None:
            network = create(self.built_as, num_classes, self._timm_options())
            return self._graft(network, Weights("none", license="none"))
        network = create_pretrained(self.built_as, file, self._timm_options())
        weights = file.record()
        keeps = bool(network.num_classes == num_classes)
        if not isinstance(classes, int):
            keeps = keeps and file.class_names() == list(classes)
            weights = replace(weights, head=_head_in_words(file.class_names(), keeps))
        if not keeps:
            network.reset_classifier(num_classes)  # type: ignore[operator]  # every timm model has it
        return self._graft(network, weights)

    def _graft(self, network: nn.Module, weights: Weights) -> Graft:
        return Graft(network, self._preprocessing(network), weights, self.arguments(), self._drop_rates())

    def check(self) -> WeightsFile | None:
        """Check name, options, image size and weights, so that ``build`` will go through once the images are read.

        Returns:
            The weights' file, which is downloaded if need be; None if the network is to be random.

        Raises:
            UserError: as ``build`` does, but for a file of another architecture.
        """
        catalog.check(self.name)
        if self.given_size is not None or self.arguments():
            self._check_network()
        return locate(self.name, self.weights, self.file, self.weights_dir)

    def check_single_image(self) -> None:
        """Make sure that the network, all of which is trained, can be trained on batches of one image.

        Raises:
            UserError: it cannot.
        """
        with torch.device("meta"):
            network = create(self.built_as, 1, self._timm_options())
        check_single_image(self.name, network.train(), self._preprocessing(network))

    def check_checkpointing(self) -> None:
        """Make sure that the network can compute activations again in the backward pass.

        Raises:
            UserError: it cannot.
        """
        with torch.device("meta"):
            network: Any = create(self.built_as, 1, self._timm_options())
        try:
            network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # timm's way to say so
            raise UserError(
                f"The backbone '{self.name}' has no gradient checkpointing: leave out Recipe.grad_checkpointing, and "
                "lower Recipe.batch_size where memory is short."
            ) from error

    def preprocessing(self) -> Preprocessing:
        """Return what the network wants done to an image, without looking for its weights.

        Raises:
            UserError: unknown name.
        """
        catalog.check(self.name)
        with torch.device("meta"):  # shapes only: neither memory nor time for the weights
            return self._preprocessing(create(self.built_as, 1, self._timm_options()))

    def arguments(self) -> dict[str, Any]:
        """Return what timm needs to build the network again, beside name, number of classes and weights."""
        arguments = dict(self.options) if self.head == "last" else {"body": self.name, **self.options}
        if self.channels is not None:
            arguments["in_chans"] = self.channels
        config = get_pretrained_cfg(self.name)
        if self.given_size is not None and config is not None and config.fixed_input_size:
            arguments["img_size"] = self.given_size  # else any size will do: a convolutional network
        return arguments

    def _drop_rates(self) -> dict[str, float]:
        return {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}

    def _timm_options(self) -> dict[str, Any]:
        return {**self.arguments(), **self._drop_rates()}

    def _check_network(self) -> None:
        """Build and run the network on the meta device: shapes only, neither memory nor time for the weights."""
        network = self.build_on_meta()
        channels, usual, _ = network.pretrained_cfg["input_size"]  # type: ignore[index]  # a timm model has it
        channels, size = self.channels or channels, self.given_size or usual
        changed = bool(self.options) or self.head != "last"
        reason = find_refusal(self._for_size(network), size, channels) if changed else None
        if reason is not None:
            plain = replace(self, options={}, head="last")
            if find_refusal(plain._for_size(plain.build_on_meta()), size, channels) is None:
                raise UserError(self._wrong_options("used", reason))
        if self.given_size is not None:
            check_size(self.name, self.given_size, usual, channels, self._for_size(network))

    def build_on_meta(self) -> nn.Module:
        """Build the network for images of its usual size and one class on the meta device: names and shapes only.

        Raises:
            UserError: it cannot be built with the options.
        """
        options = self._timm_options()
        options.pop("img_size", None)
        try:
            with torch.device("meta"):
                return create(self.built_as, 1, options)
        except UserError:
            raise
        except Exception as error:  # whatever a network's constructor makes of an option that it knows
            raise UserError(self._wrong_options("built", first_line(error))) from error

    def _wrong_options(self, what: str, reason: str) -> str:
        changed = {**self.options, **({} if self.head == "last" else {"head": self.head})}
        given = ", ".join(f"{key}={value}" for key, value in changed.items())
        return f"The backbone '{self.name}' cannot be {what} with {given} ({reason}): leave that out."

    def _for_size(self, network: nn.Module) -> Callable[[int], nn.Module]:
        """Return what gives the network for images of a size: ``network`` itself where any size will do."""
        options = self._timm_options()
        if "img_size" not in options:
            return lambda _: network
        return lambda size: create(self.built_as, 1, {**options, "img_size": size})

    def _preprocessing(self, network: nn.Module) -> Preprocessing:
        config = timm.data.resolve_model_data_config(
            network, args={"crop_pct": self.crop_pct, "crop_mode": self.crop_mode}
        )
        channels, *image_size = config.pop("input_size")
        if self.given_size is not None:
            image_size = [self.given_size, self.given_size]
        if self.channels not in (None, channels):
            channels = self.channels
            # as timm does where the number differs: one value for all, the mean of those that there are
            config |= {name: (sum(config[name]) / len(config[name]),) * channels for name in ("mean", "std")}
        return Preprocessing(image_size=tuple(image_size), channels=channels, **config)


def _head_in_words(class_names: Sequence[str] | None, keeps: bool) -> str:
    """Return whether the head of weights for these classes was kept, as a part of a sentence."""
    if keeps:
        return "with their own head, which is for the same classes"
    return "with a new head" + (", as theirs is for other classes" if class_names is not None else "")
