"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition", II.B).

The network as it is taught today: 61,706 parameters for 10 classes. The paper's own has 60,000, since it connects the
third layer to a part of the maps only (its table I), gives each pooling a trained coefficient and bias, scales the
tanh, and compares the last 84 units with drawn characters (radial basis functions) where we have a linear classifier.

Letters: B batch, C channels, H height, W width, K classes; h, w size of the last maps.
"""

from typing import Any

from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

KERNEL = 5  # px, both convolutions, without padding
NUM_MAPS = (6, 16)  # filters of C1 and C3
NUM_UNITS = (120, 84)  # of C5 and F6
MIN_SIZE = 16  # px; leaves maps of 1x1
# II.B: the background is -0.1 and the ink 1.175, which makes the mean input about 0 and its variance about 1.
BACKGROUND, INK = -0.1, 1.175


class LeNet5(nn.Module):
    """Gray images (B, 1, 32, 32) → logits (B, K).

    Args:
        num_classes: K; 0: no classifier, 84 features come out.
        in_chans: C.
        img_size: size of the images, px: a side or (H, W). The first fully connected layer depends on it.
        drop_rate: dropout before the classifier, which the paper does not have.

    Raises:
        ValueError: the images are smaller than ``MIN_SIZE``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 32,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"LeNet-5 takes images of {MIN_SIZE} px or more")
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.conv1 = _stage(in_chans, NUM_MAPS[0])  # C1, S2: (B, 6, 28, 28) → (B, 6, 14, 14)
        self.conv2 = _stage(NUM_MAPS[0], NUM_MAPS[1])  # C3, S4: (B, 16, 10, 10) → (B, 16, 5, 5)
        self.flatten = nn.Flatten()  # (B, 400)
        num_inputs = NUM_MAPS[1] * _size_after(height) * _size_after(width)
        # C5, in the paper a convolution whose kernel covers the whole 5x5 map, which is the same: (B, 120)
        self.fc1 = nn.Sequential(nn.Linear(num_inputs, NUM_UNITS[0]), nn.Tanh())
        self.fc2 = nn.Sequential(nn.Linear(NUM_UNITS[0], NUM_UNITS[1]), nn.Tanh())  # F6: (B, 84)
        self.head_drop = nn.Dropout(drop_rate)
        self.num_features = NUM_MAPS[1]  # of forward_features
        self.head_hidden_size = NUM_UNITS[1]  # what the classifier is given
        self.reset_classifier(num_classes)
        self.feature_info = [
            {"num_chs": NUM_MAPS[0], "reduction": 2, "module": "conv1"},
            {"num_chs": NUM_MAPS[1], "reduction": 4, "module": "conv2"},
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002  # timm's; each layer is a stage
        """Return timm's patterns of the layer groups: conv1, conv2, fc1, fc2, and fc3, the head."""
        return {"stem": r"^conv1\.", "convolutions": r"^conv(\d)\.", "units": r"^fc(\d)\."}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse, as other small networks of timm do: there is no memory to save."""
        assert not enable, "gradient checkpointing is not supported"

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.fc3

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes``; 0: by none."""
        assert not global_pool, "LeNet-5 has no global pooling"
        self.num_classes = num_classes
        self.fc3: nn.Module  # (B, 84) → (B, K)
        _, self.fc3 = create_classifier(NUM_UNITS[1], num_classes, pool_type="", **get_device_dtype(self))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, 16, h, w) of images (B, C, H, W)."""
        maps: Tensor = self.conv2(self.conv1(x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K), or what the classifier is given (B, 84), of the last maps (B, 16, h, w)."""
        x = self.head_drop(self.fc2(self.fc1(self.flatten(x))))
        return x if pre_logits else self.fc3(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _stage(in_chans: int, num_maps: int) -> nn.Sequential:
    """(B, in_chans, H, W) → (B, num_maps, (H - 4) / 2, (W - 4) / 2)."""
    return nn.Sequential(nn.Conv2d(in_chans, num_maps, KERNEL), nn.Tanh(), nn.AvgPool2d(2))


def _size_after(size: int) -> int:
    """Return the size of the last maps, h or w, for images of ``size`` px."""
    for _ in NUM_MAPS:
        size = (size - KERNEL + 1) // 2
    return size


default_cfgs = generate_default_cfgs(
    {
        "lenet5": {
            "num_classes": 10,
            "input_size": (1, 32, 32),
            "min_input_size": (1, MIN_SIZE, MIN_SIZE),
            "fixed_input_size": True,  # timm hands img_size on
            "mean": (-BACKGROUND / (INK - BACKGROUND),),  # (x - mean) / std: 0 becomes -0.1, 1 becomes 1.175
            "std": (1 / (INK - BACKGROUND),),
            "interpolation": "bilinear",
            "crop_pct": 1.0,  # a digit fills its image
            "first_conv": "conv1.0",
            "classifier": "fc3",
            "license": "apache-2.0",
            "origin_url": "https://doi.org/10.1109/5.726791",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def lenet5(pretrained: bool = False, **kwargs: Any) -> LeNet5:
    """LeNet-5 for gray images of 32x32 px; there are no published weights."""
    network: LeNet5 = build_model_with_cfg(LeNet5, "lenet5", pretrained, feature_cfg={"out_indices": (0, 1)}, **kwargs)
    return network
