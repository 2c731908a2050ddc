"""That the head is enough is known the next time, for the same data and settings only."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm.optim

from graftline.backbones.backbone import Backbone
from graftline.freezing.depth import deep_plan, head_plan
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import BoundaryResult, DepthMeasurement, Difference
from graftline.freezing.rule import FreezeDecision
from graftline.training.kept_answer import forget_answers
from graftline.training.known_depth import KnownDepth
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


def decided(network: Any, *, deep: bool = False) -> FreezeDecision:
    nothing = Difference(0, 0, 0)
    row = BoundaryResult("head", 6, 99, 0.5, 0.9, nothing, nothing, cached=True, pass_seconds=1, fit_seconds=1)
    head = head_plan(network)
    plans = (head, deep_plan(network, 0, "it pays", 3)) if deep else (head,)
    return FreezeDecision(plans, None, DepthMeasurement((row,), 0, 24, "more than the head did not pay"), ("06",))


def test_a_head_that_was_enough_is_known_without_its_weights(make_setup: MakeSetup) -> None:
    setup = make_setup()
    decision = decided(setup.graft.network)
    assert KnownDepth(setup, Measured()).read() is None
    KnownDepth(setup, Measured()).write(decision)
    assert KnownDepth(setup, Measured()).read() == replace(decision, tried=())


def test_answers_can_be_forgotten(make_setup: MakeSetup) -> None:
    setup = make_setup()
    KnownDepth(setup, Measured()).write(decided(setup.graft.network))
    forget_answers(setup.features)
    assert KnownDepth(setup, Measured()).read() is None


def test_other_settings_are_not_known(make_setup: MakeSetup) -> None:
    setup = make_setup()
    KnownDepth(setup, Measured()).write(decided(setup.graft.network))
    dropping = Backbone("test_efficientnet", weights="none", drop_path_rate=0.2).build(3)
    others: tuple[dict[str, Any], ...] = (
        {"seed": 1},
        {"optimizer": functools.partial(timm.optim.NAdamW, lr=None)},  # the same settings of another class
        {"recipe": replace(setup.recipe, class_weights=True)},
        {"execution": replace(setup.execution, world_size=2)},
        {"graft": replace(setup.graft, drop_rates=dropping.drop_rates)},
    )
    for changes in others:
        assert KnownDepth(replace(setup, **changes), Measured()).read() is None
    assert KnownDepth(setup, Measured(trial_images=9)).read() is None
    assert KnownDepth(setup, Measured(batchnorm="frozen")).read() is None


def test_a_deeper_answer_is_known_to_those_that_make_its_trial_once_more(make_setup: MakeSetup) -> None:
    setup = make_setup()
    decision = decided(setup.graft.network, deep=True)
    KnownDepth(setup, Measured()).write(decision)
    assert KnownDepth(setup, Measured()).read() is None
    asked = replace(setup, recipe=replace(setup.recipe, depth_seed=0))
    assert KnownDepth(asked, Measured()).read_any() == decision


def test_a_damaged_file_is_not_known(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup()
    KnownDepth(setup, Measured()).write(decided(setup.graft.network))
    (file,) = tmp_path.rglob("depths/*.json")
    file.write_text("{")
    assert KnownDepth(setup, Measured()).read() is None
