"""How fast the whole of a pretrained network is fine-tuned, by the layers with which it normalizes.

Where BatchNorm follows a layer, the length of its weights has no effect, and a step that is too large makes them longer
and the next one smaller: such a network forgives a high rate (van Laarhoven 2017, arXiv 1706.05350, section 3; Arora,
Li and Lyu 2019, arXiv 1812.03981). Where LayerNorm stands before a layer, as in transformers and ConvNeXt, or nothing
does, it does not. Published recipes, with AdamW and the learning rate scaled to batches of 64 as they do it, linearly:

| weights | rate as published | for batches of 64 | layer-wise decay, over how many steps |
|---|---|---|---|
| MAE ViT-B (He et al. 2022, facebookresearch/mae, FINETUNE.md) | 0.0005 for 256 | 0.000125 | 0.65, 13 |
| BEiT-B (Bao et al. 2022, microsoft/unilm), masked images only | 0.004 for 1,024 | 0.00025 | 0.65, 13 |
| BEiT-B, then trained on ImageNet-22k | 0.00002 for 512 | 0.0000025 | 0.85, 13 |
| ConvNeXt-B (Liu et al. 2022, facebookresearch/ConvNeXt), ImageNet-22k | 0.00005 for 512 | 0.000006 | 0.8, 13 |
| Swin-B (Liu et al. 2021, microsoft/Swin-Transformer), ImageNet-22k | 0.00002 for 1,024 | 0.000001 | none |

The smallest are for weights that have seen nearly the same classes, and for 30 epochs of ImageNet; those for new tasks
are near 0.0001. It was not measured here, where only networks with BatchNorm have weights.
"""

from collections import Counter
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from graftline.backbones.layers import body_groups, head_parameters
from graftline.backbones.zoo.stages import StagesHead

BATCHNORM_RATE = 0.001  # AdamW's own default; measured on EfficientNet-Lite (docs/freezing.md)
OTHER_RATE = 0.0001
NEW_HEAD = 10.0  # times that rate: at 0.0001, a hundred steps of AdamW move a weight by 0.005 at most
STEM_SHARE = 0.05  # of that rate: ConvNeXt's 0.8 over 13 steps, between what BEiT-B has with and without labels
# The head alone: it is new and has nothing to lose. Twice the rate ends at a higher log loss, half of it leaves the
# head of a hundred images unfinished (docs/freezing-measurements.md). One that reads all stages is given more features,
# of a variance of 1: a step of the same size, which is AdamW's for each weight, changes its logits by more.
HEAD_RATE, STAGES_RATE = 0.005, 0.002
LEAST_DECAY = 0.5  # of few groups (PoolFormer has one) none is to be left behind; published ones begin at 0.6


def whole_network_rate(network: nn.Module) -> float:
    """Return the learning rate of AdamW for training the whole of a pretrained timm network in batches of about 64.

    >>> import timm
    >>> whole_network_rate(timm.create_model("test_efficientnet")), whole_network_rate(timm.create_model("test_vit"))
    (0.001, 0.0001)
    """
    return BATCHNORM_RATE if batchnorm_share(network) >= 0.5 else OTHER_RATE


def head_rate(network: nn.Module) -> float:
    """Return the learning rate of AdamW for training the head of a timm network alone, in batches of 64.

    >>> from graftline.backbones.backbone import Backbone
    >>> [head_rate(Backbone("test_vit", head=head).build_on_meta()) for head in ("last", "stages")]
    [0.005, 0.002]
    """
    return STAGES_RATE if isinstance(network, StagesHead) else HEAD_RATE


def head_factor(network: nn.Module) -> float:
    """Return how many times that rate a new head is trained at: it has nothing to lose.

    >>> import timm
    >>> head_factor(timm.create_model("test_efficientnet")), head_factor(timm.create_model("test_vit"))
    (1.0, 10.0)
    """
    return 1.0 if batchnorm_share(network) >= 0.5 else NEW_HEAD


def layer_decay(network: nn.Module) -> float:
    """Return the factor on the learning rate from each layer group to the next one down that goes with that rate.

    The stem has ``STEM_SHARE`` of that rate, however many groups lie between them: a transformer's groups are its
    blocks, those of ConvNeXt its four stages. 1 where BatchNorm forgives what layer-wise decay is to prevent.

    >>> import timm
    >>> layer_decay(timm.create_model("test_efficientnet")), round(layer_decay(timm.create_model("test_convnext")), 2)
    (1.0, 0.55)
    """
    if batchnorm_share(network) >= 0.5:
        return 1.0
    return max(LEAST_DECAY, float(STEM_SHARE ** (1 / len(body_groups(network)))))


def batchnorm_share(network: nn.Module) -> float:
    """Return the share of a timm network's weights below the head that BatchNorm normalizes, 0 to 1.

    Each weight counts for the kind of normalization that is the most frequent in the smallest module around it that
    has any: in a residual block of its own, in a transformer's block.
    """
    votes: dict[str, Counter[bool]] = {}
    for name, module in network.named_modules():
        if _normalizes(module):
            for around in _around(name):
                votes.setdefault(around, Counter())[_is_batchnorm(module)] += 1
    head, counts = head_parameters(network), Counter[bool]()
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and name not in head:
            found = next((votes[around] for around in _around(name) if around in votes), Counter[bool]())
            counts[found[True] > found[False]] += parameter.numel()
    return counts[True] / max(1, counts.total())


def _around(name: str) -> list[str]:
    """Return the names of the modules that hold a module or parameter, the smallest first.

    >>> _around("blocks.0.conv")
    ['blocks.0', 'blocks', '']
    """
    words = name.split(".")[:-1]
    return [".".join(words[:length]) for length in range(len(words), -1, -1)]


def _normalizes(module: Any) -> bool:
    """Tell whether a module is a normalization layer, torch's or timm's, and not a block that has some."""
    if isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
        return True
    has_own = bool(module._parameters or module._buffers)
    return has_own and "norm" in type(module).__name__.lower()


def _is_batchnorm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) or "batchnorm" in type(module).__name__.lower()
