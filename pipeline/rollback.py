"""Rollback: the alias goes back to the champion before, and the ledger says so."""

from dataclasses import dataclass, replace
from pathlib import Path

from graftline.console import say
from graftline.errors import UserError
from graftline.pipeline.promote import only_model
from graftline.pipeline.stage import StageResult
from graftline.tracking.ledger import Decision, LedgerLine, require_short
from graftline.tracking.promotions import Promotions, author, experiment_name, now
from graftline.tracking.registry import RegisteredVersion
from graftline.tracking.standing import Standing
from graftline.tracking.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class RollbackResult(StageResult):
    """What the stage ``rollback`` did: the line of the ledger that says so."""

    line: LedgerLine


@dataclass(frozen=True)
class Rollback:
    """The stage ``rollback`` (Hydra target of conf/rollback.yaml).

    Attributes:
        tracking: where the models are registered.
        model: name of the registered model; None: the only one.
        to: the version that is to be champion again; None: the champion before.
        reason: why; the ledger keeps it, and the gate tells it whoever wants to promote the version again.
        copies: folder where this machine keeps the lines of the ledger that it has seen; None: it keeps none.
    """

    tracking: Tracking
    model: str | None = None
    to: int | None = None
    reason: str | None = None
    copies: str | None = "ledger"

    def __post_init__(self) -> None:
        require_short("Rollback.reason", self.reason)

    def run(self, directory: Path) -> RollbackResult:
        """Move the alias back and record it."""
        model = self.model or only_model(self.tracking)
        promotions = Promotions(self.tracking, model, None if self.copies is None else Path(self.copies))
        standing = promotions.read_sound()
        target = self._target(standing)
        self.tracking.registry().bundle(target.uri)  # a bundle that was changed is no way back
        decision = Decision(
            model=model,
            kind="rolled back",
            version=target.version,
            before=standing.champion,
            after=target.version,
            author=author(),
            at=now(),
            reasons=() if self.reason is None else (self.reason,),
        )
        line = self._record(promotions, standing, decision, directory)
        facts = {"model": model, "version": target.version, "before": standing.champion, "line": line.number}
        return RollbackResult(
            facts={**facts, "reason": self.reason, "run_id": line.decision.run_id},
            table=[
                ("champion", f"version {target.version}, was {standing.champion}"),
                ("ledger", f"line {line.number}"),
            ],
            line=line,
        )

    def _target(self, standing: Standing) -> RegisteredVersion:
        """Return the version to go back to.

        Raises:
            UserError: there is none.
        """
        if self.to is not None:
            if self.to == standing.champion:
                raise UserError(f"Version {self.to} of {standing.model} is the champion already.")
            return standing.version(self.to)
        before = standing.predecessors
        if not before:
            raise UserError(
                f"{standing.model} has no champion before {standing.champion or 'this'} that is still registered: "
                "give a version as Rollback.to."
            )
        return standing.version(before[0])

    def _record(self, promotions: Promotions, standing: Standing, decision: Decision, directory: Path) -> LedgerLine:
        """Note it in a run of its own, write the line, and move the alias."""
        promotions.open()
        title = f"{decision.model}: version {decision.before} back to {decision.after}"
        say(f"{title}.")
        tracking = replace(self.tracking, experiment=None, parent_run_id=None, system_metrics=False)
        with tracking.start(
            run_name=title,
            experiment=experiment_name(decision.model),
            directory=directory,
            tags={"graftline.stage": "rollback", "graftline.verdict": decision.kind},
        ) as run:
            run.describe("\n\n".join(["**rolled back**", *decision.reasons]))
            run.settle()
            line = promotions.append(standing, replace(decision, run_id=run.id))
            promotions.finish(line)
            promotions.note(decision.after or 0, line)
            run.set_tags({"graftline.ledger_line": str(line.number)})
        return line
