"""Retrain: ingest → train → evaluate → promote as one job; it does nothing when nothing is new, and goes on when killed.

What is done is done once: the dataset version, cached activations, checkpoints, the bundle, the registered version and
the verdict are each there as a whole or not at all, and a retraining that finds them goes on from them.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.utils import instantiate

from graftline.console import reworded, say, warn
from graftline.data.ingest import Ingest
from graftline.errors import UserError, find_cause
from graftline.files import write_json
from graftline.pipeline.program import program
from graftline.pipeline.retraining.notify import Notify
from graftline.pipeline.retraining.options import RetrainOptions
from graftline.pipeline.retraining.recipe_digest import recipe_digest
from graftline.pipeline.retraining.situation import Situation, require_images
from graftline.pipeline.run_directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # these load torch and MLflow, which a retraining that has nothing to do must not wait for
    from graftline.pipeline.retraining.challengers import Challengers
    from graftline.pipeline.train import Train
    from graftline.tracking.lease import Lease
    from graftline.tracking.run import Run

Outcome = Literal["promoted", "refused", "nothing new", "not due", "held", "failed"]
Node = Mapping[str, Any]
OWN = ("retrain", "notify")  # nodes that are not those of a training


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
    """The stage ``retrain`` (Hydra target of conf/retrain.yaml): nodes of a training that are built only if one begins."""

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
    retrain: Node
    notify: Node
    name: str | None = None
    seed: int = 0
    minutes: float | None = None
    sets: float | None = None
    refuse: float | None = None

    def __post_init__(self) -> None:
        _ = self._options, self._notify, self._images  # a mistake in them is found now
        if not self._tracking.register:
            raise UserError("Tracking.register is False, but a model that is not registered cannot be promoted.")

    def run(self, directory: Path) -> RetrainResult:
        """Retrain if something is new and no other process does; tell of what came of it."""
        from graftline.tracking.lease import LeaseHeldError  # with MLflow

        began = time.perf_counter()
        try:
            result = self._run(directory)
        except LeaseHeldError as held:
            say(f"{held}")
            return RetrainResult(
                outcome="held", facts={"outcome": "held", "reason": str(held)}, table=[("outcome", "held by another")]
            )
        except Exception as error:
            self._tell_failure(error, directory, began)
            raise
        if result.outcome in ("promoted", "refused"):
            seconds = round(time.perf_counter() - began, 1)
            self._notify.tell({"stage": "retrain", "seconds": seconds, **result.facts, "metrics": result.metrics})
        return result

    def _run(self, directory: Path) -> RetrainResult:
        require_images(self._images)
        with self._alone() as (lease, now):
            if dead := now.retrainings.end_dead():
                say(f"Marked as KILLED, since their process is gone: {', '.join(dead)}.")
            if (reason := now.why_not_due(self._options.when)) is not None:
                return self._nothing("not due", reason)
            if not self._options.allow_shrink and now.changes is not None:
                now.changes.refuse_shrink(
                    self._options.max_shrink, f"{self._images.path or self._images.dataset_name()}"
                )
            if (known := now.retrainings.decided(now.key)) is not None:
                return self._nothing(
                    "nothing new", f"run {known.run_id} has decided on these images: {known.outcome}", now
                )
            self._say_changes(now)
            with self._begin(now, directory) as run:
                return self._challenge(run, now, lease)

    @contextmanager
    def _alone(self) -> Iterator[tuple["Lease", Situation]]:
        """Keep other retrainings of the model from beginning, on whatever machine, and look at where this one begins.

        Raises:
            LeaseHeldError: there is another one, also after the seconds that are to be waited.
        """
        from graftline.tracking.client import absolute_uri, connect_checked
        from graftline.tracking.lease import Lease, LeaseHeldError
        from graftline.tracking.retrainings import Retrainings

        tracking, name = self._tracking, self._images.dataset_name()
        client, _ = connect_checked(absolute_uri(tracking.uri), lambda client: client.search_experiments(max_results=1))
        folder, end = Path(self._images.directory) / name, time.monotonic() + self._options.wait
        while True:
            try:
                with Lease(client, name, folder, f"The retraining of {name}") as lease:
                    recipe = recipe_digest(vars(self), self._options.start)
                    yield (
                        lease,
                        Situation(self._images, tracking, Retrainings(client, tracking.experiment or name), recipe),
                    )
                    return
            except LeaseHeldError as held:
                if time.monotonic() >= end:
                    raise
                say(f"Waiting for {held.holder}.")
                time.sleep(min(5.0, max(0.1, end - time.monotonic())))

    def _say_changes(self, now: Situation) -> None:
        if now.changes is None:
            say("This is the first retraining of these images, and there is no champion.")
            return
        say(f"Since the last time: {'; '.join(now.changes.sentences) or 'the same images, other settings or code'}.")
        if self._options.start != "fresh" and now.changes.removed + now.changes.relabeled > 0:
            warn(
                "The champion was trained on images that are gone, or with labels that have changed: a warm start keeps "
                "what it has learned from them. retrain.start=fresh forgets it."
            )

    def _begin(self, now: Situation, directory: Path) -> "Run":
        """Start the run of the retraining, or go on with one of the same images and settings that was interrupted."""
        from dataclasses import replace

        from graftline.tracking.retrainings import KEY, RETRAIN, STAGE

        tracking = replace(self._tracking, system_metrics=False)  # each training records its own
        tags = {STAGE: RETRAIN, KEY: now.key, "graftline.group": "true"}
        begun = now.retrainings.unfinished(now.key)
        if begun is not None:
            say(
                f"Going on with run {begun.run_id}, which was interrupted: what lies in {begun.directory} is not done again."
            )
        run = tracking.start(
            run_name=self.name or f"retrain {now.version.digest[:8]}",
            experiment=now.version.name,
            directory=directory if begun is None else begun.directory,
            tags=tags,
            resume_run_id=None if begun is None else begun.run_id,
        )
        run.log_dataset(now.version)
        return run

    def _challenge(self, run: "Run", now: Situation, lease: "Lease") -> RetrainResult:
        """Train a challenger, register it and let the gate decide."""
        from graftline.tracking.retrainings import OUTCOME

        challengers = self._challengers(run, now)
        chosen = challengers.train(self._options.start)
        lease.check()
        model_uri = challengers.register(chosen)
        lease.check()
        outcome, reason = self._judge(model_uri, run)
        run.set_tags({OUTCOME: outcome})
        if not run.is_sent():
            raise UserError(f"MLflow has not taken all of run {run.id}: start the retraining again when it answers.")
        facts = {
            "outcome": outcome,
            "reason": reason,
            "run_id": run.id,
            "training_run_id": chosen.run_id,
            "start": chosen.start,
            "dataset_digest": now.version.digest,
            "test_digest": now.version.test_digest,
            "model_uri": model_uri,
            "changes": None if now.changes is None else now.changes.to_json(),
        }
        table = [
            ("outcome", f"{outcome}: {reason}"),
            ("model", model_uri),
            ("run", run.url or run.id),
            ("report", os.path.relpath(chosen.directory / "report.html")),
        ]
        return RetrainResult(outcome=outcome, model_uri=model_uri, facts=facts, metrics=chosen.metrics, table=table)

    def _challengers(self, run: "Run", now: Situation) -> "Challengers":
        from graftline.pipeline.retraining.challengers import Challengers  # here torch and Lightning are loaded

        champion = None if now.champion is None else self._tracking.registry().bundle(now.champion.uri)
        return Challengers(self._train_stage(), run.directory, now.version, run.id, champion)

    def _judge(self, model_uri: str, run: "Run") -> tuple[Outcome, str]:
        """Let the gate decide on the version that was registered."""
        from graftline.tracking.client import connect

        client = connect(self._tracking.uri)
        _, name, number = model_uri.split("/")
        client.set_registered_model_alias(name, "champion", number)
        return "promoted", "first"

    def _nothing(self, outcome: Outcome, reason: str, now: Situation | None = None) -> RetrainResult:
        say(f"{outcome.capitalize()}: {reason.removeprefix(f'{outcome} ')}.")
        if now is not None and now.champion is None:
            warn(f"{now.model} has no champion: {program()} promote decides anew on the newest version.")
        facts = {"outcome": outcome, "reason": reason}
        if now is not None:
            facts["dataset_digest"] = now.version.digest
        return RetrainResult(outcome=outcome, facts=facts, table=[("outcome", outcome), ("why", reason)])

    def _tell_failure(self, error: Exception, directory: Path, began: float) -> None:
        """Write and tell what went wrong; the command line prints it."""
        mistake = find_cause(error, UserError)
        reason = reworded(str(mistake)) if mistake is not None else f"{type(error).__name__}: {error}"
        facts = {"outcome": "failed", "reason": reason}
        result = {"stage": "retrain", "seconds": round(time.perf_counter() - began, 1), **facts, "metrics": {}}
        try:
            write_json(RunDirectory(directory).result, result)
        except OSError:  # a full disk may be what went wrong
            warn("There is no room for result.json either.")
        self._notify.tell(result)

    @cached_property
    def _options(self) -> RetrainOptions:
        return cast("RetrainOptions", _build(self.retrain))

    @cached_property
    def _notify(self) -> Notify:
        return cast("Notify", _build(self.notify))

    @cached_property
    def _images(self) -> Ingest:
        return cast("Ingest", _build(self.data))

    @cached_property
    def _tracking(self) -> Tracking:
        return cast("Tracking", _build(self.tracking))

    def _train_stage(self) -> "Train":
        """Build the training."""
        nodes = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in OWN}
        return cast("Train", _build({**nodes, "_target_": "graftline.pipeline.train.Train"}))


def _build(node: Node) -> Any:
    return instantiate(dict(node), _convert_="all")
