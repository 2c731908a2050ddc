"""A head that reads all stages of a network, not the last alone (Head2Toe, Evci et al. 2022, arXiv 2201.03529).

The paper selects among all activations of a network. Here the average and the maximum of the map of each stage stand
beside the last features, which needs no selection.

``stages`` is one of timm's models whose argument ``body`` names another, around which it is built. Its parameters have
the names that they have in the body, so that the layer groups are the body's, too.

Letters: B batch, C channels, H height, W width, K classes, D numbers of a part, E of all of them; h, w size of a map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_device_dtype
from timm.models import generate_default_cfgs, load_pretrained, register_model
from torch import Tensor, nn

from graftline.backbones.loading import STAGES, STAGES_HEAD, create
from graftline.errors import UserError

MAX_MAPS = 5  # as many stages as most convolutional networks have; timm gives one map per block of a transformer


class StagesHead(nn.Module):
    """What the class of a body is extended by; see ``read_stages``. Images (B, C, H, W) → logits (B, K)."""

    num_features: int  # E
    stages_head: nn.Module  # (B, E) → (B, K)
    stages_drop: nn.Dropout
    maps_read: tuple[int, ...]  # which of the maps that timm gives are read

    def get_classifier(self) -> nn.Module:
        """Return the linear layer."""
        return self.stages_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one for ``num_classes``; 0: by none."""
        assert not global_pool, "the pooling of the body is given when it is built"
        placed = get_device_dtype(self)
        self.num_classes = num_classes
        self.stages_head = nn.Linear(self.num_features, num_classes, **placed) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Return what the classifier is given (B, E): the last features, and averages and maxima of the stages."""
        body: Any = super()
        last, maps = body.forward_intermediates(images, indices=list(self.maps_read))
        parts = [body.forward_head(last, pre_logits=True)]  # (B, D)
        for stage in maps:  # (B, D, h, w)
            parts += [stage.mean(dim=(2, 3)), stage.amax(dim=(2, 3))]
        return torch.cat([_standardized(part) for part in parts], dim=1)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K), or what the classifier is given (B, E), of what ``forward_features`` gives."""
        if pre_logits:
            return features
        logits: Tensor = self.stages_head(self.stages_drop(features))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))


def _standardized(part: Tensor) -> Tensor:
    """Give each row of (B, D) mean 0 and variance 1: stages differ widely, and the head has one rate for all."""
    return F.layer_norm(part, part.shape[1:])


def read_stages(body: Any, num_classes: int, drop_rate: float = 0.0) -> nn.Module:
    """Give a network a head that reads all of its stages, in the place of its own.

    As torch does where it divides a network's parameters (``fully_shard``), the object stays and its class is extended.

    Args:
        body: a network of timm's; it becomes the network that is returned.
        num_classes: K; 0: no classifier, E features come out.
        drop_rate: dropout before the classifier.

    Raises:
        UserError: the body does not give the maps of its stages.
    """
    if not hasattr(body, "forward_intermediates") or not hasattr(body, "feature_info"):
        raise UserError(
            f"The backbone '{body.pretrained_cfg['architecture']}' does not give the maps of its stages, which "
            "Backbone.head='stages' reads: leave that out."
        )
    widths = [entry["num_chs"] for entry in body.feature_info]
    body.reset_classifier(0)
    last = getattr(body, "head_hidden_size", body.num_features)
    body.maps_read = spread(len(widths))
    body.stages_drop = nn.Dropout(drop_rate)
    body.num_features = body.head_hidden_size = last + 2 * sum(widths[stage] for stage in body.maps_read)
    body.__class__ = type(f"Stages{type(body).__name__}", (StagesHead, type(body)), {})
    body.reset_classifier(num_classes)
    network: nn.Module = body
    return network


def spread(num_maps: int) -> tuple[int, ...]:
    """Return which of a network's maps are read: all, or ``MAX_MAPS`` at equal distances, the last among them.

    >>> spread(4), spread(12)
    ((0, 1, 2, 3), (1, 3, 6, 8, 11))
    """
    num_read = min(num_maps, MAX_MAPS)
    return tuple((number + 1) * num_maps // num_read - 1 for number in range(num_read))


default_cfgs = generate_default_cfgs({STAGES: {"classifier": STAGES_HEAD}})  # all else is the body's


@register_model  # type: ignore[untyped-decorator]  # timm ships no types
def stages(
    pretrained: bool = False,
    *,
    body: str,
    num_classes: int | None = None,
    drop_rate: float = 0.0,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    pretrained_model_args: Any = None,
    cache_dir: Any = None,
    **options: Any,
) -> nn.Module:
    """Another network of timm's, with a head that reads all of its stages.

    Args:
        pretrained: load weights, as ``pretrained_cfg`` or its overlay says: those of a network built by this function.
        body: timm's name of the other network.
        num_classes: K; None: as the configuration has it.
        drop_rate: dropout before the classifier.
        pretrained_cfg: configuration of a saved network; None: the body's.
        pretrained_cfg_overlay: replaces entries of it.
        pretrained_model_args: with which a saved network was built.
        cache_dir: timm's; a body is built without weights.
        options: of the body.

    Raises:
        UserError: the body does not give the maps of its stages, or does not know an option.
    """
    network: Any = create(body, 0, {**options, "drop_rate": 0.0})  # a part is not dropped on its way to the head
    config = {**network.pretrained_cfg, **(pretrained_cfg or {}), **(pretrained_cfg_overlay or {})}
    config |= {"architecture": STAGES, "tag": None, "classifier": STAGES_HEAD, "custom_load": False}
    network = read_stages(network, config["num_classes"] if num_classes is None else num_classes, drop_rate)
    network.pretrained_cfg = network.default_cfg = config
    network.pretrained_model_args = pretrained_model_args or {}
    if pretrained:
        load_pretrained(
            network, config, num_classes=network.num_classes, in_chans=network.in_chans, cache_dir=cache_dir
        )
    return network  # type: ignore[no-any-return]  # a timm network
