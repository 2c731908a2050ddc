"""Which layers each rule freezes, for how long it trains the rest, and what it refuses."""

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.backbones.layers import body_groups, head_parameters
from graftline.errors import UserError
from graftline.freezing.rules import (
    AllButHead,
    Auto,
    FirstStages,
    FreezeContext,
    FreezeTableRow,
    Gradual,
    Names,
    Nothing,
    Rule,
)
from pipeline.cli.hydra_conf import CONF

KNOWN = FreezeContext(100, 3, pretrained=True)
RANDOM = FreezeContext(100, 3, pretrained=False)
ROWS: list[FreezeTableRow] = [
    {"images_per_class": 0, "frozen": 1.0, "epochs": 30, "learning_rate": 0.01},
    {"images_per_class": 1000, "frozen": 0.5, "epochs": 12, "learning_rate": 0.001},
]


def make(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=3)


TINY = {name: make(name) for name in ("test_efficientnet", "test_resnet", "test_vit", "test_convnext")}
RESNETS = [make(name) for name in ("test_resnet", "resnet18", "resnet50", "resnet152")]  # of five groups each


@pytest.fixture(scope="module")
def shipped() -> Auto:
    """The rule of conf/freeze/auto.yaml."""
    with initialize_config_dir(str(CONF / "freeze"), version_base="1.3"):
        rule: Auto = instantiate(compose("auto"))
    return rule


def everything(network: Any) -> set[str]:
    return {name for name, _ in network.named_parameters()}


@settings(deadline=None)
@given(st.sampled_from(sorted(TINY)), st.floats(0, 1e6), st.floats(0, 1e6))
def test_auto_freezes_no_more_with_more_images(shipped: Auto, name: str, a: float, b: float) -> None:
    fewer, more = (shipped.plan(TINY[name], FreezeContext(images, 3, pretrained=True)) for images in sorted((a, b)))
    assert fewer.frozen_groups >= more.frozen_groups
    assert fewer.trainable <= more.trainable


@settings(deadline=None)
@given(st.floats(0, 1e6), st.integers(1, 10**9), st.integers(1, 10**9))
def test_auto_freezes_no_less_of_a_larger_network(shipped: Auto, images: float, a: int, b: int) -> None:
    smaller, larger = (shipped.row(images, parameters) for parameters in sorted((a, b)))
    assert smaller["frozen"] <= larger["frozen"]


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1e6))
def test_auto_freezes_no_fewer_layers_of_a_larger_resnet(shipped: Auto, images: float) -> None:
    frozen = [shipped.plan(network, FreezeContext(images, 3, pretrained=True)).frozen_groups for network in RESNETS]
    assert frozen == sorted(frozen)


@pytest.mark.parametrize(
    ("images", "frozen", "epochs", "learning_rate"),
    [(999, 6, 30, 0.01), (1000, 5, 12, 0.001), (5000, 3, 10, 0.0005), (20000, 0, 10, 0.0003)],
)
def test_autos_rows(shipped: Auto, images: int, frozen: int, epochs: int, learning_rate: float) -> None:
    plan = shipped.plan(TINY["test_efficientnet"], FreezeContext(images, 3, pretrained=True))
    assert (plan.frozen_groups, plan.epochs, plan.learning_rate) == (frozen, epochs, learning_rate)


def test_a_network_four_times_the_reference_needs_twice_the_images(shipped: Auto) -> None:
    assert shipped.row(1999, 16_000_000)["frozen"] == 1.0
    assert shipped.row(2000, 16_000_000)["frozen"] == 0.75
    assert shipped.row(999, 1000)["frozen"] == 1.0  # but a small one no fewer


def test_auto_trains_the_head_alone_on_the_embedded_sample(shipped: Auto) -> None:
    network = make("tf_efficientnet_lite0")
    plan = shipped.plan(network, FreezeContext(787, 3, pretrained=True))
    assert plan.only_head
    expected = "787 images per class, 3 classes, 3.4 M parameters: all 8 layer groups below the head frozen, 30 epochs"
    assert plan.decision == expected
    deeper = shipped.plan(network, FreezeContext(1500, 3, pretrained=True)).decision
    assert deeper.endswith("parameters: stem to blocks.4 (6 of 8 layer groups) frozen, 12 epochs")


def test_auto_freezes_no_random_weights_and_says_so(shipped: Auto) -> None:
    network = TINY["test_resnet"]
    plan = shipped.plan(network, RANDOM)
    assert plan.trainable == everything(network)
    assert plan.decision == "the weights are random, there is nothing to keep: nothing frozen, 60 epochs"


@pytest.mark.parametrize("rule", [AllButHead(), FirstStages(number=1), Names(["blocks.5.*"]), Gradual()])
def test_the_other_rules_refuse_to_freeze_random_weights(rule: Rule) -> None:
    network = TINY["test_vit"]
    with pytest.raises(UserError, match="freeze=none or freeze=auto"):
        rule.phases(network, RANDOM)
    assert rule.phases(network, KNOWN)


@pytest.mark.parametrize("rule", [Nothing(), FirstStages(number=0), FirstStages(fraction=0.0)])
def test_rules_that_freeze_nothing_take_random_weights(rule: Rule) -> None:
    network = TINY["test_resnet"]
    assert rule.plan(network, RANDOM).trainable == everything(network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], "must start at"),
        (lambda rows: rows[1:], "must start at"),
        (lambda rows: [rows[0], rows[0]], "ascend"),
        (lambda rows: [rows[0], {**rows[1], "frozen": 1.1}], "shares between"),
        (lambda rows: [{**rows[0], "frozen": 0.1}, rows[1]], "shares between"),
        (lambda rows: [rows[0], {**rows[1], "epochs": 0}], "epochs is 0"),
        (lambda rows: [rows[0], {**rows[1], "learning_rate": float("nan")}], "rate is nan"),
    ],
)
def test_auto_refuses_a_table_that_makes_no_sense(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Auto(change(ROWS))


@pytest.mark.parametrize("name", sorted(TINY))
def test_first_stages_freezes_so_many_groups_from_the_input(name: str) -> None:
    network, groups = TINY[name], body_groups(TINY[name])
    for number in range(len(groups) + 1):
        plan = FirstStages(number=number).plan(network, KNOWN)
        assert everything(network) - plan.trainable == {name for group in groups[:number] for name in group}
        assert plan == FirstStages(fraction=number / len(groups)).plan(network, KNOWN)
        assert plan.only_head == (number == len(groups))


def test_first_stages_says_how_many_there_are() -> None:
    with pytest.raises(UserError, match=r"has 5 layer groups below the head: stem, layer1, layer2, layer3, layer4\."):
        FirstStages(number=9).plan(TINY["test_resnet"], KNOWN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either freeze.number"),
        ({"number": 1, "fraction": 0.5}, "either freeze.number"),
        ({"number": -1}, "at least 0"),
        ({"fraction": 1.5}, "at most 1"),
        ({"number": 1, "epochs": 0}, "epochs is 0"),
        ({"number": 1, "learning_rate": 0.0}, "above 0"),
    ],
)
def test_first_stages_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FirstStages(**arguments)


def test_names_freezes_what_matches_and_no_head() -> None:
    network = TINY["test_efficientnet"]
    plan = Names(["conv_stem.*", "bn1.*", "blocks.0.*", "blocks.3.*"]).plan(network, KNOWN)
    beginnings = ("conv_stem.", "bn1.", "blocks.0.", "blocks.3.")
    assert plan.trainable == {name for name in everything(network) if not name.startswith(beginnings)}
    assert plan.frozen_groups == 2  # blocks.3 lies above what is trained
    assert not plan.only_head
    whole = Names(["*"]).plan(network, KNOWN)
    assert whole.trainable == head_parameters(network)
    assert whole.only_head


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block.0.*", r"block\.0\.\* matches no parameter below the head.* Do you mean .*blocks\.0\.\*"),
        ("conv_stem", r"Do you mean .*conv_stem\.\*"),
        ("classifier.*", "below the head"),
        ("Xyz*", r"They are called conv_stem\.weight to bn2\.bias"),
    ],
)
def test_names_knows_a_pattern_that_matches_nothing(pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Names(["blocks.0.*", pattern]).plan(TINY["test_efficientnet"], KNOWN)


def test_names_needs_names() -> None:
    with pytest.raises(UserError, match="names nothing"):
        Names([])


def test_gradual_goes_from_the_head_down() -> None:
    network = TINY["test_efficientnet"]  # six groups
    plans = Gradual(head_epochs=10, step_epochs=5, step_groups=2, until=0.2).phases(network, KNOWN)
    assert [plan.frozen_groups for plan in plans] == [6, 4, 2, 1]
    assert [plan.epochs for plan in plans] == [10, 5, 5, 10]
    assert [plan.learning_rate for plan in plans] == [0.01, 0.001, 0.001, 0.001]
    assert plans[1].decision == "phase 2 of 4: stem to blocks.2 (4 of 6 layer groups) frozen, 5 epochs"


@given(
    st.sampled_from(sorted(TINY)), st.integers(1, 99), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9),
    st.floats(0, 1),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_a_timetable_has_just_the_epochs_given(
    name: str, epochs: int, head_epochs: int, step_epochs: int, step_groups: int, until: float
) -> None:
    rule = Gradual(head_epochs, step_epochs, step_groups, until)
    plans = rule.phases(TINY[name], FreezeContext(100, 3, pretrained=True, epochs=epochs))
    assert sum(plan.epochs for plan in plans) == epochs
    assert all(plan.epochs >= 1 for plan in plans)
    assert plans[0].only_head
    assert all(earlier.trainable < later.trainable for earlier, later in pairwise(plans))
    assert plans[-1] == rule.plan(TINY[name], FreezeContext(100, 3, pretrained=True, epochs=epochs))


@pytest.mark.parametrize("rule", [AllButHead(), Nothing(), FirstStages(number=1), Names(["*.weight"]), Auto(ROWS)])
def test_the_users_number_of_epochs_wins(rule: Rule) -> None:
    network, own = TINY["test_convnext"], FreezeContext(100, 3, pretrained=True, epochs=7)
    (plan,) = rule.phases(network, own)
    assert plan.epochs == 7
    assert plan.decision.endswith(", 7 epochs")
    assert plan.trainable == rule.plan(network, KNOWN).trainable
    if isinstance(rule, Auto):
        assert rule.plan(network, FreezeContext(100, 3, pretrained=False, epochs=7)).epochs == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"step_groups": 0}, "step_groups is 0"), ({"until": 2.0}, "until is 2"), ({"epochs": 0}, "epochs is 0")],
)
def test_gradual_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Gradual(**arguments)
