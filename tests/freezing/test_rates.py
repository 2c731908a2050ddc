"""How fast a whole network is fine-tuned goes by what normalizes its weights."""

from typing import Any

import pytest
import timm
import torch

import graftline.backbones.zoo  # noqa: F401 - registers our own networks with timm
from graftline.backbones.layers import body_groups
from graftline.freezing.depth import deep_plan
from graftline.freezing.rates import batchnorm_share, layer_decay, whole_network_rate


def build(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "tf_efficientnet_lite0",
        "mobilenetv3_large_100",
        "regnety_008",
        "vgg16_bn",
        "levit_128",  # a transformer with BatchNorm
        "fastvit_t8",
        "mobilenetv4_hybrid_medium",  # attention between convolutions
    ],
)
def test_batchnorm_bears_a_high_rate(name: str) -> None:
    network = build(name)
    assert batchnorm_share(network) > 0.75
    assert (whole_network_rate(network), layer_decay(network)) == (0.001, 1.0)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224",
        "vit_small_patch14_dinov2",
        "swin_tiny_patch4_window7_224",
        "convnext_tiny",
        "convnextv2_nano",
        "resnetv2_50x1_bit",  # GroupNorm
        "resnet50_gn",
        "dm_nfnet_f0",  # no normalization
        "vgg16",
        "alexnet",
        "poolformer_s12",
    ],
)
def test_without_batchnorm_it_is_a_tenth_and_falls_towards_the_input(name: str) -> None:
    network = build(name)
    assert batchnorm_share(network) == 0
    assert whole_network_rate(network) == 0.0001
    decay = layer_decay(network)
    assert 0.5 <= decay < 0.9
    assert decay ** len(body_groups(network)) == pytest.approx(0.05) or decay == 0.5


@pytest.mark.parametrize(("name", "low", "high"), [("coatnet_0_rw_224", 0.01, 0.1), ("efficientformer_l1", 0.5, 0.9)])
def test_where_both_are_mixed_the_weights_are_counted(name: str, low: float, high: float) -> None:
    """CoAtNet's weights lie in its transformer stages; EfficientFormer's in its convolutions with BatchNorm."""
    network = build(name)
    assert low < batchnorm_share(network) < high
    assert whole_network_rate(network) == (0.001 if low >= 0.5 else 0.0001)


@pytest.mark.parametrize(
    ("name", "head"), [("resnet50", 0.001), ("convnext_tiny", 0.001), ("vit_small_patch16_224", 0.001)]
)
def test_a_new_head_learns_as_fast_whatever_lies_below(name: str, head: float) -> None:
    plan = deep_plan(build(name), 0, "", epochs=3)
    assert plan.learning_rate * plan.head_factor == pytest.approx(head)
