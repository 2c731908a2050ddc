"""The head that reads all stages: what it reads, where it is cut off, and whose weights it takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from graftline.backbones.backbone import Backbone
from graftline.backbones.layers import body_groups, group_names, head_parameters
from graftline.backbones.zoo.stages import StagesHead
from graftline.bundle.save import save_bundle
from graftline.errors import UserError
from graftline.features.cut import UncuttableError, cut
from graftline.freezing.plan import plan_from_depth

CLASSES = ["a", "b", "c"]
SIDE = 64  # px


def build(name: str, **arguments: Any) -> Any:
    """Return a random network in eval mode, the same at each call."""
    torch.manual_seed(0)
    return Backbone(name, weights="none", head="stages", image_size=SIDE, **arguments).build(CLASSES).network.eval()


def plain(network: nn.Module, name: str, **arguments: Any) -> Any:
    """Return timm's own network with the same weights and no classifier."""
    body = timm.create_model(name, num_classes=0, **arguments).eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("stages_head.")}
    body.load_state_dict(state)  # strictly: below the head, tensors have the names that they have in timm
    return body


def images() -> Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def run_with_hooks(network: nn.Module, modules: list[str]) -> tuple[Tensor, list[Tensor]]:
    """Return what a network and some of its modules put out for the images."""
    found: list[Tensor] = []
    for name in modules:
        network.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: found.append(output))
    return network(images()), found


def expected_features(last: Tensor, maps: list[Tensor]) -> Tensor:
    """Return the features of last ones (B, D) and of maps, each (B, D, number of places)."""
    parts = [last]
    for one in maps:
        parts += [one.mean(dim=2), one.max(dim=2).values]
    centered = [part - part.mean(dim=1, keepdim=True) for part in parts]
    return torch.cat([part / (part.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() for part in centered], dim=1)


@torch.no_grad()
def test_averages_and_maxima_of_all_stages_stand_beside_the_last_features() -> None:
    network = build("test_resnet")
    body = plain(network, "test_resnet")
    last, maps = run_with_hooks(body, ["act1", "layer1", "layer2", "layer3", "layer4"])
    expected = expected_features(last, [one.flatten(2) for one in maps])
    torch.testing.assert_close(network.forward_features(images()), expected)
    head = network.get_classifier()
    torch.testing.assert_close(network(images()), expected @ head.weight.T + head.bias)
    assert network.num_features == expected.shape[1] == last.shape[1] + 2 * sum(one.shape[1] for one in maps)


@torch.no_grad()
def test_of_a_transformer_five_blocks_are_read_without_the_class_token() -> None:
    network = build("vit_tiny_patch16_224", options={"depth": 7})
    body = plain(network, "vit_tiny_patch16_224", img_size=SIDE, depth=7)
    last, tokens = run_with_hooks(body, [f"blocks.{number}" for number in (0, 1, 3, 4, 6)])
    expected = expected_features(last, [one[:, 1:].transpose(1, 2) for one in tokens])
    torch.testing.assert_close(network.forward_features(images()), expected)


def test_layer_groups_are_those_of_the_body() -> None:
    for name in ("test_efficientnet", "test_resnet", "test_vit", "test_convnext"):
        with torch.device("meta"):
            network, body = build(name), timm.create_model(name)
        assert body_groups(network) == body_groups(body)
        assert head_parameters(network) == {"stages_head.weight", "stages_head.bias"}


@pytest.mark.parametrize(
    ("name", "options"),
    [("test_efficientnet", {}), ("test_resnet", {}), ("vit_tiny_patch16_224", {"depth": 3})],
)
def test_it_is_cut_where_the_plan_says(name: str, options: dict[str, int]) -> None:
    network = build(name, options=options, drop_rate=0.5)
    highest = len(group_names(network))
    for boundary in (1, highest // 2, highest):
        plan = plan_from_depth(network, boundary, "a test")
        plan.apply(network)
        parts = cut(network, plan.trainable, (SIDE, SIDE))
        assert not parts.note
        with torch.no_grad():
            actual = parts.tail.eval()(parts.trunk.eval()(images()))
            torch.testing.assert_close(actual, network.eval()(images()), rtol=1e-5, atol=1e-5)
    assert parts.shapes == ((network.num_features,),), "what crosses below the head is what it reads"
    activations = parts.trunk(images())
    assert not torch.equal(parts.tail.train()(activations), parts.tail(activations)), "dropout stands before the head"
    network.train()
    assert torch.equal(parts.trunk.train()(images()), parts.trunk(images())), "and nowhere else"


def test_what_cannot_be_traced_is_cut_below_the_head() -> None:
    network = build("test_vit", drop_rate=0.5)  # takes any size, and looks at it
    plan = plan_from_depth(network, len(group_names(network)), "a test")
    plan.apply(network)
    parts = cut(network, plan.trainable, (SIDE, SIDE))
    assert "cannot be traced" in parts.note
    with torch.no_grad():
        activations = parts.trunk.eval()(images())
        torch.testing.assert_close(parts.tail.eval()(activations), network.eval()(images()))
        assert not torch.equal(parts.tail.train()(activations), parts.tail(activations))
    with pytest.raises(UncuttableError):
        cut(network, plan_from_depth(network, 2, "a test").trainable, (SIDE, SIDE))


def test_it_takes_the_weights_of_its_body(tmp_path: Path) -> None:
    body = timm.create_model("test_resnet", num_classes=5)
    save_file(body.state_dict(), tmp_path / "weights.safetensors")
    backbone = Backbone("test_resnet", file=str(tmp_path / "weights.safetensors"), head="stages")
    network = backbone.build(CLASSES).network
    state, own = network.state_dict(), body.state_dict()
    assert set(state) - set(own) == {"stages_head.weight", "stages_head.bias"}
    assert all(torch.equal(state[key], own[key]) for key in set(state) & set(own))
    assert network.num_classes == 3
    with pytest.raises(UserError, match=r"weights.safetensors does not fit the backbone 'test_efficientnet': \d+ "):
        replace(backbone, name="test_efficientnet").build(CLASSES)


def test_a_bundle_is_built_again_and_gives_its_weights(tmp_path: Path) -> None:
    backbone = Backbone("test_efficientnet", weights="none", head="stages", image_size=SIDE, channels=1)
    graft = backbone.build(CLASSES)
    assert graft.arguments == {"body": "test_efficientnet", "in_chans": 1}
    bundle = save_bundle(  # compares both files' outputs with the network's
        tmp_path / "bundle",
        graft.network,
        timm_name=backbone.network_name,
        class_names=CLASSES,
        preprocessing=graft.preprocessing,
        card={},
    )
    config = json.loads((bundle / "config.json").read_text())
    assert config["architecture"] == "stages"
    assert config["model_args"]["body"] == "test_efficientnet"
    file = str(bundle / "model.safetensors")
    again = replace(backbone, weights="file", file=file).build(CLASSES)
    assert "with their own head" in again.weights.head
    assert all(torch.equal(one, graft.network.state_dict()[key]) for key, one in again.network.state_dict().items())
    assert again.preprocessing == graft.preprocessing
    with pytest.raises(UserError, match=r"reads all stages: give Backbone\.head='stages'"):
        Backbone("test_efficientnet", file=file, channels=1).build(CLASSES)
    with pytest.raises(UserError, match="does not fit the backbone 'test_resnet'"):
        Backbone("test_resnet", file=file, channels=1, head="stages").build(CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lenet5"}, "'lenet5' does not give the maps of its stages"),
        ({"name": "stages"}, "no backbone 'stages'"),
        ({"name": "test_resnet", "head": "first"}, "Backbone.head is 'first': use one of last, stages"),
        ({"name": "test_vit", "image_size": 100}, "its patches of 16 px leave 4 px over"),
        ({"name": "test_resnet", "options": {"depths": 3}}, "'test_resnet' has no option depths"),
    ],
)
def test_what_cannot_be_is_refused_before_any_image(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Backbone(**{"head": "stages", "weights": "none", **arguments}).check()


def test_a_network_that_cannot_run_with_it_is_refused_before_any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_network: StagesHead, _images: Tensor) -> Tensor:
        raise RuntimeError("maps without places")

    monkeypatch.setattr(StagesHead, "forward_features", fail)
    with pytest.raises(UserError, match=r"cannot be used with head=stages \(maps without places\): leave that out"):
        Backbone("test_resnet", head="stages", weights="none").check()
    Backbone("test_resnet", weights="none").check()
