"""Changes of the recipe: how each did beside the first, on the same images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.recipe import CHANGES, OF_A_HEAD, Change, Outcome, table
from graftline.pipeline.cli import compose

pytestmark = pytest.mark.usefixtures("one_hydra")


def outcome(right: int, log_loss: float) -> Outcome:
    """Return what a network made of 400 images, the first of which are right."""
    return Outcome((np.arange(400) < right).astype(float), log_loss, log_loss / 2)


def test_changes_are_compared_with_the_first_over_all_seeds() -> None:
    results = [[outcome(300, 0.8), outcome(320, 0.6)], [outcome(340, 0.4), outcome(320, 0.4)]]
    first, second = table(CHANGES[:2], results)
    assert first == ("none", "77.5 % (73.2 to 81.3)", "", "0.700", "0.350")
    assert second[2].startswith("+5.0 (+")
    assert second[3:] == ("0.400", "0.200")


@pytest.mark.parametrize("change", [*CHANGES[1:], *OF_A_HEAD[2:-1]], ids=lambda change: change.key)
def test_a_change_is_what_its_key_asks_for(change: Change) -> None:
    stage: Any = compose("train", change.key.split()).stage
    plain: Any = compose("train", []).stage
    assert stage.freeze.batchnorm == change.batchnorm
    assert stage.backbone.drop_path_rate == change.drop_path_rate
    assert stage.backbone.head == change.head
    assert stage.train == replace(plain.train, **change.recipe)
    assert stage.optim.keywords["lr"] == change.learning_rate
    assert stage.optim.keywords["weight_decay"] == change.weight_decay
    assert list(getattr(stage.freeze, "frozen", ())) == list(change.frozen)
