"""What an ensemble cannot be, by its keys alone: told before anything is read."""

import pytest

from graftline.errors import UserError
from graftline.pipeline.cli import compose


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "runs or members is needed, and not both"),
        (["runs=a", "members=2"], "runs or members is needed, and not both"),
        (["members=1"], "members is 1, but an ensemble has at least 2"),
        (["members=2", "crops=12"], "crops is 12: take one of 1, mirror"),
        (["runs=a", "choose=all", "ms_per_image=3"], "ms_per_image is for choose=greedy"),
        (["runs=a", "choose=weighted", "ms_per_image=3"], "ms_per_image is for choose=greedy"),
        (["runs=a", "ms_per_image=0"], "it must be above 0 and finite"),
        (["runs=a", "folds=true"], "folds is for members that are trained: give members, not runs"),
        (["members=2", "train.fold=1/2"], "train.fold is each member's own here: leave it out, folds sets it"),
        (["members=2", "average=odds"], "average=odds: must be probabilities or logits"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose("ensemble", overrides)
