"""Network in Network (Lin, Chen and Yan 2013, arXiv 1312.4400): 1x1 convolutions between the convolutions.

A 1x1 convolution is a small fully connected network that slides over the maps (section 3.1): it adds non-linearity and
sets the number of channels. The paper's experiments are on small images; the sizes here are those of the authors' own
network for ImageNet, published for Caffe as "NIN-Imagenet": 7,595,176 parameters for 1000 classes.

The paper's last layer is a 1x1 convolution with one filter per class, whose maps are averaged (section 3.2). We
average first and then apply the same weights as a linear layer, which is what timm can cut off and replace: both are
linear, so that their order makes no difference. The one thing that we leave out is the ReLU between the two, with
which it would: it lets no logit fall below 0, and a class whose map is 0 everywhere learns nothing.

Letters: B batch, C channels, H height, W width, K classes.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

NUM_FILTERS = (96, 256, 384, 1024)  # of the four mlpconv blocks
DROP_RATE = 0.5  # section 4.1


class NIN(nn.Module):
    """Images (B, 3, 224, 224) → logits (B, K).

    Args:
        num_classes: K; 0: no classifier, 1024 features come out.
        in_chans: C.
        global_pool: timm's name of the pooling before the classifier, section 3.2: ``avg``.
        drop_rate: dropout before the classifier, which the paper does not have.
        conv_drop_rate: dropout before the last block, section 4.1.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        conv_drop_rate: float = DROP_RATE,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        first, second, third, fourth = NUM_FILTERS
        self.mlpconv1 = nn.Sequential(  # (B, 96, 54, 54) → (B, 96, 27, 27)
            *_mlpconv(in_chans, first, kernel_size=11, stride=4, num_1x1=2), _pool()
        )
        self.mlpconv2 = nn.Sequential(  # (B, 256, 27, 27) → (B, 256, 13, 13)
            *_mlpconv(first, second, kernel_size=5, padding=2, num_1x1=2), _pool()
        )
        self.mlpconv3 = nn.Sequential(  # (B, 384, 13, 13) → (B, 384, 6, 6)
            *_mlpconv(second, third, kernel_size=3, padding=1, num_1x1=2), _pool()
        )
        self.mlpconv4 = nn.Sequential(  # (B, 1024, 6, 6); its second 1x1 convolution is the classifier
            nn.Dropout(conv_drop_rate), *_mlpconv(third, fourth, kernel_size=3, padding=1, num_1x1=1)
        )
        self.head = ClassifierHead(fourth, num_classes, pool_type=global_pool, drop_rate=drop_rate)  # (B, K)
        self.num_features = fourth
        self.head_hidden_size = self.head.num_features  # twice as many where the pooling keeps mean and maximum
        self.feature_info = [
            {"num_chs": filters, "reduction": reduction, "module": f"mlpconv{number}"}
            for number, (filters, reduction) in enumerate(zip(NUM_FILTERS, (8, 16, 32, 32), strict=True), start=1)
        ]
        self.apply(_initialize)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of the layer groups: the four blocks, or each convolution of them; the head."""
        return {"stem": r"^mlpconv1\.", "blocks": r"^mlpconv(\d)\." if coarse else r"^mlpconv(\d)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Refuse, as other plain networks of timm do."""
        assert not enable, "gradient checkpointing is not supported"

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that stands for the last 1x1 convolution."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes``; 0: by none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last maps (B, 1024, 6, 6) of images (B, C, 224, 224)."""
        maps: Tensor = self.mlpconv4(self.mlpconv3(self.mlpconv2(self.mlpconv1(x))))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K), or what the classifier is given (B, 1024), of the last maps (B, 1024, 6, 6)."""
        logits: Tensor = self.head(x, pre_logits=pre_logits)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


def _mlpconv(
    in_chans: int, filters: int, *, kernel_size: int, stride: int = 1, padding: int = 0, num_1x1: int
) -> list[nn.Module]:
    """Return a convolution and the 1x1 convolutions on top of it, each with its ReLU (section 3.1)."""
    layers: list[nn.Module] = [nn.Conv2d(in_chans, filters, kernel_size, stride, padding), nn.ReLU(inplace=True)]
    for _ in range(num_1x1):
        layers += [nn.Conv2d(filters, filters, 1), nn.ReLU(inplace=True)]
    return layers


def _pool() -> nn.MaxPool2d:
    """Halve the maps, overlapping; rounded up, as Caffe does: 224 px → 54 → 27 → 13 → 6."""
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def _initialize(module: nn.Module) -> None:
    """Keep the variance through eleven ReLUs (He et al. 2015, arXiv 1502.01852, section 2.2); the paper has no rule."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "nin": {
            "input_size": (3, 224, 224),
            "min_input_size": (3, 39, 39),  # 8x8 maps, of which the poolings leave 4, 2 and 1
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bilinear",
            "crop_pct": 0.875,  # 224 of 256 px, as Caffe's recipe
            "first_conv": "mlpconv1.0",
            "classifier": "head.fc",
            "license": "apache-2.0",
            "origin_url": "https://arxiv.org/abs/1312.4400",
        }
    }
)


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def nin(pretrained: bool = False, **kwargs: Any) -> NIN:
    """Network in Network, the authors' version for ImageNet; its weights are published for Caffe only."""
    network: NIN = build_model_with_cfg(NIN, "nin", pretrained, feature_cfg={"out_indices": (0, 1, 2, 3)}, **kwargs)
    return network
