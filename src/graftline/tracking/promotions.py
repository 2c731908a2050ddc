"""Who is champion, by MLflow's aliases and by the ledger, which lies in MLflow too, where all machines see it.

A model has the experiment "NAME promotions", with a run for each decision and one that is the ledger: its parameter
``000007`` is line 7, and ``000007 done`` says that the alias was moved after it. MLflow never changes a parameter that
is there: of two who write the same line at once, one wins and the other is told.

A promotion is decided when its line is there. The alias moves after that; if it does not, whoever comes next moves it.
"""

import getpass
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from graftline.errors import UserError
from graftline.tracking.ledger import Author, Decision, LedgerLine, find_break, predecessors
from graftline.tracking.registry import RegisteredVersion, Registry
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"  # aliases
LEDGER = "graftline.ledger"  # tag of the experiment: the run that has the lines
SCHEDULER = "GRAFTLINE_SCHEDULER"  # environment variable: what started the job

MOST_LETTERS = 6000  # of a parameter (mlflow.utils.validation.MAX_PARAM_VAL_LENGTH); MLflow cuts what is longer
_DONE = " done"


class OvertakenError(UserError):
    """Another decision on the same model was faster."""


def experiment_name(model: str) -> str:
    """Return the name of the experiment with the decisions on a model."""
    return f"{model} promotions"


def author() -> Author:
    """Return who decides in this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return Author(user, platform.node(), os.environ.get(SCHEDULER))


def now() -> str:
    """Return the present, as a decision notes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Standing:
    """How things stand with a model: its versions and aliases, and what the ledger says, read at one moment.

    Attributes:
        model: name of the registered model.
        versions: all of them, the oldest first.
        aliases: number of the version by alias.
        lines: of the ledger.
        done: numbers of the lines whose alias was moved.
        ledger_run: that has the lines; None: nothing was decided yet.
    """

    model: str
    versions: tuple[RegisteredVersion, ...]
    aliases: dict[str, int]
    lines: tuple[LedgerLine, ...] = ()
    done: frozenset[int] = frozenset()
    ledger_run: str | None = None

    @property
    def champion(self) -> int | None:
        """The version that the alias points to."""
        return self.aliases.get(CHAMPION)

    @property
    def decided(self) -> int | None:
        """The champion by the ledger."""
        return self.lines[-1].decision.after if self.lines else None

    @cached_property
    def interrupted(self) -> LedgerLine | None:
        """The decision whose alias is yet to be moved: whoever wrote it did not come as far."""
        moves = [line for line in self.lines if line.decision.moves]
        if not moves or moves[-1].number in self.done or self.champion == self.decided:
            return None
        return moves[-1] if self.champion == moves[-1].decision.before else None

    @property
    def was_moved_by_hand(self) -> bool:
        """Whether somebody else moved the alias, without the ledger."""
        return self.champion != self.decided and self.interrupted is None

    @property
    def newest(self) -> int:
        """The version that was registered last.

        Raises:
            UserError: there is none.
        """
        if not self.versions:
            raise UserError(f"The registered model '{self.model}' has no versions: train one.")
        return self.versions[-1].version

    @property
    def predecessors(self) -> list[int]:
        """Former champions that are still registered, the last one first."""
        known = {version.version for version in self.versions}
        return [number for number in predecessors(self.lines) if number in known]

    def rollback_of(self, version: int) -> LedgerLine | None:
        """Return the line that rolled a version back, None if it never was or has become champion again."""
        for line in reversed(self.lines):
            if line.decision.after == version != line.decision.before:
                return None
            if line.decision.kind == "rolled back" and line.decision.before == version:
                return line
        return None

    def version(self, number: int) -> RegisteredVersion:
        """Return a version.

        Raises:
            UserError: it is not registered, or was deleted.
        """
        for version in self.versions:
            if version.version == number:
                return version
        there = ", ".join(str(version.version) for version in self.versions) or "none"
        raise UserError(f"The registered model '{self.model}' has no version {number}: there are {there}.")


@dataclass(frozen=True)
class Promotions:
    """Read and write the decisions on a registered model.

    Attributes:
        tracking: where the model is registered.
        model: its name.
    """

    tracking: Tracking
    model: str

    def read(self) -> Standing:
        """Return how things stand.

        Raises:
            UserError: there is no such model, its ledger was deleted, or MLflow does not answer.
        """
        versions = self._registry.versions(self.model)
        aliases = {alias: version.version for version in versions for alias in version.aliases}
        standing = Standing(self.model, versions, aliases)
        return self._ask(lambda client: self._with_lines(client, standing))

    def read_sound(self) -> Standing:
        """Return how things stand, once what was interrupted is done and what was done by hand is noted.

        Raises:
            UserError: as `read`; or the chain is broken.
        """
        standing = self.read()
        if (broken := find_break(standing.lines)) is not None:
            raise UserError(f"{broken} Nothing is decided on it: `history model={self.model}` shows the lines.")
        if standing.interrupted is not None:
            self.finish(standing, standing.interrupted)
            standing = self.read()
        if standing.was_moved_by_hand:
            self.append(standing, self._by_hand(standing))
            standing = self.read()
        return standing

    def open(self) -> None:
        """Make the ledger, where there is none yet.

        Raises:
            UserError: MLflow does not answer.
        """
        if self._ask(self._ledger_run) is None:
            self._create_ledger()

    def append(self, standing: Standing, decision: Decision) -> LedgerLine:
        """Write a decision as the next line.

        Args:
            standing: that the decision was made on.
            decision: what is decided.

        Raises:
            OvertakenError: the next line is there already, another one than this.
            UserError: MLflow does not answer.
        """
        line = LedgerLine.after(standing.lines[-1] if standing.lines else None, decision)
        if len(line.text) > MOST_LETTERS:
            line = LedgerLine.after(standing.lines[-1] if standing.lines else None, _shortened(decision))
        run = standing.ledger_run or self._create_ledger()
        if not self._ask(lambda client: _write_once(client, run, _key(line.number), line.text)):
            raise OvertakenError(
                f"Another decision on {self.model} was faster (line {line.number} of the ledger), on which this one is "
                "not based: run the same command again."
            )
        return line

    def finish(self, standing: Standing, line: LedgerLine) -> None:
        """Move the aliases as a line says, and note that it is done; doing it twice changes nothing.

        Raises:
            UserError: the version was deleted, or MLflow does not answer.
        """
        decision = line.decision
        assert decision.after is not None
        version = standing.version(decision.after)
        lines = standing.lines if line in standing.lines else (*standing.lines, line)
        before = replace(standing, lines=lines).predecessors
        run = standing.ledger_run or self._ask(self._ledger_run)
        assert run is not None

        def move(client: "MlflowClient") -> None:
            if before:
                client.set_registered_model_alias(self.model, PREVIOUS, str(before[0]))
            elif PREVIOUS in standing.aliases:
                client.delete_registered_model_alias(self.model, PREVIOUS)
            client.set_registered_model_alias(self.model, CHAMPION, str(version.version))
            if standing.aliases.get(CHALLENGER) == version.version:
                client.delete_registered_model_alias(self.model, CHALLENGER)
            _write_once(client, run, _key(line.number) + _DONE, now())

        self._ask(move)

    def set_challenger(self, version: int) -> None:
        """Let the alias ``challenger`` name a version."""
        self._ask(lambda client: client.set_registered_model_alias(self.model, CHALLENGER, str(version)))

    def note(self, version: int, line: LedgerLine) -> None:
        """Note on a version what was decided on it."""
        text = f"{line.decision.kind} (line {line.number})"
        self._ask(lambda client: client.set_model_version_tag(self.model, str(version), "graftline.decision", text))

    def _by_hand(self, standing: Standing) -> Decision:
        """Return the line that says that somebody moved the alias."""
        now_is, was = standing.champion, standing.decided
        if was is not None and was not in {version.version for version in standing.versions}:
            reason = f"Version {was} was deleted from the registry."
        elif now_is is None:
            reason = f"The alias '{CHAMPION}' was removed from version {was} by hand."
        else:
            reason = f"The alias '{CHAMPION}' was set to version {now_is} by hand."
        return Decision(
            model=self.model,
            kind="moved by hand",
            version=now_is,
            before=was,
            after=now_is,
            author=author(),
            at=now(),
            reasons=(f"{reason} It was noticed then, by {author()}.",),
        )

    @property
    def _registry(self) -> Registry:
        return self.tracking.registry()

    def _ask(self, question: "Callable[[MlflowClient], T]") -> T:
        return self._registry.ask(question)

    def _with_lines(self, client: "MlflowClient", standing: Standing) -> Standing:
        run = self._ledger_run(client)
        if run is None:
            return standing
        params = client.get_run(run).data.params
        lines = [LedgerLine.read(text) for key, text in sorted(params.items()) if key.isdigit()]
        done = {int(key.removesuffix(_DONE)) for key in params if key.endswith(_DONE)}
        return replace(standing, lines=tuple(lines), done=frozenset(done), ledger_run=run)

    def _ledger_run(self, client: "MlflowClient") -> str | None:
        """Return the run that is the ledger, None where there is none yet."""
        experiment = client.get_experiment_by_name(experiment_name(self.model))
        if experiment is None:
            return None
        run = experiment.tags.get(LEDGER)
        if experiment.lifecycle_stage == "deleted" or run is None:
            raise UserError(
                f"The experiment '{experiment.name}' holds the ledger of {self.model}, but it was "
                f"{'deleted' if run else 'made by others'}: restore it with `mlflow experiments restore -x "
                f"{experiment.experiment_id}`, or rename it."
            )
        if client.get_run(run).info.lifecycle_stage == "deleted":
            raise UserError(
                f"The ledger of {self.model} was deleted: restore it with `mlflow runs restore --run-id {run}`."
            )
        return run

    def _create_ledger(self) -> str:
        """Make the experiment with its ledger; of two who do so at once, both get the one that was first.

        It is made under another name and renamed when it is whole, as files are that must not be seen half.
        """
        name = experiment_name(self.model)

        def create(client: "MlflowClient") -> str:
            identity = os.urandom(4).hex()
            location = self.tracking.artifact_location(name)
            experiment = client.create_experiment(f"{name}, being made {identity}", artifact_location=location)
            run: str = client.create_run(experiment, run_name="ledger", tags={"graftline.stage": "ledger"}).info.run_id
            client.set_experiment_tag(experiment, LEDGER, run)
            try:
                client.rename_experiment(experiment, name)
                client.set_terminated(run)
            except Exception:  # MLflow has no class of its own for a name that is taken
                client.delete_experiment(experiment)
                first = self._ledger_run(client)
                if first is None:
                    raise
                return first
            return run

        return self._ask(create)


def _key(number: int) -> str:
    return f"{number:06}"


def _write_once(client: "MlflowClient", run_id: str, key: str, value: str) -> bool:
    """Set a parameter; returns False where it is there with another value."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_param(run_id, key, value)
    except MlflowException:
        there = client.get_run(run_id).data.params.get(key)
        if there is None:
            raise
        return there == value or key.endswith(_DONE)
    return client.get_run(run_id).data.params.get(key) == value


def _shortened(decision: Decision) -> Decision:
    """Return a decision that fits into a line: the verdict's file, whose digest it has, tells the rest."""
    return replace(decision, reasons=(*(reason[:300] for reason in decision.reasons[:5]), "…"), figures=None)
