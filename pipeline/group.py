"""The parent run under which the runs of a multirun are grouped in MLflow."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import instantiate
from omegaconf import DictConfig

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

PARENT = "GRAFTLINE_PARENT_RUN"  # environment variable: id of the parent run, for the runs of a group


class RunGroup:
    """Opens the parent run with the first of its runs, whose configuration tells where runs are tracked."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._parent: Run | None = None

    def open(self, config: DictConfig, directory: Path) -> None:
        """Open the parent run if it is not open; ``directory`` is that of the whole multirun."""
        if self._parent is not None or "tracking" not in config:
            return
        name = f"{self._stage} {directory.name}"
        experiment = instantiate(config.data).dataset_name()  # as its runs have it, or MLflow would not nest them
        self._parent = instantiate(config.tracking).start_group(name=name, experiment=experiment, directory=directory)
        os.environ[PARENT] = self._parent.id

    def close(self, *, failed: bool) -> None:
        """End the parent run, if there is one."""
        if self._parent is not None:
            os.environ.pop(PARENT)
            self._parent.finish("FAILED" if failed else "FINISHED")
