"""The results: one JSON line per run, failed ones included, and which test images were right beside it.

The file is only added to: of a run that is there twice, the later line counts.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RESULTS, CORRECT = "results.jsonl", "correct"  # file and folder, in the folder of a benchmark


@dataclass(frozen=True)
class Run:
    """What was asked for.

    Attributes:
        image_set: name of the set.
        peer: who trains, a key of `benchmarks.accuracy.runners.PEERS`.
        minutes: the budget; None for a peer that has none.
        seed: of the training.
    """

    image_set: str
    peer: str
    minutes: float | None
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for files."""
        budget = "default" if self.minutes is None else f"{self.minutes:g}min"
        return f"{self.image_set}-{self.peer}-{budget}-{self.seed}"


@dataclass(frozen=True)
class Origin:
    """What a run was made with.

    Attributes:
        set_digest: of the images, as it lies beside them.
        code: digest of graftline's code, or of the peers'.
        commit: graftline's version and commit, to be read.
        cores: that the run could use.
    """

    set_digest: str = ""
    code: str = ""
    commit: str = ""
    cores: int = 0


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        run: what was asked for.
        seconds: of the whole process, test included.
        trained_seconds: from its start to the trained model.
        accuracy: of the test split, 0 to 1.
        num_images: of the test split.
        facts: what the peer said about itself, such as epochs.
        origin: what it was made with.
    """

    run: Run
    seconds: float
    trained_seconds: float
    accuracy: float
    num_images: int
    facts: dict[str, Any] = field(default_factory=dict)
    origin: Origin = Origin()


@dataclass(frozen=True)
class Failure:
    """A run without a result.

    Attributes:
        run: what was asked for.
        message: why it ended.
        origin: what it was made with.
    """

    run: Run
    message: str
    origin: Origin = Origin()


def add(folder: Path, one: Result | Failure) -> None:
    """Append a result or a failure."""
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(one)) + "\n")


def read(folder: Path) -> dict[Run, Result]:
    """Return the results that are there."""
    return {run: last for run, last in _read_all(folder).items() if isinstance(last, Result)}


def read_failures(folder: Path) -> dict[Run, Failure]:
    """Return the runs that failed when they were last tried."""
    return {run: last for run, last in _read_all(folder).items() if isinstance(last, Failure)}


def _read_all(folder: Path) -> dict[Run, Result | Failure]:
    file, found = folder / RESULTS, {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        values = json.loads(line)
        run, origin = Run(**values.pop("run")), Origin(**values.pop("origin", {}))
        kind: type[Result | Failure] = Failure if "message" in values else Result
        found[run] = kind(run=run, origin=origin, **values)
    return found


def correct_file(folder: Path, run: Run) -> Path:
    """Return the file with the correctness of each test image, (N,) bool, in the order of their names."""
    return folder / CORRECT / f"{run.name}.npy"


def read_correct(folder: Path, runs: Iterable[Run]) -> npt.NDArray[np.float64]:
    """Return how often each test image was right, (N,), 0 to 1: the mean over runs of several seeds."""
    found: npt.NDArray[np.float64] = np.mean([np.load(correct_file(folder, run)) for run in runs], axis=0)
    return found
