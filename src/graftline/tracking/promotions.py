"""Who is champion, by MLflow's aliases and by the ledger, which lies in MLflow too, where all machines see it.

A model has the experiment "NAME promotions", with a run for each decision and one that is the ledger: its parameter
``000007`` is line 7, ``000007 done`` holds its hash once the alias was moved after it, and ``000007 ended`` once the
rollback that it is came to its end. MLflow never changes a parameter that is there: of two who write the same line at
once, one wins and the other is told.

A promotion is decided when its line is there. The alias moves after that; if it does not, whoever comes next moves it.
"""

import logging
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from graftline.errors import UserError, first_line
from graftline.files import digest, write_text
from graftline.tracking.dead_runs import end_dead_runs
from graftline.tracking.ledger import Author, ChampionDecision, LedgerLine
from graftline.tracking.names import (
    CHALLENGER,
    CHAMPION,
    DECISION,
    PREVIOUS,
    SCHEDULER,
    STAGE,
    registered_name,
)
from graftline.tracking.standing import Standing, bundle_digests, find_loss
from graftline.tracking.tracking import Tracking, user_name
from graftline.tracking.uri import absolute_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

LEDGER = "graftline.ledger"  # tag of the experiment: the run that has the lines

MOST_LETTERS = 6000  # of a parameter (mlflow.utils.validation.MAX_PARAM_VAL_LENGTH); MLflow cuts what is longer
_CUTS = (300, 100, 0)  # letters of a reason, until the line fits
_DONE, _ENDED = " done", " ended"


class OvertakenError(UserError):
    """Another decision on the same model was faster."""


def experiment_name(model: str) -> str:
    """Return the name of the experiment with the decisions on a model."""
    return f"{model} promotions"


def author() -> Author:
    """Return who decides in this process."""
    return Author(user_name(), platform.node(), os.environ.get(SCHEDULER))


def now() -> str:
    """Return the present, as a decision notes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Promotions:
    """Read and write the decisions on a registered model.

    Attributes:
        tracking: where the model is registered.
        model: its name.
        copies: folder where this machine keeps the lines that it has seen; None: it keeps none.
    """

    tracking: Tracking
    model: str
    copies: Path | None = None

    def read(self) -> Standing:
        """Return how things stand at one moment: while the aliases were read, the ledger has not changed.

        Raises:
            UserError: there is no such model, its ledger was deleted, or MLflow does not answer.
        """
        seen = self._copied()  # before MLflow is asked: what is decided meanwhile is in neither
        found = self._ask(self._find_ledger)
        while True:
            versions = self.tracking.registry().versions(self.model)
            before, found = found, self._ask(self._find_ledger)
            if found == before:
                break
        aliases = {alias: version.version for version in versions for alias in version.aliases}
        run, params = found
        lines = _read_lines(params)
        return Standing(
            self.model,
            versions,
            aliases,
            lines=lines,
            loss=find_loss(seen, lines, self._copy),
            done=dict(_ending(params, _DONE)),
            ended=frozenset(number for number, _ in _ending(params, _ENDED)),
            ledger_run=run,
        )

    def read_sound(self) -> Standing:
        """Return how things stand, once what was interrupted is done and what was done by hand is noted.

        Raises:
            UserError: as `read`; or the chain is broken.
        """
        standing = self.read()
        standing.require_sound()
        if (line := standing.unfinished) is not None:
            if standing.interrupted is not None:
                logger.info(f"{line.sentence} It was interrupted before the alias moved: that is done now.")
            self.finish(line)
            standing = self.read()
        if standing.was_moved_by_hand:
            decision = self._by_hand(standing)
            logger.warning(f"{standing.by_hand} The ledger notes it.")
            self.finish(self.append(standing, decision))
            standing = self.read()
        self._keep_copy(standing)
        return standing

    def require_kept(self) -> None:
        """Make sure that MLflow has the lines that this machine has seen, also where it has no such model any more.

        Raises:
            UserError: it has not, as where its database was made anew; or as `read`.
        """
        seen, (_, params) = self._copied(), self._ask(self._find_ledger)
        if (loss := find_loss(seen, _read_lines(params), self._copy)) is not None:
            raise UserError(loss)

    def open(self) -> None:
        """Make the ledger, where there is none yet.

        Raises:
            UserError: MLflow does not answer.
        """
        if self._ask(self._find_ledger)[0] is None:
            self._create_ledger()

    def append(self, standing: Standing, decision: ChampionDecision) -> LedgerLine:
        """Write a decision as the next line.

        Args:
            standing: that the decision was made on.
            decision: what is decided.

        Raises:
            OvertakenError: the next line is there already, another one than this.
            UserError: the decision does not fit into a line, or MLflow does not answer.
        """
        line = _next_line(standing, decision)
        run = standing.ledger_run or self._create_ledger()
        if not self._ask(lambda client: _write_once(client, run, _key(line.number), line.text)):
            raise OvertakenError(
                f"Another decision on {self.model} was faster (line {line.number} of the ledger), on which this one is "
                "not based: run the same command again."
            )
        return line

    def finish(self, line: LedgerLine) -> None:
        """Move the aliases if a line says so, and note that it is done; doing it twice changes nothing.

        Whoever comes late, after others have finished the line and decided anew, moves nothing. Nor does who finds the
        alias where it belongs, or moved by hand since.

        Raises:
            UserError: the version was deleted, which is noted as done, too; or MLflow does not answer.
        """
        standing = self.read()
        if line.number in standing.done:
            return
        if standing.interrupted == line:
            self._move(standing, line)
            standing = self.read()
            latest = standing.last_change
            if latest is not None and latest != line and standing.decided in standing.former_champions:
                self._move(standing, latest)  # others have decided anew while we moved
        else:
            self._note(standing, line, _DONE)
            if line.decision.moves and line.decision.after not in standing.former_champions:
                raise UserError(
                    f"Version {line.decision.after} of {self.model} was deleted before it became champion (line "
                    f"{line.number} of the ledger): the champion is who it was."
                )
        self._keep_copy(standing)

    def end(self, line: LedgerLine) -> None:
        """Note that the stage which a line is of has come to its end: whoever runs it again means another decision.

        Raises:
            UserError: MLflow does not answer.
        """
        self._note(self.read(), line, _ENDED)

    def _move(self, standing: Standing, line: LedgerLine) -> None:
        """Let the aliases be as a line has it, the last change, and note that it is done.

        The champion's comes last, and the note right after it: whoever finds that the alias is not as a line without a
        note has it may then take it for one that was not moved yet, not for one that was moved back by hand.
        """
        assert standing.decided is not None
        champion, before = standing.version(standing.decided).version, standing.predecessors

        def move(client: "MlflowClient") -> None:
            if before:
                client.set_registered_model_alias(self.model, PREVIOUS, str(before[0]))
            elif PREVIOUS in standing.aliases:
                client.delete_registered_model_alias(self.model, PREVIOUS)
            if standing.aliases.get(CHALLENGER) == champion:
                client.delete_registered_model_alias(self.model, CHALLENGER)
            client.set_registered_model_alias(self.model, CHAMPION, str(champion))

        self._ask(move)
        self._note(standing, line, _DONE)

    def _note(self, standing: Standing, line: LedgerLine, what: str) -> None:
        run = standing.ledger_run
        assert run is not None, "a line is in a ledger"
        self._ask(lambda client: _write_once(client, run, _key(line.number) + what, line.hash))

    def set_challenger(self, version: int) -> None:
        """Let the alias ``challenger`` name a version."""
        self._ask(lambda client: client.set_registered_model_alias(self.model, CHALLENGER, str(version)))

    def tag(self, version: int, line: LedgerLine) -> None:
        """Note on a version what was decided on it."""
        text = f"{line.decision.kind} (line {line.number})"
        self._ask(lambda client: client.set_model_version_tag(self.model, str(version), DECISION, text))

    def _by_hand(self, standing: Standing) -> ChampionDecision:
        """Return the line that says that somebody moved the alias."""
        now_is = standing.champion
        return ChampionDecision(
            model=self.model,
            kind="moved by hand",
            version=now_is,
            before=standing.decided,
            after=now_is,
            author=author(),
            at=now(),
            reasons=(standing.by_hand,),
            digests=None if now_is is None else bundle_digests(standing.version(now_is), None),
        )

    def end_dead_runs(self) -> None:
        """Mark the decisions KILLED whose process on this machine ended without a word."""
        end_dead_runs(self.tracking.registry(), experiment_name(self.model))

    @property
    def _copy(self) -> Path | None:
        """The file with the lines that this machine has seen, of this model in this store."""
        if self.copies is None:
            return None
        return self.copies / f"{registered_name(self.model)}-{digest(absolute_uri(self.tracking.uri))[:8]}.jsonl"

    def _copied(self) -> list[str]:
        file = self._copy
        if file is None or not file.is_file():
            return []
        return file.read_text(encoding="utf-8").split("\n")[:-1]  # a line may have other separators in it, as U+2028

    def _keep_copy(self, standing: Standing) -> None:
        texts = [line.text for line in standing.lines]
        if self._copy is None or texts == self._copied():
            return
        try:
            write_text(self._copy, "".join(f"{text}\n" for text in texts))
        except OSError as error:
            logger.warning(f"The copy of the ledger cannot be written ({first_line(error)}).")

    def _ask(self, question: "Callable[[MlflowClient], T]") -> T:
        return self.tracking.registry().ask(question)

    def _find_ledger(self, client: "MlflowClient") -> tuple[str | None, Mapping[str, str]]:
        """Return the run that is the ledger and its parameters; None and nothing where there is none yet."""
        experiment = client.get_experiment_by_name(experiment_name(self.model))
        if experiment is None:
            return None, {}
        run = experiment.tags.get(LEDGER)
        if experiment.lifecycle_stage == "deleted" or run is None:
            raise UserError(
                f"The experiment '{experiment.name}' holds the ledger of {self.model}, but it was "
                f"{'deleted' if run else 'made by others'}: restore it with `mlflow experiments restore -x "
                f"{experiment.experiment_id}`, or rename it."
            )
        found = client.get_run(run)
        if found.info.lifecycle_stage == "deleted":
            raise UserError(
                f"The ledger of {self.model} was deleted: restore it with `mlflow runs restore --run-id {run}`."
            )
        return run, found.data.params

    def _create_ledger(self) -> str:
        """Make the experiment with its ledger; of two who do so at once, both get the one that was first.

        It is made under another name and renamed when it is whole, as files are that must not be seen half.
        """
        name = experiment_name(self.model)

        def create(client: "MlflowClient") -> str:
            identity = os.urandom(4).hex()
            location = self.tracking.artifact_location(name)
            experiment = client.create_experiment(f"{name}, being made {identity}", artifact_location=location)
            run: str = client.create_run(experiment, run_name="ledger", tags={STAGE: "ledger"}).info.run_id
            client.set_experiment_tag(experiment, LEDGER, run)
            try:
                client.rename_experiment(experiment, name)
                client.set_terminated(run)
            except Exception:  # MLflow has no class of its own for a name that is taken
                client.delete_experiment(experiment)
                first, _ = self._find_ledger(client)
                if first is None:
                    raise
                return first
            return run

        return self._ask(create)


def _read_lines(params: Mapping[str, str]) -> tuple[LedgerLine, ...]:
    return tuple(LedgerLine.read(text) for key, text in sorted(params.items()) if key.isdigit())


def _key(number: int) -> str:
    return f"{number:06}"


def _ending(params: Mapping[str, str], what: str) -> list[tuple[int, str]]:
    """Return the numbers of the lines with a note, and what it holds."""
    return [(int(key.removesuffix(what)), value) for key, value in params.items() if key.endswith(what)]


def _write_once(client: "MlflowClient", run_id: str, key: str, value: str) -> bool:
    """Set a parameter; returns False where it is there with another value."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(run_id, key, value)
    except MlflowException:
        there = client.get_run(run_id).data.params.get(key)
        if there is None:
            raise
        return there == value or not key.isdigit()
    return client.get_run(run_id).data.params.get(key) == value


def _next_line(standing: Standing, decision: ChampionDecision) -> LedgerLine:
    """Return the next line, shortened until it fits: the verdict's file, whose digest it has, tells the rest.

    Raises:
        UserError: it does not fit even so.
    """
    before = standing.lines[-1] if standing.lines else None
    line = LedgerLine.after(before, decision)
    for most in _CUTS:
        if len(line.text) > MOST_LETTERS:
            reasons = (*(reason[:most] for reason in decision.reasons[:5] if most), "…")
            line = LedgerLine.after(before, replace(decision, reasons=reasons, figures=None))
    if len(line.text) > MOST_LETTERS:
        raise UserError(
            f"The decision does not fit into a line of the ledger of {decision.model} ({len(line.text):,} characters, "
            f"there is room for {MOST_LETTERS:,}): give a shorter reason."
        )
    return line
