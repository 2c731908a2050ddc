"""Rollback: the alias goes back to the champion before, and the ledger says so."""

from dataclasses import dataclass, replace
from pathlib import Path

from graftline.console import say
from graftline.errors import UserError
from graftline.pipeline.program import program
from graftline.pipeline.promotion.decided_model import open_promotions
from graftline.pipeline.stage import StageResult
from graftline.tracking.ledger import ChampionDecision, LedgerLine, require_short
from graftline.tracking.names import STAGE
from graftline.tracking.promotions import Promotions, author, experiment_name, now
from graftline.tracking.registry import RegisteredVersion
from graftline.tracking.standing import Standing, bundle_digests
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
        to: the version that is to be champion again, which it has been; None: the champion before.
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
        """Move the alias back and record it; of one that was killed, do what it left undone."""
        promotions = open_promotions(self.tracking, self.model, self.copies)
        promotions.end_dead_runs()
        standing = promotions.read_sound()
        line = self._begun(standing) or self._record(promotions, standing, directory)
        promotions.tag(line.decision.after or 0, line)
        promotions.end(line)
        decision = line.decision
        facts = {"model": decision.model, "version": decision.after, "before": decision.before, "line": line.number}
        return RollbackResult(
            facts={**facts, "reason": " ".join(decision.reasons) or None, "run_id": decision.run_id},
            table=[
                ("champion", f"version {decision.after}, was {decision.before}"),
                ("ledger", f"line {line.number}"),
            ],
            line=line,
        )

    def _begun(self, standing: Standing) -> LedgerLine | None:
        """Return the same rollback, if one was begun before that did not come to its end: it is not done twice."""
        line = standing.begun_rollback
        if line is None or self.to not in (None, line.decision.after):
            return None
        say(f"{line.sentence} That rollback was interrupted: it is done now, and the champion is not moved again.")
        return line

    def _target(self, standing: Standing) -> RegisteredVersion:
        """Return the version to go back to.

        Raises:
            UserError: there is none, or it never was champion.
        """
        if self.to is not None:
            if self.to == standing.champion:
                raise UserError(f"Version {self.to} of {standing.model} is the champion already.")
            target = standing.version(self.to)
            if self.to not in standing.former_champions:
                raise UserError(
                    f"Version {self.to} of {standing.model} never was champion, so that nothing leads back to it: "
                    f"`{program()} promote model={standing.model} version={self.to}` asks the gate, and "
                    "force='REASON' overrides it."
                )
            return target
        before = standing.predecessors
        if not before:
            raise UserError(
                f"{standing.model} has no champion before {standing.champion or 'this'} that is still registered: "
                "give a version as Rollback.to."
            )
        return standing.version(before[0])

    def _record(self, promotions: Promotions, standing: Standing, directory: Path) -> LedgerLine:
        """Note it in a run of its own, write the line, and move the alias."""
        target = self._target(standing)
        self.tracking.registry().bundle(target.uri)  # a bundle that was changed is no way back
        promotions.open()
        title = f"{standing.model}: version {standing.champion} back to {target.version}"
        say(f"{title}.")
        tracking = replace(self.tracking, experiment=None, parent_run_id=None, system_metrics=False)
        with tracking.start(
            run_name=title,
            experiment=experiment_name(standing.model),
            directory=directory,
            tags={STAGE: "rollback", "graftline.verdict": "rolled back"},
        ) as run:
            decision = self._decision(standing, target, run.id)
            run.describe("\n\n".join(["**rolled back**", *decision.reasons]))
            run.settle()
            line = promotions.append(standing, decision)
            promotions.finish(line)
            run.set_tags({"graftline.ledger_line": str(line.number)})
        return line

    def _decision(self, standing: Standing, target: RegisteredVersion, run_id: str) -> ChampionDecision:
        before = standing.champion
        return ChampionDecision(
            model=standing.model,
            kind="rolled back",
            version=target.version,
            before=before,
            after=target.version,
            author=author(),
            at=now(),
            reasons=() if self.reason is None else (self.reason,),
            digests=bundle_digests(target, None if before is None else standing.version(before)),
            run_id=run_id,
        )
