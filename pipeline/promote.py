"""Promote: newest version → the gate, against the champion → a line in the ledger → the alias."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from graftline.console import say
from graftline.errors import UserError
from graftline.evaluation.gate import Gate, NotComparableError
from graftline.evaluation.gate_guards import Guard
from graftline.execution import Accelerator
from graftline.files import digest
from graftline.pipeline.promotion.decided_model import open_promotions
from graftline.pipeline.promotion.decision_log import log_decision
from graftline.pipeline.promotion.examination import Examination, Examined
from graftline.pipeline.runs.code_digest import code_digest
from graftline.pipeline.stage import StageResult
from graftline.report.gate_tables import print_gate
from graftline.tracking.ledger import ChampionDecision, Kind, LedgerLine, require_short
from graftline.tracking.names import DATASET_DIGEST, STAGE, TEST_DIGEST
from graftline.tracking.promotions import OvertakenError, Promotions, author, experiment_name, now
from graftline.tracking.registry import ChangedBundleError, RegisteredVersion
from graftline.tracking.standing import Standing, bundle_digests
from graftline.tracking.tracking import Tracking

# packages and files whose code decides
GATE_CODE = (
    "augment",
    "bundle",
    "data",
    "evaluation",
    "pipeline/evaluating/slices.py",
    "pipeline/promotion/examination.py",
)
ATTEMPTS = 3  # to write a line, where others that change nothing come between


@dataclass(frozen=True)
class Verdict:
    """What was decided on a challenger.

    Attributes:
        model: name of the registered model.
        challenger: number of its version.
        champion: number of the version that was champion until then; None: there was none.
        promoted: whether the challenger is champion now.
        first: whether there was no champion to compare it with.
        forced: why the gate was overridden; None: it was not.
        reasons: why the gate refuses it, in sentences; of a promotion that was forced too.
        guards: what the gate looked at; empty where the decision is older.
        compared: what was compared, in a sentence; empty where the decision is older.
        line: of the ledger.
        is_new: whether it was decided now; False: the ledger had the decision already.
    """

    model: str
    challenger: int
    champion: int | None
    promoted: bool
    first: bool
    forced: str | None
    reasons: tuple[str, ...]
    guards: tuple[Guard, ...]
    compared: str
    line: LedgerLine
    is_new: bool = True

    @property
    def sentence(self) -> str:
        """What was decided, for people."""
        where = f"line {self.line.number} of the ledger"
        if self.promoted and not self.is_new:
            return f"version {self.challenger} of {self.model} is the champion already ({where})"
        if not self.promoted:
            stays = "there is still no champion" if self.champion is None else f"version {self.champion} stays champion"
            return f"version {self.challenger} of {self.model} is refused, {stays} ({where})"
        how = "was forced to be" if self.forced else "is"
        return f"version {self.challenger} of {self.model} {how} the champion ({where})"


@dataclass(frozen=True, kw_only=True)
class PromoteResult(StageResult):
    """What the stage ``promote`` decided."""

    verdict: Verdict


@dataclass(frozen=True)
class Promote:
    """The stage ``promote`` (Hydra target of conf/promote.yaml).

    Attributes:
        tracking: where the models are registered.
        gate: what a challenger must show.
        model: name of the registered model; None: the only one.
        version: the challenger; None: the newest version.
        force: why it is promoted even if the gate refuses it; None: it is not.
        copies: folder where this machine keeps the lines of the ledger that it has seen; None: it keeps none.
        accelerator: where both models are run.
    """

    tracking: Tracking
    gate: Gate
    model: str | None = None
    version: int | None = None
    force: str | None = None
    copies: str | None = "ledger"
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        if self.force is not None and not self.force.strip():
            raise UserError("Promote.force is empty: give the reason, which the ledger keeps.")
        require_short("Promote.force", self.force)

    def run(self, directory: Path) -> PromoteResult:
        """Decide on a version, and let the alias follow."""
        verdict = self.decide(directory)
        return PromoteResult(
            facts={
                "model": verdict.model,
                "version": verdict.challenger,
                "champion": verdict.challenger if verdict.promoted else verdict.champion,
                "verdict": "promoted" if verdict.promoted else "refused",
                "reasons": list(verdict.reasons),
                "compared": verdict.compared,
                "forced": verdict.forced,
                "is_new": verdict.is_new,
                "line": verdict.line.number,
                "run_id": verdict.line.decision.run_id,
            },
            metrics={
                f"difference/{guard.name}": dict(zip(("value", "low", "high"), guard.figures, strict=True))
                for guard in verdict.guards
                if len(guard.figures) == 3
            },
            table=[
                ("verdict", verdict.sentence),
                *(("because", reason) for reason in verdict.reasons),
                ("files", os.path.relpath(directory)),
            ],
            verdict=verdict,
        )

    def check(self) -> None:
        """Make sure that a challenger can be decided on which is yet to be trained.

        Raises:
            UserError: the ledger is damaged, the champion's files are not those that were logged, or MLflow does not
                answer.
        """
        registry = self.tracking.registry()
        promotions = open_promotions(self.tracking, self.model, self.copies)
        if promotions.model not in registry.names():
            promotions.require_kept()
            return
        standing = promotions.read()
        standing.require_sound()
        if (champion := standing.opponent()) is not None:
            registry.bundle(champion.uri)

    def decide(self, directory: Path) -> Verdict:
        """Decide on a version; everything that was found lies in ``directory`` then, and in MLflow.

        Raises:
            OvertakenError: another promotion of the same model was faster.
            UserError: there is no such model or version, the champion's files are not those that were logged, the
                images are not here, or MLflow does not answer; nothing is decided then.
        """
        promotions = open_promotions(self.tracking, self.model, self.copies)
        promotions.end_dead_runs()
        standing = promotions.read_sound()
        challenger = standing.version(standing.newest if self.version is None else self.version)
        if challenger.version == standing.champion:
            return _already(standing)
        if (known := self._known(standing, challenger)) is not None:
            if not challenger.is_refused:  # a gate that was killed between line and tag
                promotions.tag(challenger.version, known.line)
            return known
        promotions.open()
        promotions.set_challenger(challenger.version)
        examination = self._examination(standing, challenger)
        return self._record(promotions, standing, challenger, examination, self._examine(examination), directory)

    def _known(self, standing: Standing, challenger: RegisteredVersion) -> Verdict | None:
        """Return the refusal that the ledger has of the same challenger, champion and gate: it would be the same."""
        lines = standing.lines_of(challenger.version)
        if self.force is not None or not lines:
            return None
        decision = lines[-1].decision
        same = decision.before == standing.champion and standing.is_about(lines[-1], standing.champion)
        if decision.kind != "refused" or not same or (decision.digests or {}).get("gate") != self._gate_digest:
            return None
        say(f"Version {challenger.version} was refused before, by the same gate against the same champion.")
        return Verdict(
            model=standing.model,
            challenger=challenger.version,
            champion=standing.champion,
            promoted=False,
            first=decision.compared_with is None,
            forced=None,
            reasons=decision.reasons,
            guards=(),
            compared="",
            line=lines[-1],
            is_new=False,
        )

    @property
    def _gate_digest(self) -> str:
        return digest({"settings": asdict(self.gate), "code": code_digest(GATE_CODE)})

    def _examination(self, standing: Standing, challenger: RegisteredVersion) -> Examination:
        """Return what is to be looked at."""
        rolled_back = standing.rollback_of(challenger.version)
        return Examination(
            gate=self.gate,
            tracking=self.tracking,
            challenger=challenger,
            champion=standing.opponent(challenger.version),
            rollback_reason=None if rolled_back is None else _told(rolled_back),
            accelerator=self.accelerator,
        )

    def _examine(self, examination: Examination) -> Examined:
        """Examine; a challenger that was changed or cannot be compared is refused, as is whatever fails if forced."""
        if self.force is not None:
            try:
                _ = examination.opened_challenger
            except UserError as error:
                raise UserError(f"Nobody can tell what would be promoted: {error}") from error
        try:
            return examination.run()
        except ChangedBundleError as error:
            if error.uri != examination.challenger.uri and self.force is None:
                raise  # nothing was compared, which is no fault of the challenger's
            return Examined.failed("bundle", str(error))
        except NotComparableError as error:
            return Examined.failed("classes", str(error))
        except UserError as error:
            if self.force is None:
                raise
            return Examined.failed("examination", str(error))

    def _record(
        self,
        promotions: Promotions,
        standing: Standing,
        challenger: RegisteredVersion,
        examination: Examination,
        examined: Examined,
        directory: Path,
    ) -> Verdict:
        """Note what was found in a run of its own; when MLflow has all of it, decide."""
        result = examined.result
        title = _title(standing, examination)
        print_gate(result.guards, title)
        say(result.compared)
        kind: Kind = "promoted" if result.passed else "refused" if self.force is None else "forced"
        if self.force is not None and result.passed:
            say("The gate lets it pass: nothing has to be forced.")
        tracking = replace(self.tracking, experiment=None, parent_run_id=None, system_metrics=False)
        with tracking.start(
            run_name=title,
            experiment=experiment_name(standing.model),
            directory=directory,
            tags={STAGE: "promote"},
        ) as run:
            decision = self._decision(standing, examination, examined, kind, run.id)
            decision = log_decision(run, decision, examined, self.gate, directory)
            run.settle()  # nothing is decided on half the facts
            line = _append(promotions, standing, decision)
            promotions.finish(line)
            promotions.tag(challenger.version, line)
            run.rename(f"{title}: {kind}")
            run.set_tags({"graftline.verdict": kind, "graftline.ledger_line": str(line.number)})
        return Verdict(
            model=standing.model,
            challenger=challenger.version,
            champion=standing.champion,
            promoted=decision.moves,
            first=examination.champion is None,
            forced=decision.forced,
            reasons=result.reasons,
            guards=result.guards,
            compared=result.compared,
            line=line,
        )

    def _decision(
        self, standing: Standing, examination: Examination, examined: Examined, kind: Kind, run_id: str
    ) -> ChampionDecision:
        result, challenger, champion = examined.result, examination.challenger, examination.champion
        digests = bundle_digests(challenger, champion)
        for name, tag in (("dataset", DATASET_DIGEST), ("test", TEST_DIGEST)):
            digests[name] = challenger.tags.get(tag, "unknown")
        if not examined.is_of_the_moment:
            digests["gate"] = self._gate_digest
        return ChampionDecision(
            model=standing.model,
            kind=kind,
            version=challenger.version,
            before=standing.champion,
            after=standing.champion if kind == "refused" else challenger.version,
            author=author(),
            at=now(),
            compared_with=None if champion is None else champion.version,
            reasons=result.reasons,
            forced=self.force if kind == "forced" else None,
            headline=_headline(result.guards),
            digests=digests,
            figures={guard.name: guard.figures for guard in result.guards if guard.told and guard.figures},
            run_id=run_id,
        )


def _append(promotions: Promotions, standing: Standing, decision: ChampionDecision) -> LedgerLine:
    """Write the line, as long as nothing that it is based on has changed meanwhile.

    Raises:
        OvertakenError: something has.
    """
    for attempt in range(ATTEMPTS):
        current = promotions.read()
        news = current.lines[len(standing.lines) :]
        on_ours = [line for line in news if line.decision.version == decision.version]
        if current.champion != standing.champion or current.decided != standing.decided or on_ours:
            told = f" ({news[-1].decision.kind} version {news[-1].decision.version})" if news else ""
            raise OvertakenError(
                f"The champion of {standing.model} or this version was decided on meanwhile{told}: nothing was done, "
                "run the same command again."
            )
        try:
            return promotions.append(current, decision)
        except OvertakenError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def _already(standing: Standing) -> Verdict:
    """Return the verdict on a version that is champion."""
    line = next(
        line for line in reversed(standing.lines) if line.decision.after == standing.champion != line.decision.before
    )
    assert standing.champion is not None
    return Verdict(
        model=standing.model,
        challenger=standing.champion,
        champion=line.decision.before,
        promoted=True,
        first=line.decision.compared_with is None,
        forced=line.decision.forced,
        reasons=line.decision.reasons,
        guards=(),
        compared="",
        line=line,
        is_new=False,
    )


def _headline(guards: Sequence[Guard]) -> str:
    """Return what the score that decides came to."""
    first = guards[0]
    return f"{first.name} {first.difference}".strip()


def _title(standing: Standing, examination: Examination) -> str:
    champion = examination.champion
    against = "no champion" if champion is None else f"version {champion.version}"
    return f"{standing.model}: version {examination.challenger.version} against {against}"


def _told(line: LedgerLine) -> str:
    """Say that a version was rolled back, and why."""
    decision = line.decision
    why = f": {' '.join(decision.reasons)}" if decision.reasons else "."
    return f"Version {decision.before} was champion and was rolled back (line {line.number} of the ledger){why}"
