"""Batches of one image: what can be trained on them is, and all else is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from graftline.errors import UserError
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


@pytest.mark.parametrize(("frozen", "side", "works"), [(0, 32, False), (4, 32, False), (0, 64, True), (6, 32, True)])
def test_batches_of_one_image(frozen: int, side: int, works: bool, make_setup: MakeSetup, tmp_path: Path) -> None:
    """BatchNorm on maps of one pixel cannot be trained on them; frozen, or on larger maps, it can."""
    setup = make_setup(recipe=Recipe(batch_size=1, workers=0))
    preprocessing = replace(setup.graft.preprocessing, image_size=(side, side))
    setup = replace(setup, graft=replace(setup.graft, preprocessing=preprocessing))
    plan = plan_from_depth(setup.graft.network, frozen, "test", epochs=1, learning_rate=1e-4)
    if works:
        assert fit_phase(setup, plan, FitDirectory(tmp_path), show_progress=False).history.steps == 36
        return
    with pytest.raises(UserError, match=rf"of {side} x {side} px .* Recipe\.batch_size=2 or more"):
        fit_phase(setup, plan, FitDirectory(tmp_path), show_progress=False)
