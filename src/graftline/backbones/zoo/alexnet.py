"""AlexNet (Krizhevsky, Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks").

``alexnet`` is the paper's network, on one GPU (62,378,344 parameters) or, with ``groups=2``, as it was spread over two
(60,965,224). ``alexnet_owt`` is its successor without response normalization (Krizhevsky 2014, "One weird trick for
parallelizing convolutional neural networks", arXiv 1404.5997), for which torchvision has weights.

Sections are those of the 2012 paper. Letters: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from graftline.errors import UserError

NUM_UNITS = 4096  # of each hidden fully connected layer, section 3.5
MAP_SIZE = 6  # of the last maps, which the first fully connected layer takes
DROP_RATE = 0.5  # section 4.2
# Section 3.3. torch divides alpha by the number of maps that it sums over, the paper does not.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0
INIT_STD = 0.01  # section 5


@dataclass(frozen=True)
class AlexNetConfig:
    """In what the two papers' networks differ.

    Attributes:
        filters: of the five convolutions.
        padding: of the first one, px.
        normalized: whether responses are normalized after the first two (section 3.3); then weights and biases also
            start as section 5 has it, for inputs that are raw levels, else as torch has it.
    """

    filters: tuple[int, int, int, int, int]
    padding: int
    normalized: bool


# The paper says 224 px and 55x55 maps (section 3.5, figure 2), which fit together for 227 px only.
PAPER = AlexNetConfig(filters=(96, 256, 384, 384, 256), padding=0, normalized=True)
ONE_WEIRD_TRICK = AlexNetConfig(filters=(64, 192, 384, 256, 256), padding=2, normalized=False)


class AlexNet(nn.Module):
    """Images (B, 3, 227, 227) → logits (B, K). Sizes in the comments are those of the paper's layout.

    Args:
        cfg: the layout.
        num_classes: K; 0: no classifier, 4096 features come out.
        in_chans: C.
        drop_rate: dropout on the outputs of both hidden fully connected layers.
        groups: 1, or 2: the second, fourth and fifth convolution see the maps of their own GPU only (section 3.2).

    Raises:
        UserError: ``groups`` is neither.
    """

    def __init__(
        self,
        cfg: AlexNetConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = DROP_RATE,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if type(groups) is not int or groups not in (1, 2):  # True and 1.0 equal 1, but torch takes neither
            raise UserError(f"AlexNet has groups=1, or 2 as on the paper's two GPUs, not {groups}.")
        self.in_chans, self.drop_rate = in_chans, drop_rate
        first, second, third, fourth, fifth = cfg.filters
        norm = _norm if cfg.normalized else nn.Identity
        self.conv1 = nn.Sequential(  # (B, 96, 55, 55) → (B, 96, 27, 27)
            nn.Conv2d(in_chans, first, 11, stride=4, padding=cfg.padding), nn.ReLU(inplace=True), norm(), _pool()
        )
        self.conv2 = nn.Sequential(  # (B, 256, 27, 27) → (B, 256, 13, 13)
            nn.Conv2d(first, second, 5, padding=2, groups=groups), nn.ReLU(inplace=True), norm(), _pool()
        )
        self.conv3 = nn.Sequential(  # (B, 384, 13, 13): sees the maps of both GPUs
            nn.Conv2d(second, third, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.conv4 = nn.Sequential(  # (B, 384, 13, 13)
            nn.Conv2d(third, fourth, 3, padding=1, groups=groups), nn.ReLU(inplace=True)
        )
        self.conv5 = nn.Sequential(  # (B, 256, 13, 13) → (B, 256, 6, 6)
            nn.Conv2d(fourth, fifth, 3, padding=1, groups=groups), nn.ReLU(inplace=True), _pool()
        )
        # Nothing at the paper's size; else the maps are averaged (or repeated) to the 6x6 that the next layer takes.
        self.resample = nn.AdaptiveAvgPool2d(MAP_SIZE)
        self.fc6 = nn.Sequential(  # (B, 9216) → (B, 4096)
            nn.Flatten(), nn.Linear(fifth * MAP_SIZE**2, NUM_UNITS), nn.ReLU(inplace=True)
        )
        # The dropout stands with the layer that it protects, so that it is off once that layer is frozen.
        self.fc7 = nn.Sequential(  # (B, 4096) → (B, 4096)
            nn.Dropout(drop_rate), nn.Linear(NUM_UNITS, NUM_UNITS), nn.ReLU(inplace=True)
        )
        self.head_drop = nn.Dropout(drop_rate)
        self.num_features = fifth  # of forward_features
        self.head_hidden_size = NUM_UNITS  # what the classifier is given
        self.reset_classifier(num_classes)
        self.feature_info = [
            {"num_chs": first, "reduction": 8, "module": "conv1"},
            {"num_chs": second, "reduction": 16, "module": "conv2"},
            {"num_chs": fifth, "reduction": 32, "module": "conv5"},
        ]
        if cfg.normalized:
            self._initialize()

    def _initialize(self) -> None:
        """Start as section 5 says: small normal weights; biases of 1 where they speed up the first steps, else 0."""
        ones = {self.conv2[0], self.conv4[0], self.conv5[0], self.fc6[1], self.fc7[1]}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=INIT_STD)
                assert layer.bias is not None
                nn.init.constant_(layer.bias, 1.0 if layer in ones else 0.0)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002  # timm's; each layer is a stage
        """Return timm's patterns of the layer groups: conv1 to conv5, fc6, fc7, and fc8, the head."""
        return {"stem": r"^conv1\.", "convolutions": r"^conv(\d)\.", "units": r"^fc(\d)\."}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse, as other plain networks of timm do."""
        assert not enable, "gradient checkpointing is not supported"

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc8

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes``; 0: by none."""
        assert not global_pool, "AlexNet has no global pooling"
        self.num_classes = num_classes
        self.fc8: nn.Module  # (B, 4096) → (B, K)
        _, self.fc8 = create_classifier(NUM_UNITS, num_classes, pool_type="", **get_device_dtype(self))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, 256, 6, 6) of images (B, C, 227, 227)."""
        maps: Tensor = self.conv5(self.conv4(self.conv3(self.conv2(self.conv1(x)))))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K), or what the classifier is given (B, 4096), of the last maps (B, 256, 6, 6)."""
        x = self.head_drop(self.fc7(self.fc6(self.resample(x))))
        return x if pre_logits else self.fc8(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _norm() -> nn.LocalResponseNorm:
    """Section 3.3: b_i = a_i / (k + alpha · sum of a_j² over the n maps around i) ^ beta."""
    return nn.LocalResponseNorm(LRN_SIZE, alpha=LRN_ALPHA * LRN_SIZE, beta=LRN_BETA, k=LRN_K)


def _pool() -> nn.MaxPool2d:
    """Overlapping pooling, section 3.4."""
    return nn.MaxPool2d(kernel_size=3, stride=2)


# torchvision's layers under our names. Its dropout stands elsewhere, which makes no difference to what is computed.
TORCHVISION_NAMES = {
    "features.0": "conv1.0",
    "features.3": "conv2.0",
    "features.6": "conv3.0",
    "features.8": "conv4.0",
    "features.10": "conv5.0",
    "classifier.1": "fc6.1",
    "classifier.4": "fc7.1",
    "classifier.6": "fc8",
}


def _from_torchvision(state: Mapping[str, Tensor], _network: nn.Module) -> dict[str, Tensor]:
    """Rename torchvision's tensors; ours keep their names."""
    names = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in TORCHVISION_NAMES.items()
        for kind in ("weight", "bias")
    }
    return {names.get(key, key): tensor for key, tensor in state.items()}


def _refuse_torchvision(state: Mapping[str, Tensor], _network: nn.Module) -> dict[str, Tensor]:
    """Say what torchvision calls AlexNet, before anyone loads the half of it that would fit.

    Raises:
        UserError: ``state`` is torchvision's.
    """
    if "features.0.weight" in state:
        raise UserError(
            "These weights are of torchvision's AlexNet, which is another architecture than 'alexnet': it has "
            "64-192-384-256-256 filters instead of 96-256-384-384-256 and no local response normalization. "
            "Take the backbone alexnet_owt."
        )
    return dict(state)


default_cfgs = generate_default_cfgs(
    {
        "alexnet": {
            "input_size": (3, 227, 227),
            "min_input_size": (3, 67, 67),
            "crop_pct": 227 / 256,  # section 2: the center of images whose shorter side is 256 px
            # Section 2: raw levels, 0 to 255, with the mean taken off; ours is per channel, theirs per pixel. The
            # initial weights and the constants of the normalization are made for this range.
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": (1 / 255, 1 / 255, 1 / 255),
            "interpolation": "bilinear",
            "first_conv": "conv1.0",
            "classifier": "fc8",
            "license": "apache-2.0",
            "origin_url": "https://doi.org/10.1145/3065386",
        },
        "alexnet_owt.tv_in1k": {
            "url": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "input_size": (3, 224, 224),
            "min_input_size": (3, 63, 63),
            "crop_pct": 0.875,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bilinear",
            "first_conv": "conv1.0",
            "classifier": "fc8",
            "license": "bsd-3-clause",
            "origin_url": "https://github.com/pytorch/vision",
        },
    }
)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def alexnet(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet as in the paper of 2012; there are no published weights in a format that we read."""
    return _create("alexnet", PAPER, pretrained, _refuse_torchvision, **kwargs)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def alexnet_owt(pretrained: bool = False, **kwargs: Any) -> AlexNet:
    """AlexNet as in "One weird trick" and in torchvision, whose weights it takes."""
    return _create("alexnet_owt", ONE_WEIRD_TRICK, pretrained, _from_torchvision, **kwargs)


def _create(name: str, layout: AlexNetConfig, pretrained: bool, filter_fn: Any, **kwargs: Any) -> AlexNet:
    network: AlexNet = build_model_with_cfg(
        AlexNet,
        name,
        pretrained,
        model_cfg=layout,
        feature_cfg={"out_indices": (0, 1, 2)},
        pretrained_filter_fn=filter_fn,
        **kwargs,
    )
    return network
