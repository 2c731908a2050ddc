"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842): all filter sizes side by side, and auxiliary heads.

``googlenet`` is the paper's network: local response normalization, 5x5 filters, no batch normalization.
``googlenet_bn`` is torchvision's, which has published weights: batch normalization instead, and 3x3 filters where the
paper has 5x5 (https://github.com/pytorch/vision/issues/906).

In training mode the network returns its own logits and those of its auxiliary heads; in eval mode its own only.

Letters: B batch, C channels, H height, W width, K classes; h, w size of the last maps. Shapes in the comments are for
images of 224 px.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from graftline.errors import UserError

DROP_RATE = 0.4  # table 1
AUX_DROP_RATE = 0.7  # section 5
TORCHVISION_DROP_RATE = 0.2
TORCHVISION_BN_EPS = 1e-3
# Figure 3 shows where the responses are normalized, but not how: as Krizhevsky et al. 2012, section 3.3. torch divides
# alpha by the size, which they do not.
LRN_SIZE, LRN_ALPHA, LRN_BETA, LRN_K = 5, 1e-4, 0.75, 2.0

BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
# Auxiliary head → the block that it takes its input from (section 5).
AUX_HEADS = {"side1": "inception4a", "side2": "inception4d"}

# In torchvision's names → in ours.
TORCHVISION_NAMES = {
    ".branch1.": ".conv1.",
    ".branch2.0.": ".reduce3.",
    ".branch2.1.": ".conv3.",
    ".branch3.0.": ".reduce5.",
    ".branch3.1.": ".conv5.",
    ".branch4.1.": ".project.",
    "aux1.": "side1.",
    "aux2.": "side2.",
}


def convolution(in_channels: int, channels: int, size: int, stride: int = 1, *, batch_norm: bool) -> nn.Sequential:
    """Return a convolution with its ReLU (section 5: "all the convolutions … use rectified linear activation")."""
    conv = nn.Conv2d(in_channels, channels, size, stride, padding=size // 2, bias=not batch_norm)
    layers: dict[str, nn.Module] = {"conv": conv}
    if batch_norm:
        layers["bn"] = nn.BatchNorm2d(channels, eps=TORCHVISION_BN_EPS)
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(OrderedDict(layers))


def response_norm() -> nn.LocalResponseNorm:
    """Return a local response normalization."""
    return nn.LocalResponseNorm(LRN_SIZE, alpha=LRN_ALPHA * LRN_SIZE, beta=LRN_BETA, k=LRN_K)


def max_pool(size: int = 3) -> nn.MaxPool2d:
    """Return a pooling that halves the map, rounding up: 112 → 56 → 28 → 14 → 7 (table 1)."""
    return nn.MaxPool2d(size, stride=2, ceil_mode=True)


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 filters and a pooling side by side, each behind a 1x1 bottleneck (figure 2b).

    Args:
        in_channels: C of the input.
        conv1: number of 1x1 filters. This and the following are the columns of table 1.
        reduce3: 1x1 filters before the 3x3 ones.
        conv3: 3x3 filters.
        reduce5: 1x1 filters before the 5x5 ones.
        conv5: 5x5 filters; 3x3 with ``batch_norm``, as torchvision has them.
        project: 1x1 filters behind the pooling.
        batch_norm: whether each convolution is normalized.
    """

    def __init__(
        self,
        in_channels: int,
        conv1: int,
        reduce3: int,
        conv3: int,
        reduce5: int,
        conv5: int,
        project: int,
        *,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, conv1, 1, batch_norm=batch_norm)
        self.reduce3 = convolution(in_channels, reduce3, 1, batch_norm=batch_norm)
        self.conv3 = convolution(reduce3, conv3, 3, batch_norm=batch_norm)
        self.reduce5 = convolution(in_channels, reduce5, 1, batch_norm=batch_norm)
        self.conv5 = convolution(reduce5, conv5, 3 if batch_norm else 5, batch_norm=batch_norm)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.project = convolution(in_channels, project, 1, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, conv1 + conv3 + conv5 + project, H, W) of maps (B, in_channels, H, W)."""
        wide, wider = self.conv3(self.reduce3(x)), self.conv5(self.reduce5(x))
        return torch.cat([self.conv1(x), wide, wider, self.project(self.pool(x))], dim=1)


class AuxHead(nn.Module):
    """A small network that predicts the classes from the middle of the large one (section 5).

    Its pooling has windows of 5 px, 3 apart, on a map of 14x14. A map of another size is brought to 14x14 first, which
    leaves one of that size as it is; torchvision pools adaptively to 4x4, whose windows are others.

    Args:
        in_channels: C of the input.
        num_classes: K.
        batch_norm: whether it is torchvision's.
    """

    def __init__(self, in_channels: int, num_classes: int, *, batch_norm: bool) -> None:
        super().__init__()
        paper = nn.Sequential(nn.AdaptiveAvgPool2d(14), nn.AvgPool2d(5, stride=3))
        self.pool = nn.AdaptiveAvgPool2d(4) if batch_norm else paper
        self.conv = convolution(in_channels, 128, 1, batch_norm=batch_norm)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(AUX_DROP_RATE)
        self.fc2 = _classifier(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of maps (B, in_channels, H, W)."""
        x = self.conv(self.pool(x))  # (B, 128, 4, 4)
        x = self.relu(self.fc1(self.flatten(x)))  # (B, 1024)
        logits: Tensor = self.fc2(self.drop(x))
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet as table 1 has it, or as torchvision does.

    Args:
        num_classes: K; 0: no classifier.
        in_chans: C of the images.
        global_pool: kind of timm's pooling before the classifier.
        drop_rate: dropout before the classifier, 0 to 1.
        aux_heads: whether it has them.
        batch_norm: whether it is torchvision's.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = DROP_RATE,
        *,
        aux_heads: bool = True,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.batch_norm = batch_norm
        self.num_features = self.head_hidden_size = 1024

        self.conv1 = convolution(in_chans, 64, 7, stride=2, batch_norm=batch_norm)
        self.pool1 = max_pool()
        self.norm1 = nn.Identity() if batch_norm else response_norm()
        self.conv2 = convolution(64, 64, 1, batch_norm=batch_norm)  # column "#3x3 reduce" of the second convolution
        self.conv3 = convolution(64, 192, 3, batch_norm=batch_norm)
        self.norm2 = nn.Identity() if batch_norm else response_norm()
        self.pool2 = max_pool()
        self.inception3a = Inception(192, 64, 96, 128, 16, 32, 32, batch_norm=batch_norm)
        self.inception3b = Inception(256, 128, 128, 192, 32, 96, 64, batch_norm=batch_norm)
        self.pool3 = max_pool()
        self.inception4a = Inception(480, 192, 96, 208, 16, 48, 64, batch_norm=batch_norm)
        self.inception4b = Inception(512, 160, 112, 224, 24, 64, 64, batch_norm=batch_norm)
        self.inception4c = Inception(512, 128, 128, 256, 24, 64, 64, batch_norm=batch_norm)
        self.inception4d = Inception(512, 112, 144, 288, 32, 64, 64, batch_norm=batch_norm)
        self.inception4e = Inception(528, 256, 160, 320, 32, 128, 128, batch_norm=batch_norm)
        self.pool4 = max_pool(2 if batch_norm else 3)
        self.inception5a = Inception(832, 256, 160, 320, 32, 128, 128, batch_norm=batch_norm)
        self.inception5b = Inception(832, 384, 192, 384, 48, 128, 128, batch_norm=batch_norm)
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.side1 = AuxHead(512, num_classes, batch_norm=batch_norm) if aux_heads else None
        self.side2 = AuxHead(528, num_classes, batch_norm=batch_norm) if aux_heads else None

        self.feature_info = [
            {"num_chs": 64, "reduction": 2, "module": "conv1"},
            {"num_chs": 192, "reduction": 4, "module": "norm2"},
            {"num_chs": 480, "reduction": 8, "module": "inception3b"},
            {"num_chs": 832, "reduction": 16, "module": "inception4e"},
            {"num_chs": 1024, "reduction": 32, "module": "inception5b"},
        ]
        self.apply(_initialize)

    @property
    def aux_heads(self) -> tuple[str, ...]:
        """Names of the modules that are auxiliary heads, from the input upwards."""
        return tuple(name for name in AUX_HEADS if getattr(self, name) is not None)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits (B, K) of images (B, C, H, W); with those of auxiliary heads that are in training mode."""
        at_4a = self._to_4a(x)
        at_4d = self._to_4d(at_4a)
        logits = self.forward_head(self._to_5b(at_4d))
        inputs = zip((self.side1, self.side2), (at_4a, at_4d), strict=True)
        aux = [head(at) for head, at in inputs if head is not None and head.training]
        return (logits, *aux) if aux else logits

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, 1024, H / 32, W / 32) of images (B, C, H, W)."""
        return self._to_5b(self._to_4d(self._to_4a(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits (B, K), or what the classifier is given (B, 1024), of the last maps (B, 1024, h, w)."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def _to_4a(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (B, 64, 112, 112)
        x = self.norm1(self.pool1(x))  # (B, 64, 56, 56)
        x = self.conv3(self.conv2(x))  # (B, 192, 56, 56)
        x = self.pool2(self.norm2(x))  # (B, 192, 28, 28)
        x = self.inception3a(x)  # (B, 256, 28, 28)
        x = self.inception3b(x)  # (B, 480, 28, 28)
        x = self.pool3(x)  # (B, 480, 14, 14)
        x = self.inception4a(x)  # (B, 512, 14, 14)
        return x  # noqa: RET504  # each line with its shape

    def _to_4d(self, x: Tensor) -> Tensor:
        x = self.inception4b(x)  # (B, 512, 14, 14)
        x = self.inception4c(x)  # (B, 512, 14, 14)
        x = self.inception4d(x)  # (B, 528, 14, 14)
        return x  # noqa: RET504  # each line with its shape

    def _to_5b(self, x: Tensor) -> Tensor:
        x = self.inception4e(x)  # (B, 832, 14, 14)
        x = self.pool4(x)  # (B, 832, 7, 7)
        x = self.inception5a(x)  # (B, 832, 7, 7)
        x = self.inception5b(x)  # (B, 1024, 7, 7)
        return x  # noqa: RET504  # each line with its shape

    def get_classifier(self) -> nn.Module:
        """Return the main classifier; those of the auxiliary heads are not the head's, they hang on the body."""
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network and its auxiliary heads new classifiers."""
        self.num_classes = num_classes
        factory = get_device_dtype(self)
        pool_type = global_pool if global_pool is not None else self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool_type, **factory)
        new = [self.fc]
        for name in self.aux_heads:
            head = getattr(self, name)
            head.fc2 = _classifier(head.fc1.out_features, num_classes, **factory)
            new.append(head.fc2)
        for classifier in new:
            _initialize(classifier)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:  # noqa: ARG002  # timm's signature
        """Return the group of a parameter by its name: the stem, each block with the auxiliary head on it, the head.

        Coarse and fine are the same, as for timm's ``inception_v4``.
        """
        groups = {f"inception{block}": float(number) for number, block in enumerate(BLOCKS, start=1)}
        groups |= {"conv1": 0.0, "conv2": 0.0, "conv3": 0.0}
        groups |= {head: groups[block] for head, block in AUX_HEADS.items()}
        return lambda name: groups.get(name.partition(".")[0], float("inf"))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse, as other plain networks of timm do."""
        assert not enable, "gradient checkpointing not supported"


def _classifier(in_features: int, num_classes: int, **factory: Any) -> nn.Module:
    return nn.Linear(in_features, num_classes, **factory) if num_classes > 0 else nn.Identity()


def _initialize(module: nn.Module) -> None:
    """Draw weights that keep the spread of the responses (He et al. 2015, arXiv 1502.01852); the paper names none."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if isinstance(module, nn.Conv2d) else "linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def checkpoint_filter_fn(state: Mapping[str, Tensor], model: GoogLeNet) -> dict[str, Tensor]:
    """Bring torchvision's names into ours, and drop the auxiliary heads where the network has none.

    Raises:
        UserError: the weights are torchvision's, but the network is the paper's.
    """
    if "conv1.bn.weight" in state and not model.batch_norm:
        raise UserError(
            "These weights are of torchvision's GoogLeNet, which is another architecture than 'googlenet': it has "
            "batch normalization instead of local response normalization, and 3x3 filters where the paper has 5x5. "
            "Take the backbone googlenet_bn."
        )
    renamed = {}
    for key, tensor in state.items():
        for theirs, ours in TORCHVISION_NAMES.items():
            key = key.replace(theirs, ours)
        if model.aux_heads or key.partition(".")[0] not in AUX_HEADS:
            renamed[key] = tensor
    return renamed


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "min_input_size": (3, 31, 31),  # leaves a map of 2x2 before the last halving
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "num_classes": 1000,
        "first_conv": "conv1.conv",
        "classifier": ("fc", "side1.fc2", "side2.fc2"),
        "license": "apache-2.0",
        "origin_url": "https://arxiv.org/abs/1409.4842",
        "paper_ids": "arXiv:1409.4842",
        "paper_name": "Going Deeper with Convolutions",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {
        # Nobody publishes weights. Section 5 subtracts the mean; the initial weights want the spread divided out too.
        "googlenet": _cfg(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD),
        # torchvision's transform_input turns images normalized with ImageNet's mean and spread into (x - 0.5) / 0.5.
        # Its file has auxiliary heads, but random ones.
        "googlenet_bn.tv_in1k": _cfg(
            url="https://download.pytorch.org/models/googlenet-1378be20.pth",
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
            min_input_size=(3, 15, 15),  # of torchvision's min_size; its last halving takes a map of 1x1 too
            license="bsd-3-clause",
            origin_url="https://github.com/pytorch/vision",
        ),
    }
)


def _create(name: str, pretrained: bool, **arguments: Any) -> GoogLeNet:
    network: GoogLeNet = build_model_with_cfg(
        GoogLeNet, name, pretrained, pretrained_filter_fn=checkpoint_filter_fn, **arguments
    )
    return network


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def googlenet(pretrained: bool = False, **arguments: Any) -> GoogLeNet:
    """Build GoogLeNet as the paper has it."""
    return _create("googlenet", pretrained, **arguments)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def googlenet_bn(pretrained: bool = False, **arguments: Any) -> GoogLeNet:
    """Build GoogLeNet as torchvision has it."""
    return _create("googlenet_bn", pretrained, **{"drop_rate": TORCHVISION_DROP_RATE, **arguments, "batch_norm": True})
