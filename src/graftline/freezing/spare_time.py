"""Time that a training with a limit has left once the head is trained: more of the network is trained in it."""

from dataclasses import replace

from graftline.freezing.depth import DEEP_IMAGES, deep_images, deep_plan
from graftline.freezing.rule import FreezeContext, FreezeDecision

WORTH_TRAINING = 0.25  # of a whole training: with less, a new head has hardly found its place


def worth_trying(num_images: int, num_classes: int) -> float:
    """Return how many images there has to be time for, forward and backward.

    Of many classes one pass over the training images will do: the phase takes time that is left over, and is kept by
    evidence only.

    Args:
        num_images: of the training split.
        num_classes: of the data set.

    >>> [worth_trying(images, num_classes=1_000) for images in (1_000, 10_000, 1_000_000)]
    [2500.0, 10000, 50000.0]
    """
    return min(WORTH_TRAINING * deep_images(num_classes), max(WORTH_TRAINING * DEEP_IMAGES, num_images))


def has_time_for_more(context: FreezeContext) -> bool:
    """Tell whether there is time for a head, which needs a pass of all images, and to train more than that.

    Without a limit there is.
    """
    left, image_seconds = context.seconds_left, context.image_seconds
    if left is None or image_seconds is None:
        return True
    worth = worth_trying(context.num_images, len(context.validation_counts))
    to_decode = min(worth, context.num_images) * context.decoding_share  # memory keeps what is seen again
    return left() / image_seconds() >= worth + to_decode + context.pass_steps


def with_spare_time(decision: FreezeDecision, context: FreezeContext, frozen_groups: int) -> FreezeDecision:
    """Add a phase that trains more than the head, where the head alone was chosen and the time allows for that.

    Trials are short, for the time that they take; where there is time anyway, more can be found out. The phase begins
    with the network's own weights and a new head, as trials do, and is kept where it is likely better than the head.

    Args:
        decision: of a rule that tries depths.
        context: that it was made in; without ``seconds_left`` there is no limit, and nothing is added.
        frozen_groups: in that phase.
    """
    measured = decision.measurement
    if context.seconds_left is None or not decision.plans[-1].only_head:
        return decision
    if measured is None or measured.in_folds:  # too few validation images to choose between the two
        return decision
    if not measured.rows[0].cached:  # a head that is trained on images takes the time that there is
        return decision
    if not has_time_for_more(context):
        return decision
    reason = "the time that the head alone leaves is for more of the network"
    plan = replace(deep_plan(context.network, frozen_groups, reason, context.deep_epochs), anew=True)
    stopped = f"{measured.stopped}; the time that is left goes to more than the head"
    return replace(
        decision,
        plans=(*decision.plans, context.finalize(plan)),
        tried=(),
        measurement=replace(measured, stopped=stopped),
    )
