"""What is told of a retraining, to people, in ``result.json`` and in MLflow: what was decided, or what went wrong."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from graftline.console import reworded
from graftline.errors import UnreachableError, UserError, find_cause, first_line, no_room
from graftline.pipeline.runs.directory import RunDirectory
from graftline.processes import Terminated
from graftline.tracking.retrainings import TRAINING_FAILED, YES, Retraining

if TYPE_CHECKING:  # it loads MLflow
    from graftline.tracking.run import Run


def make_content(facts: Mapping[str, Any], metrics: Mapping[str, Any], began: float | None = None) -> dict[str, Any]:
    """Return what ``result.json`` holds, and who is notified gets."""
    seconds = None if began is None else round(time.perf_counter() - began, 1)
    return {"stage": "retrain", "seconds": seconds, **facts, "metrics": metrics}


def read_content(decided: Retraining, model: str) -> dict[str, Any]:
    """Return the content of a retraining that was decided; without the metrics where its directory is not here."""
    known = {"outcome": decided.outcome, "model_uri": f"models:/{model}/{decided.version}"}
    with suppress(OSError, ValueError):  # it was decided on another machine, or its directory was removed
        found: dict[str, Any] = json.loads(RunDirectory(decided.directory).result.read_text(encoding="utf-8"))
        if found.get("run_id") == decided.run_id:
            return found
    return make_content({**known, "run_id": decided.run_id, "dataset_digest": decided.dataset_digest}, {})


def was_stopped(error: BaseException) -> bool:
    """Tell whether SIGTERM is behind an error, as the end of a schedule's time or of the machine."""
    return find_cause(error, Terminated) is not None


def explain(error: BaseException) -> str:
    """Return why a retraining has failed, in a sentence."""
    if was_stopped(error):
        return "it was stopped by SIGTERM, as after job.hours: the next one goes on from there"
    if (mistake := find_cause(error, UserError)) is not None:
        return reworded(str(mistake))
    return no_room(error) or f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def failure_noted(run: "Run") -> Iterator[None]:
    """Note on a run that its training has failed by itself, and not because of a disk, MLflow or another process."""
    from graftline.training.lost_process import LostProcessError

    try:
        yield
    except Exception as error:
        others = (OSError, UnreachableError, LostProcessError)
        if no_room(error) is None and not any(find_cause(error, kind) for kind in others):
            run.set_tags({TRAINING_FAILED: YES})
        raise
