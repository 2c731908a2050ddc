"""Layer-wise learning rates: what the optimizer's own groups hold while Lightning trains, whole network or tail."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor, nn

from graftline.backbones.weights import Weights
from graftline.data.loaders import Batch, DrawBatches, DrawSampler
from graftline.errors import UserError
from graftline.features.cut import cut
from graftline.freezing.plan import plan_from_depth
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit import fit
from graftline.training.fit_directory import FitDirectory
from graftline.training.groups import Layers, learning_rates, make_optimizer
from graftline.training.module import GraftModule
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant, warmup_cosine
from graftline.training.setup import TrainingSetup

CLASSES, SIZE, IMAGES, BATCH, EPOCHS = 3, 32, 12, 4, 2
BASE, DECAY, STEPS = 0.01, 0.5, EPOCHS * IMAGES // BATCH
DISTANCES = {"head": 0, "blocks.4": 1, "blocks.3": 2, "blocks.2": 3, "blocks.1": 4, "blocks.0": 5, "stem": 6}


class Loader:
    """Ready batches of noise, in order."""

    def __init__(self, inputs: Tensor) -> None:
        self.batch_sampler = DrawBatches(DrawSampler(len(inputs), shuffle=False, seed=0), BATCH)
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs) // BATCH

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.arange(len(self._inputs)).reshape(-1, BATCH):
            yield {"image": self._inputs[index], "label": index % CLASSES, "weight": torch.ones(BATCH), "index": index}


class Rates(pl.Callback):
    """Notes the rates in the optimizer at each step, just before it is done."""

    def __init__(self) -> None:
        self.seen: list[dict[str, set[float]]] = []

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        _, _, optimizer = arguments
        groups = optimizer.param_groups
        self.seen.append({g["layer"]: {h["lr"] for h in groups if h["layer"] == g["layer"]} for g in groups})


def build(frozen_groups: int) -> Any:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", num_classes=CLASSES)
    plan_from_depth(network, frozen_groups, "for this test").apply(network)
    return network


def part(network: Any, inputs: str) -> tuple[nn.Module, Tensor]:
    """Return what is trained, the network or its tail, and what it is trained on."""
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    if inputs == "images":
        return network, images
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    parts = cut(network, trainable, (SIZE, SIZE))
    with torch.inference_mode():
        activations = parts.trunk(images)
    return parts.tail, activations.clone()


@pytest.mark.parametrize(("inputs", "frozen"), [("images", 0), ("images", 4), ("activations", 4), ("activations", 6)])
def test_each_layer_has_its_rate_at_every_step(inputs: str, frozen: int, tmp_path: Path) -> None:
    network = build(frozen)
    trained, data = part(network, inputs)
    module = GraftModule(
        trained,
        optimizer=functools.partial(torch.optim.AdamW, lr=BASE),
        schedule=functools.partial(warmup_cosine, warmup_fraction=0.34),
        weight_decay=0.05,
        layers=Layers.of(network),
        layer_decay=DECAY,
    )
    noted = Rates()
    started: list[Metrics] = []

    class Started(FitEvents):
        def on_start(self, learning_rates: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
            started.append(learning_rates)

    def make_trainer(*, callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
        return pl.Trainer(accelerator="cpu", devices=1, max_epochs=EPOCHS, callbacks=[*callbacks, noted], **arguments)

    fit(
        module,
        make_trainer,
        (Loader(data), Loader(data)),  # type: ignore[arg-type]  # stand for DataLoaders
        FitDirectory(tmp_path),
        events=Started(),
        show_progress=False,
    )
    distances = {name: distance for name, distance in DISTANCES.items() if distance <= 6 - frozen}
    factors = [0.5, 1.0, *(warmup_cosine(step, STEPS, warmup_fraction=0.34) for step in range(2, STEPS))]
    assert len(noted.seen) == len(factors) == STEPS == 6
    for seen, factor in zip(noted.seen, factors, strict=True):
        expected = {name: BASE * DECAY**distance * factor for name, distance in distances.items()}
        assert {name: sorted(values) for name, values in seen.items()} == {
            name: [pytest.approx(rate, rel=1e-9)] for name, rate in expected.items()
        }
    (first,) = started
    assert first == pytest.approx({f"lr/{name}": BASE * DECAY**distance / 2 for name, distance in distances.items()})


def test_rates_act_on_the_weights() -> None:
    """The first step of SGD moves each weight by rate times gradient."""
    network = build(0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    layers = Layers.of(network)
    make = functools.partial(torch.optim.SGD, lr=BASE)
    optimizer = make_optimizer(network, make, weight_decay=0.0, layers=layers, layer_decay=DECAY)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: constant(step, 1))
    network(torch.randn(BATCH, 3, SIZE, SIZE)).square().sum().backward()
    optimizer.step()
    for name, parameter in network.named_parameters():
        expected = before[name] - BASE * DECAY ** DISTANCES[layers.layer(name)] * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_every_trained_parameter_is_in_one_group_and_weight_decay_is_as_the_architecture_wants() -> None:
    network = timm.create_model("test_vit", num_classes=CLASSES)
    layers = Layers.of(network)
    assert "pos_embed" in layers.undecayed
    optimizer = make_optimizer(network, torch.optim.AdamW, weight_decay=0.05, layers=layers, layer_decay=0.9)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    expected = {
        name: 0.0 if parameter.ndim <= 1 or name in {"cls_token", "pos_embed", "reg_token"} else 0.05
        for name, parameter in network.named_parameters()
    }
    assert decays == expected


def test_a_tail_keeps_what_the_architecture_wants() -> None:
    """A tail knows neither ``no_weight_decay`` nor ``group_matcher``: both come with the layers of the whole."""
    network = timm.create_model("test_vit", num_classes=CLASSES)
    network.no_weight_decay = lambda: {"blocks.1.mlp.fc2.weight", "head.weight"}
    layers = Layers.of(network)
    tail = nn.Module()
    tail.blocks, tail.head = nn.ModuleDict({"1": network.blocks[1]}), network.head
    optimizer = make_optimizer(tail, torch.optim.AdamW, weight_decay=0.05, layers=layers, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in tail.named_parameters()}
    placed = {names[id(p)]: (g["layer"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert placed["head.weight"] == ("head", 0.0)
    assert placed["blocks.1.mlp.fc2.weight"] == ("blocks.1", 0.0)
    assert placed["blocks.1.mlp.fc1.weight"] == ("blocks.1", 0.05)


def test_without_decay_there_is_one_rate() -> None:
    network = build(0)
    optimizer = make_optimizer(
        network, torch.optim.AdamW, weight_decay=0.05, layers=Layers.of(network), layer_decay=1.0
    )
    assert [(group["layer"], group["lr"]) for group in optimizer.param_groups] == [("all", 0.001), ("all", 0.001)]


@pytest.mark.parametrize(
    "name", ["resnet50", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "poolformer_s12"]
)
def test_layers_have_names_of_their_own(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    layers = Layers.of(network)
    assert sorted(layers.distances.values()) == list(range(1, len(layers.distances) + 1))
    assert set(layers.names.values()) == set(layers.distances)
    assert "head" not in layers.distances
    rest = {name for name, _ in network.named_parameters()} - set(layers.names)
    assert len(rest) == 2, "the classifier's weight and bias"


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1, float("nan")])
def test_a_decay_that_makes_no_sense_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"Recipe\.layer_decay"):
        Recipe(layer_decay=decay)


def test_muon_takes_adamws_steps_on_the_head() -> None:
    """As its author has it, whether the head has rates of its own or not; the convolutions have orthogonal steps."""
    network = build(0)
    for layer_decay in (1.0, 0.5):
        optimizer = make_optimizer(
            network, timm.optim.Muon, weight_decay=0.05, layers=Layers.of(network), layer_decay=layer_decay
        )
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        ordinary = [group for group in optimizer.param_groups if group.get("use_fallback")]
        assert {names[id(p)] for group in ordinary for p in group["params"]} == {"classifier.weight", "classifier.bias"}


def test_corrected_weight_decay_goes_by_the_rate_of_each_layer() -> None:
    make = functools.partial(timm.optim.AdamWLegacy, lr=0.01, corrected_weight_decay=True)
    network = build(0)
    optimizer = make_optimizer(network, make, weight_decay=0.05, layers=Layers.of(network), layer_decay=0.5)
    assert all(group["max_lr_snapshot"] == group["lr"] for group in optimizer.param_groups)
    assert len({group["lr"] for group in optimizer.param_groups}) == 7


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_a_head_may_have_a_rate_of_its_own(decay: float) -> None:
    network = build(0)
    make = functools.partial(torch.optim.AdamW, lr=BASE)
    layers = Layers.of(network, head_factor=10.0)
    optimizer = make_optimizer(network, make, weight_decay=0.05, layers=layers, layer_decay=decay)
    rates = learning_rates(optimizer)
    assert rates.pop("lr/head") == pytest.approx(10 * BASE)
    assert list(rates.values()) == pytest.approx([BASE] if decay == 1 else [BASE * decay**n for n in range(1, 7)])
    heads = {id(parameter) for parameter in network.get_classifier().parameters()}
    own = [group for group in optimizer.param_groups if group["layer"] == "head"]
    assert {id(parameter) for group in own for parameter in group["params"]} == heads


def test_a_rate_of_the_users_own_is_the_heads_too(make_setup: Callable[..., TrainingSetup]) -> None:
    for optimizer, head in (
        (functools.partial(torch.optim.AdamW, lr=None), 0.01),  # type: ignore[arg-type]  # as the plan says
        (functools.partial(torch.optim.AdamW, lr=0.002), 0.002),
    ):
        setup = make_setup(optimizer=optimizer)
        plan = replace(plan_from_depth(setup.graft.network, 0, "", learning_rate=0.001), head_factor=10.0)
        module = setup.make_module(setup.graft.network, plan)
        module.trainer = pl.Trainer(accelerator="cpu", logger=False, max_steps=1)
        rates = learning_rates(module.configure_optimizers()["optimizer"])
        assert rates.get("lr/head", rates.get("lr/all")) == pytest.approx(head)


def test_random_layers_have_the_rate_of_the_head(make_setup: Callable[..., TrainingSetup]) -> None:
    setup = make_setup()
    network = timm.create_model("test_vit", num_classes=3)
    plan = plan_from_depth(network, 0, "")
    for weights, is_uniform in ((Weights("none"), True), (Weights("file", "here", "0" * 64), False)):
        graft = replace(setup.graft, network=network, weights=weights)
        recipe = replace(setup, graft=graft).for_plan(plan).recipe
        assert (recipe.layer_decay == 1) is is_uniform
