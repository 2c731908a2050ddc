"""The freeze rule ``measured`` where what trials come to is given: which are made, in which order, what is chosen."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import timm
from torch import nn

from graftline.errors import DivergenceError, TooLittleMemoryError
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import BoundaryTrial
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rule import FreezeContext


def network() -> nn.Module:
    made: nn.Module = timm.create_model("test_efficientnet", num_classes=3)
    return made


def at_depths(losses: dict[int, float], tried: list[tuple[int, int | None]], spread: float = 0.3) -> Any:
    """Return trials whose log loss is given by how many layer groups are frozen, images of two classes."""

    def attempt(plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None) -> BoundaryTrial:
        tried.append((plan.frozen_groups, max_images))
        noise = np.random.default_rng(plan.frozen_groups).normal(0, spread, 200)
        values = losses[plan.frozen_groups] + noise - noise.mean()
        name = "head" if plan.only_head else f"blocks.{plan.frozen_groups}"
        folder = f"{plan.frozen_groups}" + ("" if start is None else f"-from-{start.folder}")
        images = max_images or 0
        return BoundaryTrial(
            name, plan, 1, values, np.ones(200), True, 1.0, 1.0, images, plan.epochs * images, folder, start
        )

    return attempt


@pytest.mark.parametrize(
    ("losses", "order", "chosen"),
    [
        ({6: 0.9, 0: 0.2, 3: 0.3, 2: 0.25}, [6, 0, 3, 2], 0),  # the whole is best, and half is worse: deeper than that
        ({6: 0.9, 0: 0.4, 3: 0.3, 5: 0.35}, [6, 0, 3, 5], 3),  # half is better than the whole: less than half
        ({6: 0.9, 0: 0.4, 3: 0.3, 5: 0.2}, [6, 0, 3, 5], 5),
        ({6: 0.5, 0: 0.9, 5: 0.6}, [6, 0, 5], 6),  # the head is the better end, and nothing near it is better
        ({6: 0.5, 0: 0.9, 5: 0.3, 3: 0.4}, [6, 0, 5, 3], 5),
        ({6: 0.5, 0: 0.9, 5: 0.4, 3: 0.3, 2: 0.35}, [6, 0, 5, 3, 2], 3),
    ],
)
def test_both_ends_are_tried_first_then_what_lies_between(
    losses: dict[int, float], order: list[int], chosen: int
) -> None:
    tried: list[tuple[int, int | None]] = []
    attempt = at_depths(losses, tried, spread=1e-3)
    context = FreezeContext(network(), 1_000, True, validation_counts=(100, 100), try_boundary=attempt)
    decision = Measured(depths=(0.75, 0.5, 0.25, 0.0), trial_images=100).decide(context)
    assert [frozen for frozen, _ in tried] == order
    assert {images for _, images in tried} == {100}
    assert decision.plans[-1].frozen_groups == chosen


@pytest.mark.parametrize(
    ("losses", "order", "chosen"),
    [
        ({6: 0.5, 3: 0.6, 5: 0.6}, [6, 3, 5], 6),
        ({6: 0.5, 3: 0.6, 5: 0.4}, [6, 3, 5], 5),
        ({6: 0.9, 3: 0.5, 0: 0.4, 2: 0.3}, [6, 3, 0, 2], 2),
        ({6: 0.9, 3: 0.5, 0: 0.4, 2: 0.6}, [6, 3, 0, 2], 0),
        ({6: 0.9, 3: 0.3, 0: 0.4, 2: 0.35}, [6, 3, 0, 2], 3),
    ],
)
def test_where_a_trial_of_the_whole_takes_long_the_other_end_is_half(
    losses: dict[int, float], order: list[int], chosen: int
) -> None:
    """Half a second for an image: three times 100 of them take 150 s of the network, and 35 s of a sixth of it."""
    tried: list[tuple[int, int | None]] = []
    attempt = at_depths(losses, tried, spread=1e-3)
    counts = (100, 100)
    context = FreezeContext(network(), 1_000, True, None, 32, 1, counts, attempt, image_seconds=lambda: 0.5)
    decision = Measured(trial_images=100).decide(context)
    assert [frozen for frozen, _ in tried] == order
    assert decision.plans[-1].frozen_groups == chosen


@pytest.mark.parametrize(("deepest", "order", "chosen"), [(3, [6, 3, 5], 5), (0, [6, 3, 0, 2], 3)])
def test_a_depth_that_does_not_fit_the_memory_is_left_out(deepest: int, order: list[int], chosen: int) -> None:
    """Nor is the whole network timed then, by which the other end is chosen: it is half of it."""
    tried: list[tuple[int, int | None]] = []
    losses = {6: 0.9, 5: 0.4, 3: 0.3, 2: 0.35, 0: 0.4}
    attempt = at_depths(losses, tried, spread=1e-3)

    def run_out(plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None) -> BoundaryTrial:
        trial: BoundaryTrial = attempt(plan, start, max_images)
        if plan.frozen_groups <= deepest:
            raise TooLittleMemoryError
        return trial

    def time_whole() -> float:
        raise TooLittleMemoryError

    context = FreezeContext(network(), 1_000, True, None, 32, 1, (100, 100), run_out, image_seconds=time_whole)
    decision = Measured(trial_images=100).decide(context)
    assert [frozen for frozen, _ in tried] == order
    assert decision.plans[-1].frozen_groups == chosen


def test_those_that_cannot_be_told_apart_go_on_with_twice_the_images() -> None:
    tried: list[tuple[int, int | None]] = []
    losses = {6: 0.9, 0: 0.31, 3: 0.30, 5: 0.32}
    context = FreezeContext(network(), 4_000, True, validation_counts=(100, 100), try_boundary=at_depths(losses, tried))
    decision = Measured(depths=(0.75, 0.5, 0.25, 0.0), trial_images=100).decide(context)
    assert tried == [(6, 400), (0, 400), (3, 400), (5, 400), (3, 800), (0, 800)]
    assert decision.tried == ("3", "3-from-3")
    assert [plan.frozen_groups for plan in decision.plans] == [3, 3, 3]


@pytest.mark.parametrize("num_images", [1_000, 2_500, 20_000])
@pytest.mark.parametrize("best", [0, 3])
def test_an_answer_of_half_or_more_takes_no_longer_than_twice_its_training(num_images: int, best: int) -> None:
    """In images through the whole network, forward and backward: a way through the frozen part is a fifth of one."""
    tried: list[tuple[int, int | None]] = []
    attempt = at_depths({6: 0.9, 0: 0.3, 2: 0.3, 3: 0.3, 5: 0.3} | {best: 0.29}, tried)
    context = FreezeContext(network(), num_images, True, validation_counts=(100, 100), try_boundary=attempt)
    first, *_, last = Measured().decide(context).plans
    assert last.frozen_groups == best
    share = (6 - best) / 6
    trials = sum((images or num_images) * (0.2 + first.epochs * (6 - frozen) / 6) for frozen, images in tried[1:])
    direct = num_images * (0.2 + context.deep_epochs * share)
    assert trials + num_images * last.epochs * share < 2 * direct


def test_what_the_best_trial_has_trained_is_not_trained_again() -> None:
    attempt = at_depths({6: 0.9, 0: 0.3, 2: 0.4, 3: 0.4}, [], spread=1e-3)
    context = FreezeContext(network(), 2_000, True, validation_counts=(100, 100), try_boundary=attempt)
    decision = Measured().decide(context)
    assert [(plan.frozen_groups, plan.epochs) for plan in decision.plans] == [(0, 3), (0, 4)]  # 5 less 1.5
    assert Measured(depths=(0.5,), final_depth=0.0).decide(context).plans[-1].epochs == 5  # of another depth
    assert Measured().change_epochs(decision, context) == decision


def scripted(losses: dict[tuple[bool, int | None], float], tried: list[tuple[bool, int | None]]) -> Any:
    """Return trials whose log loss is given by whether only the head was trained and on how many images."""
    noise = np.random.default_rng(0).normal(0, 0.3, (2, 200))

    def attempt(plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None) -> BoundaryTrial:
        key = (plan.only_head, max_images)
        tried.append(key)
        values = losses[key] + noise[int(plan.only_head)] - noise[int(plan.only_head)].mean()
        name = "head" if plan.only_head else "blocks.1"
        return BoundaryTrial(name, plan, 1, values, np.ones(200), True, 1.0, 1.0, start=start, folder=name)

    return attempt


def test_a_depth_that_diverges_is_left_out_and_a_head_ends_the_training(caplog: pytest.LogCaptureFixture) -> None:
    why = "The training diverged: in epoch 1 the training loss is no number, at a learning rate of 3: lower AdamW.lr."
    losses: dict[tuple[bool, int | None], float] = {(True, 100): 0.5}
    diverging = False

    def attempt(plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None) -> BoundaryTrial:
        if plan.only_head is diverging:
            raise DivergenceError(why)
        trial: BoundaryTrial = scripted(losses, [])(plan, start, max_images)
        return trial

    context = FreezeContext(network(), 1_000, True, validation_counts=(100, 100), try_boundary=attempt)
    with caplog.at_level("INFO", "graftline"):
        assert Measured(depths=(0.5,), trial_images=100).decide(context).plans[-1].only_head
    assert caplog.messages[-1].endswith(f" is left out. {why}")
    diverging = True
    with pytest.raises(DivergenceError, match=why):
        Measured(depths=(0.5,), trial_images=100).decide(context)


@pytest.mark.parametrize(("later", "goes_deep"), [(0.3, True), (0.49, False)])
def test_what_is_not_settled_is_tried_with_twice_the_images(later: float, *, goes_deep: bool) -> None:
    tried: list[tuple[bool, int | None]] = []
    losses: dict[tuple[bool, int | None], float] = {
        (True, 100): 0.5,
        (False, 100): 0.49,
        (True, 200): 0.5,
        (False, 200): later,
    }
    context = FreezeContext(
        network(), 1_000, pretrained=True, validation_counts=(100, 100), try_boundary=scripted(losses, tried)
    )
    decision = Measured(depths=(0.5,), trial_images=100, final_depth=0.0).decide(context)
    assert tried == [(True, 100), (False, 100), (True, 200), (False, 200)]
    assert decision.plans[-1].only_head is not goes_deep
    assert len(decision.tried) == (2 if goes_deep else 0)  # the trial went on from its own weights
    tried.clear()
    losses[False, 100] = 0.51  # worse than the head: that is settled
    assert Measured(depths=(0.5,), trial_images=100).decide(context).plans[-1].only_head
    assert tried == [(True, 100), (False, 100)]


@pytest.mark.parametrize(("seconds", "tried_again"), [(4_000, False), (10_000, True)])
def test_what_is_not_settled_is_tried_again_within_the_time_for_all_trials(seconds: int, *, tried_again: bool) -> None:
    """Of 4,000 s, 0.3 of what a pass over 1,200 images leaves is 1,128 s: two trials take 800 s, two more 560 s."""
    tried: list[tuple[bool, int | None]] = []
    losses: dict[tuple[bool, int | None], float] = {
        (True, 100): 0.5,
        (False, 100): 0.49,
        (True, 200): 0.5,
        (False, 200): 0.3,
    }
    context = FreezeContext(
        network(),
        1_000,
        pretrained=True,
        validation_counts=(100, 100),
        try_boundary=scripted(losses, tried),
        seconds_left=lambda: seconds - 400 * len(tried),
        image_seconds=lambda: 1.0,
    )
    Measured(depths=(0.5,), trial_images=100).decide(context)
    assert tried == [(True, 100), (False, 100), *([(True, 200), (False, 200)] if tried_again else [])]


@pytest.mark.parametrize(
    ("classes", "num_images", "images", "epochs"),
    [(2, 4_000, 400, 3), (50, 4_000, 500, 3), (50, 250, 250, 6), (500, 2_500, 2_500, 6)],
)
def test_a_trial_has_ten_images_of_each_class(classes: int, num_images: int, images: int, epochs: int) -> None:
    """Or, where there are not so many, as many steps."""
    tried: list[tuple[int, int | None]] = []
    attempt = at_depths({6: 0.5, 3: 0.3}, tried)
    counts = (max(1, 200 // classes),) * classes
    context = FreezeContext(network(), num_images, True, validation_counts=counts, try_boundary=attempt)
    decision = Measured(depths=(0.5,), trial_images=100).decide(context)
    assert tried[1] == (3, images)
    assert decision.plans[0].epochs == epochs


def test_other_epochs_of_a_head_that_had_no_time_for_a_trial_are_still_that_heads() -> None:
    """A resume, which has more time, is in the middle of its training."""
    tried: list[tuple[int, int | None]] = []
    attempt, counts = at_depths({6: 0.9, 3: 0.2}, tried), (100, 100)
    short: dict[str, Any] = {"image_seconds": lambda: 0.1, "seconds_left": lambda: 1.0, "head_is_live": lambda: True}
    context = FreezeContext(network(), 1_000, True, validation_counts=counts, try_boundary=attempt, **short)
    rule = Measured(depths=(0.5,))
    decision = rule.decide(context)
    (plan,) = decision.plans
    assert (plan.only_head, plan.epochs) == (True, 30)
    later = replace(context, epochs=5, seconds_left=lambda: 1e6)
    changed = rule.change_epochs(decision, later)
    assert changed == replace(decision, plans=(replace(plan, epochs=5),), epochs=5)
    assert rule.change_epochs(changed, replace(later, epochs=None)) == decision
    assert tried == []
    assert rule.decide(later).plans[-1].frozen_groups == 3, "which a new run would find out"


@pytest.mark.parametrize("epochs", [1, 30, 200])
def test_the_users_epochs_are_those_of_the_training_and_not_of_the_trials(epochs: int) -> None:
    plans: list[int] = []
    attempt = scripted({(True, None): 0.5, (False, 100): 0.6}, [])

    def noted(plan: FreezePlan, start: BoundaryTrial | None = None, max_images: int | None = None) -> BoundaryTrial:
        plans.append(plan.epochs)
        trial: BoundaryTrial = attempt(plan, start, max_images)
        return trial

    context = FreezeContext(network(), 100, True, epochs, validation_counts=(100, 100), try_boundary=noted)
    decision = Measured(depths=(0.5,), trial_images=100).decide(context)
    assert plans == [30, 3]
    assert [plan.epochs for plan in decision.plans] == [epochs]
    assert decision.tried == (("head",) if epochs == 30 else ())


@pytest.mark.parametrize(("validation", "tried"), [(2_000, ("6",)), (2_002, ())])
def test_a_head_that_was_judged_by_a_part_of_the_validation_images_is_trained_by_all(
    validation: int, tried: tuple[str, ...]
) -> None:
    attempt, counts = at_depths({6: 0.5, 3: 0.9}, []), (validation // 2, validation // 2)
    context = FreezeContext(network(), 100, True, validation_counts=counts, try_boundary=attempt)
    decision = Measured(depths=(0.5,)).decide(context)
    assert decision.plans[-1].only_head
    assert decision.tried == tried
    limited = replace(context, seconds_left=lambda: 1e6, image_seconds=lambda: 0.1)
    assert Measured(depths=(0.5,)).decide(limited).tried == ("6",), "whose training is judged by a part, too"


def test_a_head_that_is_compared_with_nothing_has_the_users_epochs() -> None:
    attempt = scripted({(True, None): 0.5}, [])
    counts = (100, 100)
    hurried = FreezeContext(
        network(),
        100,
        True,
        2,
        validation_counts=counts,
        try_boundary=attempt,
        seconds_left=lambda: 1.0,
        image_seconds=lambda: 1.0,
    )
    decision = Measured(depths=(0.5,), trial_images=100).decide(hurried)
    assert [plan.epochs for plan in decision.plans] == [2]
    assert decision.tried == ("head",), "it is not fitted twice"


def test_larger_steps_keep_their_number_in_trial_and_training() -> None:
    """Of steps twice as large, a trial takes 6 epochs in place of 3; the training, on two processes, takes 4."""
    losses: dict[tuple[bool, int | None], float] = {(True, 1_000): 0.5, (False, 1_000): 0.3}
    context = FreezeContext(
        network(),
        10_000,
        pretrained=True,
        step_images=64,
        processes=2,
        validation_counts=(100, 100),
        try_boundary=scripted(losses, []),
    )
    rule = Measured(depths=(0.5,), trial_images=1_000)
    assert [plan.epochs for plan in rule.decide(context).plans] == [6, 4]
    usual = replace(context, step_images=32, processes=1)
    assert [plan.epochs for plan in rule.decide(usual).plans] == [3, 3]


def test_validation_images_and_the_last_pass_take_their_part_of_the_time() -> None:
    """Each trial is judged by the validation images in every epoch, and a head needs a pass over all images."""

    def images_tried(
        validation: int, num_images: int = 2_000, seconds: float = 1_000.0, *, live: bool = False
    ) -> int | None:
        tried: list[tuple[int, int | None]] = []
        attempt = at_depths({6: 0.5, 3: 0.9}, tried, spread=1e-3)
        context = FreezeContext(
            network(),
            num_images,
            pretrained=True,
            validation_counts=(validation // 2, validation // 2),
            try_boundary=attempt,
            try_in_folds=attempt,
            seconds_left=lambda: seconds,
            image_seconds=lambda: 0.1,
            head_is_live=lambda: live,
        )
        Measured(depths=(0.5,), trial_images=2_000).decide(context)
        return tried[0][1] if tried else None

    # 0.3 of 10,000 images forward and backward, less 0.2 for each image of the last pass; a trial: 0.2 for the head's
    # pass, 0.2 + 3 x 0.5 for its own, and 2 x 0.2 + 3 x 0.5 / 3 for each image that it is judged by
    assert images_tried(100) == int((0.3 * (10_000 - 0.2 * 2_100) - 0.9 * 100) / 1.9)
    assert images_tried(1_000) == int((0.3 * (10_000 - 0.2 * 3_000) - 0.9 * 1_000) / 1.9)
    assert images_tried(2_000, num_images=4_000) is None, "too few for a trial: the head alone, on all images"
    assert images_tried(100, num_images=20_000) == int((0.3 * (10_000 - 0.2 * 20_100) - 0.9 * 100) / 1.9)
    # each of three fits by folds, of 6 epochs, is judged by a third of all images, and the one by a large fold, too
    assert images_tried(10, 800, seconds=3_000) == int((0.3 * (30_000 - 0.2 * 810) / 3 - 1.4 * 810 / 3) / 3.4)
    assert images_tried(10, 4_000, seconds=1_200) == int((0.3 * (12_000 - 0.2 * 4_010) - 0.9 * 4_010 / 3) / 1.9)
    # a third of a step for what is frozen at every epoch: all of it in the head's 30, half of it in three
    assert images_tried(100, seconds=5_000, live=True) == int((0.3 * (50_000 - 0.2 * 2_100) - 11 * 100) / (10.5 + 1.5))
    assert images_tried(100, seconds=2_000, live=True) is None
