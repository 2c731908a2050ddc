"""What a training saves of its model: the bundle, and the card in it that says where the model comes from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftline.bundle.layout import FREEZE_CHECKS, read_description
from graftline.freezing.rule import FreezeDecision
from graftline.training.results import TrainingResult
from graftline.training.setup import TrainingSetup


def card_of(
    setup: TrainingSetup,
    decision: FreezeDecision,
    trained: TrainingResult,
    *,
    fold: str | None,
    cost: Mapping[str, int],
) -> dict[str, Any]:
    """Return the card of a model before it is tested.

    Args:
        setup: what it was trained on.
        decision: what was frozen.
        trained: the training.
        fold: the part of the training images that was left out; None: none was.
        cost: of the network, as it was logged.
    """
    version, graft = setup.version, setup.graft
    return {
        "dataset": version.name,
        "dataset_digest": version.digest,
        "validation_digest": version.split_digests["validation"],
        "test_digest": version.test_digest,
        "freeze_plan": decision.plans[trained.best_phase].describe(graft.network),
        FREEZE_CHECKS: [trained.kept.freeze_record["frozen_tensors"]],
        "weights": graft.weights.describe(),
        "weights_license": graft.weights.license,
        "fold": fold,
        "weighed": setup.recipe.weighs_images,
        "arguments": dict(graft.arguments),
        "cost": cost,
        "validation": trained.history.best,
    }


def best_epoch_in_words(setup: TrainingSetup, decision: FreezeDecision, trained: TrainingResult) -> str:
    """Return which epoch's weights are kept, and where there were several phases what was trained in it."""
    kept = "Best epoch" if setup.too_few_to_choose is None else "Last epoch"
    told = f"{kept} {trained.history.best['epoch'] + 1:.0f} of {len(trained.history.epochs)}"
    if len(decision.plans) == 1:
        return told
    return f"{told}, trained: {decision.plans[trained.best_phase].trained_part(setup.graft.network)}"


def is_saved(bundle: Path, card: Mapping[str, Any]) -> bool:
    """Tell whether a bundle is of the card's epoch and images; one that is there is whole."""
    if not bundle.is_dir():
        return False
    saved = read_description(bundle)["card"]
    return all(saved[key] == card[key] for key in ("dataset_digest", "validation"))
