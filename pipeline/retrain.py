"""Retrain: ingest → train → evaluate → promote as one job. It does nothing if nothing is new, and goes on if killed.

What is done is done once: the dataset version, cached activations, checkpoints, the bundle, the registered version and
the verdict are each there as a whole or not at all, and a retraining that finds them goes on from them.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.utils import instantiate

from graftline.console import say, warn
from graftline.data.ingest import Ingest
from graftline.errors import UserError, first_line
from graftline.evaluation.decision import DecisionRule
from graftline.features.store import GIGABYTE, ActivationStore
from graftline.files import write_json
from graftline.pipeline.program import program
from graftline.pipeline.retraining.early import require_numbers
from graftline.pipeline.retraining.keep import (
    Keep,
    Removable,
    find_leftovers,
    find_old_versions,
    remove_leftovers,
)
from graftline.pipeline.retraining.keep_datasets import find_old_datasets
from graftline.pipeline.retraining.notify import Notify
from graftline.pipeline.retraining.options import RetrainOptions
from graftline.pipeline.retraining.recipe_digest import recipe_digest
from graftline.pipeline.retraining.situation import Situation, require_images
from graftline.pipeline.retraining.telling import explain, failure_noted, make_content, read_content, was_stopped
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.processes import Terminated
from graftline.tracking.lease import Lease, LeaseHeldError
from graftline.tracking.names import registered_name
from graftline.tracking.retrainings import (
    AFTER,
    KEY,
    MODEL,
    NO,
    OUTCOME,
    RECIPE,
    RETRAIN,
    TRAINING_FAILED,
    Retraining,
    Retrainings,
    decided_tags,
)
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # these load torch and MLflow, which a retraining that has nothing to do must not wait for
    from graftline.evaluation.gate import Gate
    from graftline.execution import Accelerator
    from graftline.pipeline.promote import Promote
    from graftline.pipeline.train import Train
    from graftline.tracking.run import Run

Outcome = Literal["promoted", "refused", "nothing new", "not due", "held", "failed"]
Node = Mapping[str, Any]
OWN = ("retrain", "gate", "notify", "keep")  # nodes that are not those of a training
WAIT_SECONDS = 5.0  # between two looks whether another retraining has ended


@dataclass(frozen=True, kw_only=True)
class RetrainResult(StageResult):
    """What a retraining came to.

    Attributes:
        outcome: promoted, refused, nothing new, not due, or held by another process.
        model_uri: of the version that it registered; None if it trained none.
    """

    outcome: Outcome
    model_uri: str | None = None


@dataclass(frozen=True)
class Retrain:
    """The stage ``retrain`` (Hydra target of conf/retrain.yaml).

    Its nodes are given as they are written; those of a training are built only if one begins.
    What is not described here is as for `Train`.

    Attributes:
        data: an `Ingest`: the images; the model has the data set's name.
        tracking: a `Tracking`: where the retraining is logged and the model registered.
        retrain: a `RetrainOptions`: when, and what a training begins with.
        gate: a `Gate`: what a challenger must show.
        notify: a `Notify`: who is told of the result.
        keep: a `Keep`: what old files and versions stay.
        name: of the runs in MLflow, the retraining's and the training's; None: each has one of its own.
    """

    data: Node
    augment: Node
    backbone: Node
    freeze: Node
    features: Node
    optim: Node
    schedule: Node
    trainer: Node
    evaluation: Node
    decision: Node
    tracking: Node
    train: Node
    bundle: Node
    cluster: Node
    retrain: Node
    gate: Node
    notify: Node
    keep: Node
    name: str | None = None
    seed: int = 0
    minutes: float | None = None
    sets: float | None = None
    refuse: float | None = None

    def __post_init__(self) -> None:
        # a mistake in them is found now; one in what needs torch where something is new, before the images are read
        _ = self._options, self._notify, self._keep, self._images, self._gate, self._decision
        require_numbers(self.trainer, self.optim, self.evaluation, self.seed, self.minutes)
        if not self._tracking.register:
            raise UserError("Tracking.register is False, but a model that is not registered cannot be promoted.")

    def run(self, directory: Path) -> RetrainResult:
        """Retrain if something is new and no other process does; tell of what came of it."""
        began = time.perf_counter()
        result: RetrainResult | None = None
        decided: list[RetrainResult] = []
        try:
            require_images(self._images, allow_shrink=self._options.allow_shrink)
            with self._alone() as (lease, now):
                if dead := now.retrainings.end_dead():
                    say(f"Marked as KILLED, since their process is gone: {', '.join(dead)}.")
                if self._notify.has_listener:
                    self._tell(now, now.last)
                result = self._run(now, lease, directory, began, decided)
                if result.outcome in ("promoted", "refused"):
                    self._tell(now, now.retrainings.decided())
        except LeaseHeldError as held:
            return _nothing("held", f"by {held.holder}")
        except BaseException as error:
            # what is decided has not failed; and who types Ctrl-C knows it
            if result is None and not decided and (isinstance(error, Exception) or was_stopped(error)):
                self.tell_failure(error, directory, began)
            raise
        self._tidy(trained=result.outcome in ("promoted", "refused"))
        return result

    def _run(
        self, now: Situation, lease: Lease, directory: Path, began: float, decided: list[RetrainResult]
    ) -> RetrainResult:
        """Retrain if something is new and it is due; what the gate has decided is in ``decided`` at once."""
        if not now.retrainings.knows(now.recipe):
            self._train_stage().check()  # else a mistake would be told once the images are read, or in a month
        not_due = now.why_not_due(self._options.when)
        changes = now.changes if not_due is None else not_due.changes
        if not self._options.allow_shrink and changes is not None:
            changes.refuse_shrink(self._options.max_shrink, self._images.path or now.model)
        if not_due is not None:
            return _nothing("not due", not_due.reason)
        known = now.settled
        is_open = known is not None and now.is_open(known)
        if known is not None and not is_open:
            if now.champion is None:
                warn(f"{now.model} has no champion: {program()} promote decides anew on its newest version.")
            reason = f"run {known.run_id} had these images, settings and code, and its model was {known.outcome}"
            if known.outcome == "refused":
                reason += f"; {program()} promote decides on it anew, by another gate"
            return _nothing("nothing new", reason, dataset_digest=now.version.digest)
        then, begun = (now, known) if is_open else now.unfinished()
        self._gate.check_weights(then.version.samples("test").weights)  # else it would be told after the training
        self._promotion(now.model).check()
        if is_open:
            say("Its model was refused for what another moment may find otherwise: the gate decides on it once more.")
        else:
            self._say_what_begins(then, begun)
        stage = self._train_stage()
        with self._begin(then, begun, directory) as run:
            if then is not now:
                digest = then.version.digest
                say(f"It is of dataset version {digest}: what has come since is for the next retraining.")
            result, version = self._challenge(run, then, stage, lease)
            decided.append(result)
            write_json(RunDirectory(run.directory).result, make_content(result.facts, result.metrics, began))
            run.set_tags(decided_tags(result.outcome, version, then.last))
            run.settle()  # else it would be decided on once more
        return result

    @contextmanager
    def _alone(self) -> Iterator[tuple[Lease, Situation]]:
        """Keep other retrainings of the model from beginning, on whatever machine, and look at where this one begins.

        Raises:
            LeaseHeldError: there is another one, also after the seconds that are to be waited.
        """
        tracking, name = self._tracking, self._images.dataset_name()
        lease = Lease(tracking.uri, name, Path(self._images.directory) / name, f"The retraining of {name}")
        end, told = time.monotonic() + self._options.wait, ""
        while True:
            try:
                lease.acquire()
                break
            except LeaseHeldError as held:
                if (left := end - time.monotonic()) <= 0:
                    raise
                if held.holder != told:  # once, and not at each look
                    say(f"Waiting for {held.holder}, for {left:.0f} s at most.")
                told = held.holder
                time.sleep(min(WAIT_SECONDS, left))
        with lease:
            known = Retrainings(tracking.uri, tracking.experiment or name, registered_name(name))
            yield lease, Situation(self._images, tracking, known, self._recipe, self._decision)

    def _say_what_begins(self, now: Situation, begun: Retraining | None) -> None:
        self._say_changes(now)
        if begun is not None:
            say(f"Going on with run {begun.run_id}, which was interrupted; what it has done lies in {begun.directory}.")

    def _say_changes(self, now: Situation) -> None:
        if now.changes is None:
            say("Nothing was retrained on these images before, and there is no champion.")
            return
        say(now.what_changed(now.changes))
        if self._options.start != "fresh" and now.changes.removed + now.changes.relabeled > 0:
            warn(
                "The champion was trained on images that are gone, or with labels that have changed: a warm start "
                "keeps what it has learned from them. RetrainOptions.start='fresh' forgets it."
            )

    def _begin(self, now: Situation, begun: Retraining | None, directory: Path) -> "Run":
        """Start the run of the retraining, or go on with one, which is not decided until it is decided again."""
        from graftline.tracking.names import STAGE

        tracking = replace(self._tracking, system_metrics=False)  # each training records its own
        run = tracking.start(
            run_name=self.name or f"retrain {now.version.digest[:8]}",
            experiment=now.version.name,
            directory=directory if begun is None else begun.directory,
            tags={
                STAGE: RETRAIN,
                MODEL: now.model,
                KEY: now.key,
                RECIPE: now.recipe,
                AFTER: now.after,
                TRAINING_FAILED: NO,
                "graftline.group": "true",
                **({} if begun is None else {OUTCOME: ""}),
            },
            resume_run_id=None if begun is None else begun.run_id,
        )
        run.log_dataset(now.version)
        return run

    def _challenge(self, run: "Run", now: Situation, stage: "Train", lease: Lease) -> tuple[RetrainResult, int]:
        """Train a challenger, register it and let the gate decide; returns the number of its version, too."""
        from graftline.pipeline.retraining.challengers import Challengers

        challengers = Challengers(stage, run.directory, now.version, run.id, now.champion)
        with failure_noted(run):
            chosen = challengers.train(self._options.start)
        lease.check()
        model_uri = challengers.register(chosen)
        lease.check()
        _, name, number = model_uri.split("/")
        verdict = self._promotion(name, int(number)).decide(run.directory / "promote")
        outcome: Outcome = "promoted" if verdict.promoted else "refused"
        facts = {
            "outcome": outcome,
            "reason": verdict.sentence,
            "reasons": list(verdict.reasons),
            "ledger_line": verdict.line.number,
            "champion": verdict.challenger if verdict.promoted else verdict.champion,
            "run_id": run.id,
            "run_name": run.name,
            "training_run_id": chosen.run_id,
            "start": chosen.start,
            "dataset_digest": now.version.digest,
            "test_digest": now.version.test_digest,
            "model_uri": model_uri,
            "changes": None if now.changes is None else now.changes.to_json(),
        }
        table = [
            ("outcome", outcome),
            ("why", verdict.sentence),
            *(("because", reason) for reason in verdict.reasons),
            ("model", model_uri),
            ("run", run.url or run.id),
            ("report", os.path.relpath(chosen.directory / "report.html")),
        ]
        result = RetrainResult(outcome=outcome, model_uri=model_uri, facts=facts, metrics=chosen.metrics, table=table)
        return result, verdict.challenger

    def _promotion(self, model: str, version: int | None = None) -> "Promote":
        """Return what lets the gate decide on a version; what it has decided before, the ledger knows."""
        from graftline.pipeline.promote import Promote

        where = cast("Accelerator", self.trainer.get("accelerator", "auto"))  # that of the training
        return Promote(self._tracking, self._gate, model=model, version=version, accelerator=where)

    def _tidy(self, *, trained: bool) -> None:
        """Remove what is old and not needed; what goes wrong with it is no fault of the retraining."""
        from graftline.tracking.models_in_use import find_used_runs

        folder = str(self.features.get("directory", "cache/activations"))
        store = ActivationStore(Path(folder), float(self.features.get("max_gb", 0)) * GIGABYTE)
        try:
            uri = self._tracking.uri
            old: list[Removable] = [*find_leftovers(self._keep, uri, find_used_runs(uri), store)]
            name = self._images.dataset_name()
            old += find_old_versions(self._keep, self._tracking, registered_name(name))
            if trained:  # else there are no more dataset versions than before
                old += find_old_datasets(self._keep, self._tracking, Path(self._images.directory), name)
            if removed := remove_leftovers(old, store):
                say(f"Removed, as old and needed by no model in use: {removed}.")
        except (Exception, Terminated) as error:  # it is decided, and told
            warn(f"Old files could not be removed ({first_line(error)}): {program()} prune tries again.")

    def _tell(self, now: Situation, decided: Retraining | None) -> None:
        """Tell of the last decision, unless it was told; that of a process that ended before it could is told now."""
        if decided is None or decided.is_told:
            return
        self._notify.tell(read_content(decided, now.model))
        now.retrainings.set_told(decided.run_id)

    def tell_failure(self, error: BaseException, directory: Path, began: float | None = None) -> None:
        """Write and tell what went wrong; the command line prints it."""
        result = make_content({"outcome": "failed", "reason": explain(error)}, {}, began)
        try:  # before it is told, which takes its time: SIGKILL may follow SIGTERM
            write_json(RunDirectory(directory).result, result)
        except OSError as cause:  # a full disk may be what went wrong
            warn(f"result.json cannot be written either ({cause.strerror}).")
        self._notify.tell(result)

    @cached_property
    def _options(self) -> RetrainOptions:
        return cast("RetrainOptions", _build(self.retrain))

    @cached_property
    def _notify(self) -> Notify:
        return cast("Notify", _build(self.notify))

    @cached_property
    def _keep(self) -> Keep:
        return cast("Keep", _build(self.keep))

    @cached_property
    def _gate(self) -> "Gate":
        return cast("Gate", _build(self.gate))

    @cached_property
    def _decision(self) -> DecisionRule:
        return cast("DecisionRule", _build(self.decision))

    @cached_property
    def _images(self) -> Ingest:
        return cast("Ingest", _build(self.data))

    @cached_property
    def _tracking(self) -> Tracking:
        return cast("Tracking", _build(self.tracking))

    @property
    def _nodes(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(Retrain) if field.name not in OWN}

    @property
    def _recipe(self) -> str:
        return recipe_digest(self._nodes, self._options.start)

    def _train_stage(self) -> "Train":
        """Build the training; here torch and Lightning are loaded."""
        return cast("Train", _build({**self._nodes, "_target_": "graftline.pipeline.train.Train"}))


def _nothing(outcome: Outcome, reason: str, **facts: str) -> RetrainResult:
    """Return what came of a retraining that had nothing to do."""
    say(f"{outcome.capitalize()}: {reason}.")
    facts = {"outcome": outcome, "reason": reason, **facts}
    return RetrainResult(outcome=outcome, facts=facts, table=[("outcome", outcome), ("why", reason)])


def _build(node: Node) -> Any:
    return instantiate(dict(node), _convert_="all")
