"""Which layers each rule freezes, for how long it trains the rest, and what it refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftline.backbones.backbone import Backbone
from graftline.backbones.layers import body_groups, head_parameters
from graftline.errors import UserError
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule
from graftline.freezing.rules import AllAfterHead, AllButHead, FirstStages, Gradual, Names, Nothing


def make(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=3)


TINY = {name: make(name) for name in ("test_efficientnet", "test_resnet", "test_vit", "test_convnext")}


def decide(
    rule: FreezeRule, network: Any, images: int = 100, *, pretrained: bool = True, epochs: int | None = None
) -> FreezeDecision:
    return rule.decide(FreezeContext(network, images, pretrained, epochs))


def only_plan(rule: FreezeRule, network: Any, images: int = 100, **changes: Any) -> FreezePlan:
    """Return the plan of a rule whose training has one phase."""
    (plan,) = decide(rule, network, images, **changes).plans
    return plan


def everything(network: Any) -> set[str]:
    return {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(
    ("images", "epochs"), [(1, 30), (300, 30), (1_000, 10), (1_400, 8), (5_000, 3), (1_000_000, 3)]
)
def test_the_more_images_the_fewer_epochs(images: int, epochs: int) -> None:
    for rule in (Nothing(), FirstStages(number=1), Names(["conv_stem.*"])):
        assert only_plan(rule, TINY["test_efficientnet"], images).epochs == epochs


def test_random_weights_are_trained_for_longer() -> None:
    plan = only_plan(Nothing(), TINY["test_resnet"], pretrained=False)
    assert (plan.epochs, plan.learning_rate) == (60, 0.001)


@pytest.mark.parametrize("rule", [AllButHead(), FirstStages(number=1), Names(["blocks.5.*"]), Gradual()])
def test_the_other_rules_refuse_to_freeze_random_weights(rule: FreezeRule) -> None:
    network = TINY["test_vit"]
    with pytest.raises(UserError, match=r"Nothing\(\)"):
        decide(rule, network, pretrained=False)
    assert decide(rule, network).plans


@pytest.mark.parametrize("rule", [Nothing(), FirstStages(number=0), FirstStages(fraction=0.0)])
def test_rules_that_freeze_nothing_take_random_weights(rule: FreezeRule) -> None:
    network = TINY["test_resnet"]
    assert only_plan(rule, network, pretrained=False).trainable == everything(network)


@pytest.mark.parametrize("name", sorted(TINY))
def test_first_stages_freezes_so_many_groups_from_the_input(name: str) -> None:
    network, groups = TINY[name], body_groups(TINY[name])
    for number in range(len(groups) + 1):
        plan = only_plan(FirstStages(number=number), network)
        assert everything(network) - plan.trainable == {name for group in groups[:number] for name in group}
        assert plan == only_plan(FirstStages(fraction=number / len(groups)), network)
        assert plan.only_head == (number == len(groups))


def test_first_stages_says_how_many_there_are() -> None:
    with pytest.raises(UserError, match=r"has 5 layer groups below the head: stem, layer1, layer2, layer3, layer4\."):
        decide(FirstStages(number=9), TINY["test_resnet"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either FirstStages.number"),
        ({"number": 1, "fraction": 0.5}, "either FirstStages.number"),
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
    plan = only_plan(Names(["conv_stem.*", "bn1.*", "blocks.0.*", "blocks.3.*"]), network)
    beginnings = ("conv_stem.", "bn1.", "blocks.0.", "blocks.3.")
    assert plan.trainable == {name for name in everything(network) if not name.startswith(beginnings)}
    assert plan.frozen_groups == 2  # blocks.3 lies above what is trained
    assert not plan.only_head
    whole = only_plan(Names(["*"]), network)
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
        only_plan(Names(["blocks.0.*", pattern]), TINY["test_efficientnet"])


def test_all_follows_the_head_where_it_can_be_held_against_it() -> None:
    network, rule = TINY["test_efficientnet"], AllAfterHead()
    enough = FreezeContext(
        network,
        1_000,
        True,
        validation_counts=(10, 10),
        seconds_left=lambda: 300.0,
        image_seconds=lambda: 0.1,
        head_is_live=lambda: False,
    )
    decision = rule.decide(enough)
    head, whole = decision.plans
    assert (head.only_head, head.anew) == (True, False)
    assert (whole.frozen_groups, whole.anew) == (0, True)
    alone = Nothing().decide(enough)
    assert (replace(whole, anew=False),) == alone.plans
    more = replace(enough, epochs=7, seconds_left=lambda: 0.0)  # a resume keeps to what was decided
    assert [plan.epochs for plan in rule.change_epochs(decision, more).plans] == [7, 7]
    assert len(rule.change_epochs(alone, more).plans) == 1
    for context in (
        replace(enough, validation_counts=(10, 9)),
        replace(enough, seconds_left=lambda: 260.0),  # for 2,500 images, and 1,000 through the frozen network
        replace(enough, head_is_live=lambda: True),
        replace(enough, head_is_live=None),
    ):
        assert rule.decide(context) == alone


def test_names_needs_names() -> None:
    with pytest.raises(UserError, match="names nothing"):
        Names([])


def test_gradual_goes_from_the_head_down() -> None:
    network = TINY["test_efficientnet"]  # six groups
    plans = decide(Gradual(head_epochs=10, step_epochs=5, step_groups=2, until=0.2), network).plans
    assert [plan.frozen_groups for plan in plans] == [6, 4, 2, 1]
    assert [plan.epochs for plan in plans] == [10, 5, 5, 10]
    assert [plan.learning_rate for plan in plans] == [0.005, 0.001, 0.001, 0.001]
    assert plans[1].decision == "phase 2 of 4: stem to blocks.2 (4 of 6 layer groups) frozen, 5 epochs"


@given(
    st.sampled_from(sorted(TINY)), st.integers(1, 99), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9),
    st.floats(0, 1),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_the_phases_have_just_the_epochs_given(
    name: str, epochs: int, head_epochs: int, step_epochs: int, step_groups: int, until: float
) -> None:
    rule = Gradual(head_epochs, step_epochs, step_groups, until)
    plans = decide(rule, TINY[name], epochs=epochs).plans
    assert sum(plan.epochs for plan in plans) == epochs
    assert all(plan.epochs >= 1 for plan in plans)
    assert plans[0].only_head
    assert all(earlier.trainable < later.trainable for earlier, later in pairwise(plans))


def test_a_head_that_reads_all_stages_is_trained_more_slowly() -> None:
    backbone = Backbone("test_resnet", weights="none")
    networks = [one.build_on_meta() for one in (backbone, replace(backbone, head="stages"))]
    for network, rate in zip(networks, (0.005, 0.002), strict=True):
        assert only_plan(AllButHead(), network).learning_rate == rate
        assert [plan.learning_rate for plan in decide(Gradual(), network).plans] == [rate, 0.001, 0.001]
        assert only_plan(AllButHead(learning_rate=0.02), network).learning_rate == 0.02
    assert only_plan(Nothing(), network).learning_rate == 0.001


@pytest.mark.parametrize("rule", [AllButHead(), Nothing(), FirstStages(number=1), Names(["*.weight"])])
def test_the_users_number_of_epochs_wins(rule: FreezeRule) -> None:
    network = TINY["test_convnext"]
    plan = only_plan(rule, network, epochs=7)
    assert plan.epochs == 7
    assert plan.decision.endswith(", 7 epochs")
    assert plan.trainable == only_plan(rule, network).trainable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"step_groups": 0}, "step_groups is 0"), ({"until": 2.0}, "until is 2"), ({"epochs": 0}, "epochs is 0")],
)
def test_gradual_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Gradual(**arguments)


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        (AllButHead(), "head"),
        (Nothing(), "all"),
        (FirstStages(number=2), "blocks.1+"),
        (Gradual(), "head then blocks.2+"),
    ],
)
def test_what_is_trained_in_a_word(rule: FreezeRule, part: str) -> None:
    network = TINY["test_efficientnet"]
    assert decide(rule, network).trained_part(network) == part


@pytest.mark.parametrize("rule", [AllButHead(), Gradual()])
def test_a_decision_comes_back_from_json_and_takes_other_epochs(rule: FreezeRule) -> None:
    network = TINY["test_efficientnet"]
    decision = decide(rule, network, epochs=12)
    assert FreezeDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    more = rule.change_epochs(decision, FreezeContext(network, 100, pretrained=True, epochs=20))
    assert sum(plan.epochs for plan in more.plans) == more.epochs == 20
    assert decision.reason == "; then ".join(plan.decision for plan in decision.plans)


@pytest.mark.parametrize(
    ("make_rule", "argument"),
    [
        (lambda: AllButHead(epochs=0), "AllButHead.epochs"),
        (lambda: Nothing(learning_rate=-1.0), "Nothing.learning_rate"),
        (lambda: Gradual(head_learning_rate=0.0), "Gradual.head_learning_rate"),
        (lambda: Names([]), "Names.frozen"),
    ],
)
def test_a_refusal_names_the_argument(make_rule: Callable[[], FreezeRule], argument: str) -> None:
    with pytest.raises(UserError, match=re.escape(argument)):
        make_rule()
