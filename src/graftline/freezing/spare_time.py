"""Time that a training with a limit has left once the head is trained: the whole network is trained in it, too."""

from dataclasses import replace

from graftline.freezing.depth import DEEP_IMAGES, deep_plan
from graftline.freezing.measured import FROZEN_PASS
from graftline.freezing.rule import FreezeContext, FreezeDecision

WORTH_TRYING = DEEP_IMAGES / 4  # images forward and backward: the trials have seen about as many already


def use_spare_time(decision: FreezeDecision, context: FreezeContext) -> FreezeDecision:
    """Add a phase that trains the whole network, where the head alone was chosen and the time allows for more.

    A trial compares what little training brings; that it did not pay says little of ten times as much. The phase begins
    with the trained head (Kumar et al. 2022, arXiv 2202.10054), and the best epoch of both is kept.

    Args:
        decision: of a rule that tries depths.
        context: that it was made in; without ``seconds_left`` there is no limit, and nothing is added.
    """
    left, image_seconds, measured = context.seconds_left, context.image_seconds, decision.measurement
    if left is None or image_seconds is None or not decision.plans[-1].only_head:
        return decision
    if measured is None or measured.in_folds:  # too few validation images to choose between the two
        return decision
    if left() / image_seconds() < WORTH_TRYING + FROZEN_PASS * context.num_images:
        return decision
    plan = deep_plan(context.network, 0, "the time that is left", context.deep_epochs)
    return replace(decision, plans=(*decision.plans, context.finalize(plan)), tried=())
