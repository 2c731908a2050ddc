"""Every network of the zoo is a full citizen of timm: one body for all, at the smallest size that each takes."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_alexnet import shrink_alexnet
from timm.models import get_pretrained_cfg, model_entrypoint
from timm.optim import param_groups_layer_decay
from torch import Tensor, fx, nn

from graftline.augment.preprocess import Preprocessing
from graftline.backbones import zoo
from graftline.backbones.backbone import Backbone
from graftline.backbones.layers import body_groups, head_parameters
from graftline.bundle.save import save_bundle
from graftline.errors import UserError

NAMES = [
    name
    for name in timm.list_models()
    if model_entrypoint(name).__module__.startswith(f"{zoo.__name__}.") and name != "stages"  # which needs a body
]
LIMITED = [name for name in NAMES if get_pretrained_cfg(name).min_input_size is not None]
ANY_SIZE = 64  # px, for networks that pad so much that they take every size
NUM_CLASSES = 7


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_alexnet(monkeypatch)


def smallest(name: str) -> tuple[int, int, int]:
    """Return C, H, W."""
    config = get_pretrained_cfg(name)
    size: tuple[int, int, int] = config.min_input_size or (config.input_size[0], ANY_SIZE, ANY_SIZE)
    return size


def build(name: str, **arguments: Any) -> Any:
    """Return a random network, the same at each call, for the smallest images that it takes."""
    if get_pretrained_cfg(name).fixed_input_size:
        arguments.setdefault("img_size", smallest(name)[1])
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=NUM_CLASSES, **arguments)


def build_shapes(name: str, **arguments: Any) -> Any:
    """Return a network in eval mode that has shapes only: big ones cost nothing."""
    with torch.device("meta"):
        return build(name, **arguments).eval()


@cache
def shared(name: str) -> Any:
    """Return a network in eval mode that no test changes."""
    return build(name).eval()


def images(name: str, channels: int | None = None, enlarge: int = 0) -> Tensor:
    """Return noise (2, C, H, W)."""
    num_channels, height, width = smallest(name)
    shape = (2, channels or num_channels, height + enlarge, width + enlarge)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run_with_hooks(network: Any, modules: Sequence[str], inputs: Tensor) -> list[Tensor]:
    """Return what the named modules put out, in the order in which they are run."""
    outputs: list[Tensor] = []
    handles = [
        network.get_submodule(module).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in modules
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return outputs


def test_the_zoo_is_found() -> None:
    assert {"lenet5", "alexnet", "alexnet_owt", "nin"} <= set(NAMES)
    assert {"lenet5", "alexnet", "alexnet_owt", "nin"} <= set(LIMITED)


@pytest.mark.parametrize("name", NAMES)
def test_the_pretrained_config_is_complete(name: str) -> None:
    config, network = get_pretrained_cfg(name), build_shapes(name)
    channels = config.input_size[0]
    assert len(config.mean) == len(config.std) == channels
    assert config.license
    assert network.get_submodule(config.first_conv).in_channels == channels
    main, *_ = (
        (config.classifier,) if isinstance(config.classifier, str) else config.classifier
    )  # then auxiliary heads'
    assert network.get_submodule(main) is network.get_classifier()
    assert (
        timm.create_model(name, features_only=False).num_classes == config.num_classes if config.url is None else True
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_head_of_the_features(name: str) -> None:
    network, inputs = shared(name), images(name)
    with torch.no_grad():
        logits, features = network(inputs), network.forward_features(inputs)
        below = network.forward_head(features, pre_logits=True)
        assert torch.equal(network.forward_head(features), logits)
        assert torch.equal(network.get_classifier()(below), logits)
    assert logits.shape == (2, NUM_CLASSES)
    assert not torch.equal(logits[0], logits[1])
    assert features.shape[1] == network.num_features
    assert below.shape == (2, network.head_hidden_size)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_gray_and_color(name: str, channels: int) -> None:
    network = build_shapes(name, in_chans=channels)
    assert network(images(name, channels).to("meta")).shape == (2, NUM_CLASSES)


@pytest.mark.parametrize("name", LIMITED)
def test_the_smallest_size_is_the_smallest(name: str) -> None:
    side = smallest(name)[1]
    Backbone(name, weights="none", image_size=side).check()
    with pytest.raises(UserError, match=f"'{name}' cannot take images of {side - 1} px"):
        Backbone(name, weights="none", image_size=side - 1).check()


@pytest.mark.parametrize("name", NAMES)
def test_the_classifier_is_replaced(name: str) -> None:
    network, inputs = build_shapes(name), images(name).to("meta")
    network.reset_classifier(3)
    assert network.num_classes == 3
    assert network(inputs).shape == (2, 3)
    assert network.get_classifier().weight.shape[0] == 3
    assert network.get_classifier().weight.device.type == "meta"  # where the others are
    network.reset_classifier(0)
    assert network(inputs).shape == (2, network.head_hidden_size)
    assert isinstance(network.get_classifier(), nn.Identity)


@pytest.mark.parametrize("name", NAMES)
def test_the_drop_rate_is_that_of_the_head(name: str) -> None:
    network, features = build(name, drop_rate=0.3).train(), torch.ones(1, shared(name).num_features, 1, 1)
    assert network.drop_rate == 0.3
    with torch.no_grad():
        assert not torch.equal(network.forward_head(features), network.forward_head(features))


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_each_parameter_once_from_the_input_upwards(name: str) -> None:
    network = build_shapes(name)
    groups, head = body_groups(network), head_parameters(network)
    everything = [*head, *(parameter for group in groups for parameter in group)]
    assert sorted(everything) == sorted(parameter for parameter, _ in network.named_parameters())
    assert len(groups) >= 4
    layers = [
        layer for layer, module in network.named_modules() if "weight" in dict(module.named_parameters(recurse=False))
    ]
    ran: list[str] = []
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda _module, _inputs, _output, layer=layer: ran.append(f"{layer}.weight")
        )
    network(images(name).to("meta"))
    order = [next((number for number, group in enumerate(groups) if layer in group), len(groups)) for layer in ran]
    assert order == sorted(order)
    assert set(order) == set(range(len(groups) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_lowers_the_rate_towards_the_input(name: str) -> None:
    network = build_shapes(name)
    groups = param_groups_layer_decay(network, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(scales) == len(list(network.parameters()))
    config = network.pretrained_cfg
    assert all(scales[id(parameter)] == 1 for parameter in network.get_classifier().parameters())
    assert scales[id(network.get_submodule(config["first_conv"]).weight)] == min(scales.values()) < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_feature_maps_are_those_that_feature_info_names(name: str) -> None:
    network, inputs = shared(name), images(name)
    info = network.feature_info
    maps = run_with_hooks(network, [stage["module"] for stage in info], inputs)
    assert [found.shape[1] for found in maps] == [stage["num_chs"] for stage in info]
    extractor = build(name, features_only=True).eval()
    assert extractor.load_state_dict(network.state_dict(), strict=False).missing_keys == []
    with torch.no_grad():
        extracted = extractor(inputs)
    assert len(extracted) == len(maps)
    assert all(torch.equal(one, other) for one, other in zip(extracted, maps, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_reductions_are_the_strides_of_the_maps(name: str) -> None:
    for stage in build_shapes(name).feature_info:
        sizes = []
        for enlarge in (0, stage["reduction"]):
            arguments = {"img_size": smallest(name)[1] + enlarge} if get_pretrained_cfg(name).fixed_input_size else {}
            network = build_shapes(name, **arguments)
            (found,) = run_with_hooks(network, [stage["module"]], images(name, enlarge=enlarge).to("meta"))
            sizes.append(found.shape[-1])
        assert sizes[1] == sizes[0] + 1, stage


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_traced(name: str) -> None:
    network, inputs = shared(name), images(name)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(network)(inputs), network(inputs))


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_parameter(name: str) -> None:
    network = build(name)
    outputs = network.train()(torch.cat([images(name)] * 2))
    loss = torch.stack(outputs if isinstance(outputs, tuple) else (outputs,)).square().sum()  # auxiliary heads too
    loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
    assert [
        key for key, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_it_is_the_same_network_in_timm_and_in_onnx(name: str, tmp_path: Path) -> None:
    network, (channels, *size) = shared(name), smallest(name)
    mean = (0.5,) * channels
    bundle = save_bundle(  # compares both files' outputs with the network's
        tmp_path / "bundle",
        network,
        timm_name=name,
        class_names=[f"class {number}" for number in range(NUM_CLASSES)],
        preprocessing=Preprocessing(image_size=(size[0], size[1]), mean=mean, std=mean, channels=channels),
        card={},
    )
    reloaded = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    inputs = images(name)
    with torch.no_grad():
        assert torch.equal(reloaded(inputs), network(inputs))
