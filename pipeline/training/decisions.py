"""What a training decides once, and a resume keeps to: what of the network is frozen, and which transforms are used."""

from dataclasses import replace
from functools import partial

from graftline.backbones.backbone import Backbone
from graftline.files import write_json
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule
from graftline.pipeline.runs.directory import RunDirectory
from graftline.training.budget import passes
from graftline.training.depth_decision import decide_depth, decide_depth_of
from graftline.training.fit_directory import FitDirectory
from graftline.training.label_check import find_policy, needs_choice
from graftline.training.policy_choice import PolicyChoice
from graftline.training.setup import TrainingSetup
from graftline.training.trial import keep_trials, make_freeze_context


def decide_freeze(
    setup: TrainingSetup, rule: FreezeRule, backbone: Backbone, files: RunDirectory, deadline: float | None
) -> FreezeDecision:
    """Decide what of the network is frozen, in each phase of the training.

    Args:
        setup: of the training.
        rule: that decides.
        backbone: the setup's network, to be built anew for the trials of another seed (``Recipe.depth_seed``).
        files: of the run, which keep the decision; a resume with another number of epochs changes only that.
        deadline: moment of ``time.monotonic`` at which the training is to end; None: there is no limit.
    """
    context = make_freeze_context(setup, FitDirectory(files.checkpoints), deadline)
    if files.freeze_decision.exists():
        decision = FreezeDecision.from_json(files.read_freeze_decision())
        if decision.epochs == context.epochs:
            return decision
        decision = rule.change_epochs(decision, context)
    else:
        decision = rule.use_spare_time(_find_depth(setup, rule, backbone, files, context), context)
        if decision.plans[-1].only_head and needs_choice(setup, decision.plans):
            decision = replace(decision, tried=())  # the head was tried on plain images
        keep_trials(decision, FitDirectory(files.checkpoints))
    write_json(files.freeze_decision, decision.to_json())
    return decision


def _find_depth(
    setup: TrainingSetup, rule: FreezeRule, backbone: Backbone, files: RunDirectory, context: FreezeContext
) -> FreezeDecision:
    """Decide by this training's own trials, or by those of the seed that was named for them."""
    seed, version = setup.recipe.depth_seed, setup.version
    can_take_depth = rule.needs_trials and context.seconds_left is None
    if seed is None or seed == setup.seed or not can_take_depth:
        return decide_depth(setup, rule, context)
    build = partial(backbone.for_images(version.typical_side(), version.typical_aspect()).build, version.class_names)
    return decide_depth_of(seed, setup, rule, FitDirectory(files.checkpoints), build)


def choose_policy(
    setup: TrainingSetup, decision: FreezeDecision, files: RunDirectory, deadline: float | None
) -> PolicyChoice | None:
    """Find out which of a policy's candidates are used; None where that does not matter.

    Args:
        setup: of the training.
        decision: what is frozen.
        files: of the run, which keep the choice.
        deadline: moment of ``time.monotonic`` at which the training is to end; None: there is no limit.
    """
    if not needs_choice(setup, decision.plans):
        return None
    if not files.policy_choice.exists():
        left = decision.plans[len(decision.tried) :] or decision.plans
        plans = [plan for plan in left if not plan.only_head] or left
        choice = find_policy(setup, FitDirectory(files.checkpoints), passes(setup, plans, deadline))
        write_json(files.policy_choice, choice.to_json())
    return PolicyChoice.from_json(files.read_policy_choice())
