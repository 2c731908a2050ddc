"""The retrainings of a model, as MLflow has them: which were decided, and which one is still to come to its end.

A retraining is a run that groups those of its trainings. It is decided once it has an outcome, which is the last that
is written. Only the holder of the model's lease calls what changes something here: a run that claims to go on is
therefore that of a process that was killed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graftline.errors import UserError
from graftline.tracking.names import DATASET_DIGEST, OUTPUT_DIRECTORY, PARENT_RUN, STAGE, registered_name
from graftline.tracking.owner import owner_file, read_owner
from graftline.tracking.tested_runs import all_runs
from graftline.tracking.uri import absolute_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

RETRAIN = "retrain"
# tags; an experiment may have the retrainings of several models, and clocks may be set back
MODEL, KEY, OUTCOME = "graftline.retrain.model", "graftline.retrain.key", "graftline.retrain.outcome"
RECIPE = "graftline.retrain.recipe"
AFTER = "graftline.retrain.after"  # run of the retraining that was decided last when it began, or "none"
VERSION, NUMBER = "graftline.retrain.version", "graftline.retrain.number"  # of the model, and among those decided
TRAINING_FAILED = "graftline.retrain.training_failed"  # whether that ended it, and not what is around the training
TOLD = "graftline.retrain.told"  # whether those who are to be notified were
NO, YES = "no", "yes"  # of these two
T = TypeVar("T")
_MOST = 100  # runs that are looked at, the newest
_NUMBER_DIGITS = 8  # MLflow orders tags as text


@dataclass(frozen=True)
class Retraining:
    """A retraining.

    Attributes:
        run_id: of its run.
        key: digest of all that it depends on: images, configuration and code.
        dataset_digest: of the images; None if it did not come so far as to log them.
        outcome: what became of it; None if it is not decided.
        version: number of the version that it registered; None if it is not decided.
        number: how many were decided until then, this one included; 0 if it is not.
        after: run of the one that was decided last when it began, "none" if none was; None if it is not known.
        training_failed: whether its training has failed by itself; False: it has not, or something else has ended it,
            as a kill, a full disk, MLflow that went away, or the gate.
        ended: when, in ms since 1970; None if it has not ended.
        directory: its output directory, where it was made.
        is_here: whether that is on this machine.
        is_told: whether those who are to be notified were told of the outcome.
    """

    run_id: str
    key: str | None
    dataset_digest: str | None
    outcome: str | None
    version: int | None
    number: int
    after: str | None
    training_failed: bool
    ended: int | None
    directory: Path
    is_here: bool
    is_told: bool


class Retrainings:
    """Find the retrainings of a model, and mark those that have died.

    Args:
        uri: of MLflow, a database or a server.
        experiment: where they are; it need not exist.
        model: name of the registered model.

    Raises:
        UserError: (of each call) MLflow does not answer within a bounded time, or with an error.
    """

    def __init__(self, uri: str, experiment: str, model: str) -> None:
        self._uri, self._experiment, self._model = uri, experiment, model
        self._experiments = list[str]()

    def decided(self, key: str | None = None) -> Retraining | None:
        """Return the retraining that was decided last, of a key or of any; None where there is none."""
        which = "" if key is None else f" and tags.`{KEY}` = '{key}'"
        found = self._search(f"tags.`{OUTCOME}` != ''{which}", 1)
        return _describe(found[0]) if found else None

    def knows(self, recipe: str) -> bool:
        """Return whether a retraining by a recipe was decided, so that there is no mistake in it."""
        return bool(self._search(f"tags.`{OUTCOME}` != '' and tags.`{RECIPE}` = '{recipe}'", 1))

    def unfinished(self, recipe: str) -> list[Retraining]:
        """Return the retrainings by a recipe that were begun on this machine and are not decided, the newest first."""
        runs = self._search(f"attributes.status != 'FINISHED' and tags.`{RECIPE}` = '{recipe}'", _MOST)
        found = [_describe(run) for run in runs if not run.data.tags.get(OUTCOME)]
        return [retraining for retraining in found if retraining.is_here]

    def set_told(self, run_id: str) -> None:
        """Note that those who are to be notified were told of the outcome of a retraining."""
        self._ask(lambda client: client.set_tag(run_id, TOLD, YES))

    def registered_at(self, model: str, version: int) -> int:
        """Return when a version was registered, in ms since 1970."""
        return int(self._ask(lambda client: client.get_model_version(model, str(version))).creation_timestamp)

    def end_dead(self) -> list[str]:
        """Mark the runs of retrainings whose process has died as KILLED, with what they left unsent.

        Returns:
            Their ids.

        Raises:
            UserError: not all that they left unsent could be sent.
        """
        running = self._search_all("attributes.status = 'RUNNING'")
        dead = [run for run in running if self._is_ours(run) or self._is_of_ours(run)]
        for run in dead:
            self._end(run)
        return [run.info.run_id for run in dead]

    def _is_ours(self, run: "MlflowRun") -> bool:
        return run.data.tags.get(STAGE) == RETRAIN and run.data.tags.get(MODEL) == self._model

    def _is_of_ours(self, run: "MlflowRun") -> bool:
        from graftline.tracking.client import known_run

        if (parent := run.data.tags.get(PARENT_RUN)) is None:
            return False
        found = self._ask(lambda client: known_run(client, parent))
        return found is not None and self._is_ours(found)

    def _end(self, run: "MlflowRun") -> None:
        from graftline.tracking.outbox import sync

        if not _is_here(run):
            self._ask(lambda client: client.set_terminated(run.info.run_id, "KILLED"))
            return
        below = sorted(folder for folder in _directory(run).glob("*") if owner_file(folder).exists())
        for directory in (_directory(run), *below):  # its trainings, and the decision of the gate
            report = sync(directory)
            if report.problem is not None:
                raise UserError(
                    f"{report.num_unsent:,} records of run {report.run_id}, which was killed, are still unsent "
                    f"({report.problem}): start again when MLflow takes them."
                )
        now = self._ask(lambda client: client.get_run(run.info.run_id))
        if now.data.tags.get(OUTCOME):  # the last that is written, but for the end itself
            self._ask(lambda client: client.set_terminated(run.info.run_id, "FINISHED"))
        elif now.info.status == "RUNNING":  # it had ended before, and was begun anew
            self._ask(lambda client: client.set_terminated(run.info.run_id, "KILLED"))

    def _search(self, filter_string: str, most: int) -> "list[MlflowRun]":
        return self._search_all(
            f"tags.`{STAGE}` = '{RETRAIN}' and tags.`{MODEL}` = '{self._model}' and {filter_string}", most
        )

    def _search_all(self, filter_string: str, most: int = _MOST) -> "list[MlflowRun]":
        if not self._experiments:  # the first retraining makes it
            found = self._ask(lambda client: client.get_experiment_by_name(self._experiment))
            if found is None:
                return []
            self._experiments = [found.experiment_id]
        order, where = [f"tags.`{NUMBER}` DESC", "attributes.start_time DESC"], self._experiments
        return self._ask(lambda client: [*client.search_runs(where, filter_string, max_results=most, order_by=order)])

    def _ask(self, question: "Callable[[MlflowClient], T]") -> T:
        from graftline.tracking.client import connect_checked

        return connect_checked(absolute_uri(self._uri), question)[1]


def find_needed(client: "MlflowClient", experiments: Sequence[str]) -> list[Retraining]:
    """Return of each model the retraining that was decided last, and those that can be gone on with on this machine.

    Args:
        client: where they are.
        experiments: ids of those in which they are.
    """
    runs = all_runs(client, experiments, f"tags.`{STAGE}` = '{RETRAIN}'", [f"tags.`{NUMBER}` DESC"])
    needed, models = list[Retraining](), set[tuple[str, str | None]]()
    for run in runs:
        retraining, model = _describe(run), (run.info.experiment_id, run.data.tags.get(MODEL))
        is_last = retraining.outcome is not None and model not in models
        if is_last:
            models.add(model)
        if is_last or (retraining.outcome is None and retraining.is_here):
            needed.append(retraining)
    return needed


def _directory(run: "MlflowRun") -> Path:
    return Path(run.data.tags.get(OUTPUT_DIRECTORY, ""))


def _is_here(run: "MlflowRun") -> bool:
    """Tell whether the output directory of a run is on this machine, and not another one of the same name."""
    owner = read_owner(_directory(run))
    return owner is not None and owner.run_id == run.info.run_id


def _describe(run: "MlflowRun") -> Retraining:
    tags = run.data.tags
    return Retraining(
        run_id=run.info.run_id,
        key=tags.get(KEY),
        dataset_digest=tags.get(DATASET_DIGEST),
        outcome=tags.get(OUTCOME) or None,
        version=int(tags[VERSION]) if VERSION in tags else None,
        number=int(tags.get(NUMBER, 0)),
        after=tags.get(AFTER),
        training_failed=tags.get(TRAINING_FAILED) == YES,
        ended=run.info.end_time,
        directory=_directory(run),
        is_here=_is_here(run),
        is_told=tags.get(TOLD) != NO,
    )


def decided_tags(outcome: str, version: int, last: Retraining | None) -> dict[str, str]:
    """Return the tags of a retraining that is decided, of which nobody is told yet.

    Args:
        outcome: what became of it.
        version: number of the version that it registered.
        last: the retraining that was decided before it.
    """
    number = 1 if last is None else last.number + 1
    return {VERSION: str(version), NUMBER: f"{number:0{_NUMBER_DIGITS}}", TOLD: NO, OUTCOME: outcome}


def find_registered(uri: str, name: str, run_id: str) -> str | None:
    """Return the URI of the registered version that a run has made; None if it has made none.

    Raises:
        UserError: MLflow does not answer.
    """
    from graftline.tracking.client import connect_checked

    name = registered_name(name)
    which = f"name = '{name}' and run_id = '{run_id}'"
    _, versions = connect_checked(absolute_uri(uri), lambda client: client.search_model_versions(which))
    return f"models:/{name}/{versions[0].version}" if versions else None
