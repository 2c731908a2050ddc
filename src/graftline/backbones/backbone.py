"""A pretrained network with a new head: any of timm's models, its weights and its preprocessing."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from graftline.augment.preprocess import Preprocessing
from graftline.backbones import catalogue
from graftline.backbones.loading import create, create_pretrained
from graftline.backbones.weights import Wanted, Weights, WeightsFile, locate
from graftline.errors import UserError


@dataclass(frozen=True)
class Graft:
    """A network that is ready to be trained.

    Attributes:
        network: the timm model with a head for the wanted number of classes; float32, on the CPU, in training mode.
        preprocessing: what the network wants done to an image.
        weights: what it was loaded with.
    """

    network: nn.Module
    preprocessing: Preprocessing
    weights: Weights


@dataclass(frozen=True)
class Backbone:
    """Which network to graft a head onto (Hydra target of conf/backbone/*.yaml).

    Attributes:
        name: a timm model, with or without a tag (``resnet50``, ``resnet50.a1_in1k``).
        weights: ``auto`` takes the first of: the file, a package, the local hub cache, the hub.
        file: a .safetensors, .pth, .pt or .bin file with the network's weights.
        image_size: side of the square input, in pixels; None: what the weights were trained with.
        crop_pct: share of the resized image's edge that the evaluation crop keeps, 0 to 1; None: as the weights ask.
        drop_rate: dropout before the head, 0 to 1.
        drop_path_rate: stochastic depth, 0 to 1.
    """

    name: str
    weights: Wanted = "auto"
    file: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for key in ("drop_rate", "drop_path_rate"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"backbone.{key} is {getattr(self, key)}, but must be at least 0 and below 1.")

    def build(self, num_classes: int) -> Graft:
        """Build the network, load its weights and give it a head.

        Args:
            num_classes: K, the size of the head. The head of the weights is kept if it has that size, else replaced.

        Raises:
            UserError: unknown name, no such file, weights of another architecture, an image size that the network
                cannot take, nothing local while offline.
        """
        file = self.check()
        if file is None:
            network = create(self.name, num_classes, self._options())
        else:
            network = create_pretrained(self.name, file, self._options())
        if network.num_classes != num_classes:
            network.reset_classifier(num_classes)  # type: ignore[operator]  # every timm model has it
        return Graft(network, self._preprocessing(network), file.record() if file is not None else Weights("none"))

    def check(self) -> WeightsFile | None:
        """Make sure that ``build`` will go through, before hours are spent on the images: name, image size, weights.

        Returns:
            The weights' file, which is downloaded if need be; None if the network is to be random.

        Raises:
            UserError: as ``build`` does, but for a file of another architecture.
        """
        catalogue.check(self.name)
        if self.image_size is not None:
            self._check_image_size(self.image_size)
        return locate(self.name, self.weights, self.file)

    def preprocessing(self) -> Preprocessing:
        """Return what the network wants done to an image, without looking for its weights.

        Raises:
            UserError: unknown name.
        """
        catalogue.check(self.name)
        with torch.device("meta"):  # shapes only: neither memory nor time for the weights
            return self._preprocessing(create(self.name, 1, self._options()))

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        config = get_pretrained_cfg(self.name)
        if self.image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = self.image_size  # else any size will do: a convolutional network
        return options

    def _check_image_size(self, size: int) -> None:
        try:
            with torch.device("meta"):  # shapes only: neither memory nor time for the weights
                create(self.name, 1, self._options()).eval()(torch.empty(1, 3, size, size))
        except UserError:
            raise
        except Exception as error:  # a convolution's, a pooling's, a window's: each has its own
            usual = timm.data.resolve_data_config(pretrained_cfg=get_pretrained_cfg(self.name).to_dict())["input_size"][
                1
            ]
            raise UserError(
                f"The backbone '{self.name}' cannot take images of {size} px ({str(error).splitlines()[0]}): "
                f"its weights were trained with {usual} px."
            ) from error

    def _preprocessing(self, network: nn.Module) -> Preprocessing:
        size = None if self.image_size is None else (3, self.image_size, self.image_size)
        config = timm.data.resolve_model_data_config(network, args={"input_size": size, "crop_pct": self.crop_pct})
        channels, *image_size = config.pop("input_size")
        return Preprocessing(image_size=tuple(image_size), channels=channels, **config)
