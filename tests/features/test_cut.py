"""Cutting at every boundary: the parts together are the network, in evaluation and in training."""

import contextlib
from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
from small_alexnet import shrink_alexnet
from torch import Tensor, nn

import graftline.backbones.zoo  # noqa: F401 - registers lenet5 and its kin with timm
from graftline.backbones.layers import body_groups, head_parameters
from graftline.features.cut import UncuttableError, _cut_by_head, cut
from graftline.freezing.plan import FreezePlan, plan_from_depth, set_frozen_eval

# architecture: side of the smallest image worth cutting with, and options that keep the big ones small
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "lenet5": (32, {}),
    "alexnet": (67, {}),
    "nin": (64, {}),
    "googlenet": (64, {}),
    "googlenet_bn": (64, {}),
    "vgg11": (32, {"mlp_ratio": 0.05}),
    "resnet18": (64, {}),
    "resnet50": (64, {"layers": (2, 1, 1, 1)}),
    "mobilenetv1_100": (64, {}),
    "mobilenetv2_100": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "tf_efficientnet_lite0": (64, {}),
    "efficientnet_b0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "regnety_002": (64, {}),
    "densenet121": (64, {"block_config": (2, 3, 2, 2)}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "vit_small_patch14_dinov2": (56, {"img_size": 56, "depth": 3}),
    "deit3_small_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "swin_tiny_patch4_window7_224": (112, {"img_size": 112, "drop_path_rate": 0.0, "depths": (2, 2, 2, 2)}),
    "maxvit_pico_rw_256": (64, {"img_size": 64}),
}
SISTERS = {  # of blocks of others: the first boundary, one in the middle and the last
    "googlenet_bn",
    "mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "convnextv2_atto",
    "vit_small_patch14_dinov2",
    "deit3_small_patch16_224",
}


def build(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=3, **{**NETWORKS.get(name, (0, {}))[1], **options})


def freeze(network: nn.Module, groups: int) -> FreezePlan:
    plan = plan_from_depth(network, groups, "a test")
    network.train()
    plan.apply(network)
    return plan


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def first(outputs: Any) -> Tensor:
    """Return the logits of a network that may have auxiliary heads."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parts_are_the_network_at_every_boundary(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_alexnet(monkeypatch)
    network, size = build(name), NETWORKS[name][0]
    images = torch.randn(3, network.pretrained_cfg["input_size"][0], size, size)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # the same lots cannot be drawn twice
    highest = len(body_groups(network))
    for boundary in (1, (highest + 1) // 2, highest) if name in SISTERS else range(1, highest + 1):
        plan = freeze(network, boundary)
        parts = cut(network, plan.trainable, (size, size), images.shape[1])
        with torch.no_grad():  # three images: not the number that the graph was traced and checked with
            activations = parts.trunk.eval()(images)
            assert activations.shape == (3, parts.width)
            actual, expected = first(parts.tail.eval()(activations)), network.eval()(images)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        trained = {n for n, p in parts.tail.named_parameters() if p.requires_grad}
        assert trained == {n for n in plan.trainable if not n.startswith("side")} or trained == plan.trainable

        network.train()
        set_frozen_eval(network)
        parts.trunk.eval()
        parts.tail.train()
        set_frozen_eval(parts.tail)
        whole = gradients(network, first(network(images)).square().sum())
        tail = gradients(parts.tail, first(parts.tail(activations)).square().sum())
        assert set(tail) == set(whole)
        for parameter, gradient in whole.items():
            assert (tail[parameter] - gradient).abs().max() <= 1e-4 * gradient.abs().max().clamp_min(1), parameter


def test_the_tail_holds_the_networks_own_modules_under_their_names() -> None:
    network = build("test_efficientnet")
    plan = freeze(network, 4)
    parts = cut(network, plan.trainable, (64, 64))
    own = dict(network.named_parameters())
    tail = dict(parts.tail.named_parameters())
    assert set(tail) >= plan.trainable
    assert all(tail[name] is own[name] for name in tail)
    assert network.training, "cutting leaves the mode as it was"


def test_below_the_head_what_crosses_is_pooled() -> None:
    network = build("test_efficientnet")
    plan = freeze(network, len(body_groups(network)))
    assert cut(network, plan.trainable, (64, 64)).shapes == ((network.head_hidden_size,),)


def test_several_tensors_may_cross() -> None:
    """TrainingResult: one of the three branches of a block; the other two come out of the trunk."""
    network = build("googlenet")
    trained = {n for n, _ in network.named_parameters() if n.startswith("inception5b.conv1")}
    names = trained | head_parameters(network)
    assert trained
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    network.train()
    set_frozen_eval(network)
    parts = cut(network, names, (64, 64))
    assert len(parts.shapes) > 1
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        actual = first(parts.tail.eval()(parts.trunk.eval()(images)))
        torch.testing.assert_close(actual, network.eval()(images), rtol=1e-5, atol=1e-5)


def test_dropout_stays_in_the_tail_and_obeys_its_mode() -> None:
    network = build("test_efficientnet", drop_rate=0.5)
    plan = freeze(network, len(body_groups(network)))
    parts = cut(network, plan.trainable, (64, 64))
    activations = parts.trunk.eval()(torch.randn(4, 3, 64, 64))
    parts.tail.train()
    assert not torch.equal(parts.tail(activations), parts.tail(activations))
    parts.tail.eval()
    assert torch.equal(parts.tail(activations), parts.tail(activations))


def test_nothing_frozen_is_nothing_to_cut() -> None:
    network = build("test_efficientnet")
    with pytest.raises(UncuttableError, match="no layer comes before"):
        cut(network, freeze(network, 0).trainable, (64, 64))


class Moody(nn.Module):
    """What it does depends on what it sees, so that it cannot be traced; otherwise as timm's networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0.5
        self.stem, self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm's signature
        return {"stem": "^stem", "blocks": "^body"}

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(self.stem(images.flatten(1)))
        return -features if features.sum() > 0 else features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        features = nn.functional.dropout(features, self.drop_rate, self.training)
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_what_cannot_be_traced_is_cut_by_timms_own_division_below_the_head_only() -> None:
    network = Moody()
    parts = cut(network, {"head.weight", "head.bias"}, (1, 4), 1)
    assert "cannot be traced" in parts.note
    images = torch.randn(3, 1, 1, 4)
    with torch.inference_mode():
        torch.testing.assert_close(parts.tail.eval()(parts.trunk.eval()(images)), network.eval()(images))
    assert {n: id(p) for n, p in parts.tail.named_parameters()} == {
        n: id(p) for n, p in network.named_parameters() if n.startswith("head.")
    }
    with pytest.raises(UncuttableError, match="cannot be traced"):
        cut(network, {"head.weight", "head.bias", "body.weight", "body.bias"}, (1, 4), 1)


def test_a_trunk_that_changes_what_it_has_given_is_found_out() -> None:
    class Careless(nn.Module):
        """Adds to the very tensor that crosses the boundary."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = [0]
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: Tensor) -> Tensor:
            self.calls[0] += 1
            return self.head(self.body(images.flatten(1)) * self.calls[0])  # type: ignore[no-any-return]

    with pytest.raises(UncuttableError, match="something else than the whole"):
        cut(Careless(), {"head.weight", "head.bias"}, (1, 4), 1)


def test_a_network_that_cannot_be_traced_is_left_as_it_was() -> None:
    """ConViT notes at its first use where its patches lie: nothing that was noted while it was traced may stay."""
    network, other = build("convit_tiny", img_size=32), build("convit_tiny", img_size=32)
    with contextlib.suppress(UncuttableError):  # at its first use
        cut(network, freeze(network, 2).trainable, (32, 32), 3)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.eval()(images), other.eval()(images))


@pytest.mark.extras
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is missing: make test-extras installs it")
@pytest.mark.parametrize(
    ("network", "depth"),
    [("test_efficientnet", 1.0), ("test_efficientnet", 0.5), ("googlenet", 0.5), ("stages", 1.0)],
)
def test_a_trunk_that_ray_has_sent_gives_the_same(network: str, depth: float) -> None:
    """Each has a class that is made with it: an fx.GraphModule, or a network whose head reads all stages."""
    from ray import cloudpickle

    images = torch.randn(3, 3, 64, 64)
    if network == "stages":
        parts = _cut_by_head(build(network, body="test_efficientnet"), images, "as if it could not be traced")
    else:
        made = build(network)
        plan = freeze(made, int(depth * len(body_groups(made))))
        parts = cut(made, plan.trainable, (64, 64))
    sent = cloudpickle.loads(cloudpickle.dumps(parts.trunk.eval()))
    assert not any(module.training for module in sent.modules())
    with torch.inference_mode():
        torch.testing.assert_close(sent(images), parts.trunk(images), rtol=0, atol=0)
