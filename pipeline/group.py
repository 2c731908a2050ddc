"""The parent run under which the runs of a multirun are grouped in MLflow."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from graftline.console import print_table, say
from pipeline.stage import EXIT_INTERRUPTED

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

PARENT = "GRAFTLINE_PARENT_RUN"  # environment variable: id of the parent run, for the runs of a group


class RunGroup:
    """Opens the parent run with the first of its runs, whose configuration tells where runs are tracked."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._parent: Run | None = None
        self._runs: list[Path] = []

    def open(self, config: DictConfig, directory: Path) -> None:
        """Open the parent run if it is not open, and remember a run by its output directory."""
        self._runs.append(directory)
        say(f"\nRun {directory.name}: {' '.join(HydraConfig.get().overrides.task)}")
        if self._parent is not None or "tracking" not in config:
            return
        group = directory.parent  # the output directory of the whole multirun
        experiment = instantiate(config.data).dataset_name()  # as its runs have it, or MLflow would not nest them
        tracking = instantiate(config.tracking)
        self._parent = tracking.start_group(name=f"{self._stage} {group.name}", experiment=experiment, directory=group)
        os.environ[PARENT] = self._parent.id

    def close(self, codes: Sequence[int]) -> None:
        """End the parent run, if there is one, by its runs' exit codes, and print the runs side by side."""
        if self._parent is not None:
            os.environ.pop(PARENT)
            if EXIT_INTERRUPTED in codes:
                self._parent.finish("KILLED")
            else:
                self._parent.finish("FAILED" if any(codes) else "FINISHED")
        if self._runs:
            self._print_comparison()

    def _print_comparison(self) -> None:
        overrides = [set(yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text())) for run in self._runs]
        common = set.intersection(*overrides)
        outcomes = [_accuracy(run) for run in self._runs]
        columns: tuple[str, ...] = ("test accuracy", "95 % interval")
        if not any(outcome[1] for outcome in outcomes):  # a stage that tests nothing
            columns, outcomes = ("outcome",), [(outcome[0] or "done",) for outcome in outcomes]
        rows = [
            (run.name, ", ".join(sorted(mine - common)), *outcome)
            for mine, run, outcome in zip(overrides, self._runs, outcomes, strict=True)
        ]
        print_table(f"{len(rows)} runs", ("run", "what differs", *columns), rows)
        say(str(self._runs[0].parent))


def _accuracy(directory: Path) -> tuple[str, ...]:
    """Return a run's test accuracy and its interval, in words, from its result.json."""
    from graftline.evaluation.metrics import Interval, format_interval, format_score  # scikit-learn takes a second

    file = directory / "result.json"
    found = json.loads(file.read_text(encoding="utf-8"))["metrics"].get("accuracy") if file.exists() else None
    if found is None:
        return "failed" if not file.exists() else "", ""
    accuracy = Interval(**found)
    return format_score("accuracy", accuracy.value), format_interval("accuracy", accuracy)
