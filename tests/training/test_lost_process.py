"""Processes that are gone while they are needed."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from graftline.data.image_memory import ImageMemory
from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]


class KillsWorkers(FitEvents):
    """Kills the loader's processes, as the system does when memory is short."""

    def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
        for child in psutil.Process().children(recursive=True):
            if "forkserver" in " ".join(child.cmdline()) and child.parent() != psutil.Process():
                child.kill()


@pytest.mark.long
def test_a_loader_process_that_is_gone_ends_the_training(make_setup: MakeSetup, tmp_path: Path) -> None:
    no_room = ImageMemory(share=0)  # images that do not fit into memory are decoded by worker processes
    setup = make_setup(recipe=Recipe(batch_size=12, workers=1), features=Features(cache=False), images=no_room)
    plan = plan_from_depth(setup.graft.network, 0, "test", epochs=3)
    with pytest.raises(UserError, match=r"A loader process has ended \(.*\).*: lower Recipe\.workers"):
        fit_phase(setup, plan, FitDirectory(tmp_path), events=KillsWorkers(), show_progress=False)
