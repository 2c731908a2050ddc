"""Time that is left once the head is trained: when more of the network is trained in it, and how much."""

from dataclasses import replace

import pytest
import timm

from graftline.freezing.depth import deep_plan, head_plan
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import BoundaryResult, DepthMeasurement, Difference
from graftline.freezing.rule import FreezeContext, FreezeDecision
from graftline.freezing.rules import AllButHead


@pytest.fixture(scope="module")
def decision() -> FreezeDecision:
    nothing = Difference(0, 0, 0)
    row = BoundaryResult("head", 6, 99, 0.5, 0.9, nothing, nothing, cached=True, pass_seconds=1, fit_seconds=1)
    measurement = DepthMeasurement((row,), 0, 24, "more than the head did not pay")
    return FreezeDecision((head_plan(timm.create_model("test_resnet")),), None, measurement, ("06",))


def context(seconds: float | None, image_seconds: float = 0.1) -> FreezeContext:
    left = None if seconds is None else lambda: seconds
    network = timm.create_model("test_resnet")
    return FreezeContext(network, 1_000, pretrained=True, seconds_left=left, image_seconds=lambda: image_seconds)


def test_the_whole_network_follows_the_head_where_the_time_suffices(decision: FreezeDecision) -> None:
    longer = Measured().use_spare_time(decision, context(300))
    head, whole = longer.plans
    assert head.only_head
    assert (whole.frozen_groups, whole.epochs) == (0, 10)
    assert longer.tried == (), "a trial's weights are not compared with those of later phases"
    assert longer.measurement is not None
    assert (
        longer.measurement.stopped == "more than the head did not pay; the time that is left goes to more than the head"
    )
    half = Measured(depths=(0.75, 0.5)).use_spare_time(decision, context(300)).plans[-1]
    assert half.frozen_groups == 3, "no deeper than the rule may go"
    final = Measured(depths=(0.75,), final_depth=0.0).use_spare_time(decision, context(300)).plans[-1]
    assert final.frozen_groups == 0
    assert (
        Measured().use_spare_time(decision, context(260)) == decision
    )  # 2,500 images, and 1,000 through the frozen network


def test_many_classes_and_images_that_take_long_to_decode_need_more_time(decision: FreezeDecision) -> None:
    long = replace(context(710), num_images=10_000, validation_counts=(3,) * 100)  # a quarter of 20,000, and the pass
    assert len(Measured().use_spare_time(decision, long).plans) == 2
    assert Measured().use_spare_time(decision, replace(long, seconds_left=lambda: 700.0)) == decision
    slow = replace(context(300), decoding_seconds=lambda: 0.03)
    assert Measured().use_spare_time(decision, slow) == decision
    assert len(Measured().use_spare_time(decision, replace(slow, seconds_left=lambda: 340.0)).plans) == 2


def test_of_many_classes_one_pass_over_the_training_images_will_do(decision: FreezeDecision) -> None:
    """A quarter of what a thousand classes need for a whole training would be five passes over these."""
    few = replace(context(1_230), num_images=10_000, validation_counts=(1,) * 1_000)
    assert len(Measured().use_spare_time(decision, few).plans) == 2
    assert Measured().use_spare_time(decision, replace(few, seconds_left=lambda: 1_210.0)) == decision


def test_nothing_follows_without_a_limit_or_where_nothing_could_be_chosen(decision: FreezeDecision) -> None:
    assert Measured().use_spare_time(decision, context(None)) == decision
    assert decision.measurement is not None
    folds = replace(decision, measurement=replace(decision.measurement, in_folds=True))
    assert Measured().use_spare_time(folds, context(300)) == folds
    measurement = decision.measurement
    on_images = replace(measurement, rows=(replace(measurement.rows[0], cached=False),))
    live = replace(decision, measurement=on_images)
    assert Measured().use_spare_time(live, context(300)) == live, "a head on images takes the time that there is"
    assert AllButHead().use_spare_time(decision, context(300)) == decision
    unmeasured = replace(decision, measurement=None)
    assert Measured().use_spare_time(unmeasured, context(300)) == unmeasured
    deep = replace(decision, plans=(deep_plan(timm.create_model("test_resnet"), 0, "it pays", 3),))
    assert Measured().use_spare_time(deep, context(300)) == deep
