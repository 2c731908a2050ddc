"""What a schedule runs: a command with its directory, variables, time-out and log, whatever the engine."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from graftline.errors import UserError

LOGS = Path("outputs") / "schedule"  # below the working directory
MARK = "graftline schedule"  # how what we installed is told from what others did


@dataclass(frozen=True)
class JobOptions:
    """What of a job can be chosen (Hydra target of the node ``job``).

    Attributes:
        name: of the schedule, by which it is replaced and removed; None for that of the data set.
        hours: after which a run is stopped.
    """

    name: str | None = None
    hours: float = 12.0

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[\w.-]+", self.name):
            raise UserError(f"JobOptions.name={self.name} is no name: use letters, digits, '_', '-' and '.'.")
        if not 0 < self.hours <= 24 * 365:  # also catches NaN
            raise UserError(f"JobOptions.hours is {self.hours}, it must be above 0, and at most a year.")

    @property
    def seconds(self) -> int:
        """The time-out, at least a second."""
        return max(1, round(3600 * self.hours))


@dataclass(frozen=True)
class Job:
    """A command that is to run at set times.

    Attributes:
        name: of the schedule.
        stage: what runs, such as ``retrain``.
        overrides: its configuration, each a word of the command line.
        python: the environment's interpreter, absolute.
        directory: where it runs, absolute.
        seconds: after which it is stopped.
        variables: of its environment, beside what the engine gives it.
        config_dir: folder of the user's own options that is named beside conf/, absolute; None: none is.
    """

    name: str
    stage: str
    overrides: tuple[str, ...]
    python: Path
    directory: Path
    seconds: int
    variables: dict[str, str] = field(default_factory=dict)
    config_dir: Path | None = None

    def __post_init__(self) -> None:
        words = [*self.arguments, str(self.python), str(self.directory), *self.variables.values()]
        if odd := [word for word in words if re.search(r"[\x00-\x1f\x7f]", word)]:
            raise UserError(
                f"{odd[0]!a} holds a line break or another sign that no schedule can carry: put it into a file of "
                "conf/experiment."
            )

    @property
    def words(self) -> list[str]:
        """The command."""
        return [str(self.python), "-m", "graftline", *self.arguments]

    @property
    def arguments(self) -> list[str]:
        """What the command gives to graftline."""
        options = [] if self.config_dir is None else ["--config-dir", str(self.config_dir)]
        return [self.stage, *options, *self.overrides]

    @property
    def slug(self) -> str:
        """The name as file and object names have it: small letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", f"graftline-{self.stage}-{self.name}".lower()).strip("-")

    @property
    def log(self) -> Path:
        """The file that everything printed is appended to, relative to the directory."""
        return LOGS / f"{self.name}.log"

    @property
    def mark(self) -> str:
        """The sentence by which what was installed is found again."""
        return f"{MARK} {self.name} in {self.directory}"


def shell_word(text: str) -> str:
    """Return a word as a shell takes it, in the quotes that are easier to read.

    >>> print(shell_word("seed=1"), shell_word("data.path='my photos'"), shell_word("name='$5'"))
    seed=1 "data.path='my photos'" 'name='"'"'$5'"'"''
    """
    return f'"{text}"' if "'" in text and not re.search(r"""["$`\\!]""", text) else shlex.quote(text)
