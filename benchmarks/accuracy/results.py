"""The results: one JSON line per run, in a file that is only added to, and which test images were right beside it."""

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
class Result:
    """What came of it.

    Attributes:
        run: what was asked for.
        seconds: of the whole process, test included.
        trained_seconds: from its start to the trained model.
        accuracy: of the test split, 0 to 1.
        num_images: of the test split.
        facts: what the peer said about itself, such as epochs.
    """

    run: Run
    seconds: float
    trained_seconds: float
    accuracy: float
    num_images: int
    facts: dict[str, Any] = field(default_factory=dict)


def add(folder: Path, result: Result) -> None:
    """Append a result."""
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def read(folder: Path) -> dict[Run, Result]:
    """Return the results that are there; of a run that is there twice, the later one."""
    file = folder / RESULTS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = [json.loads(line) for line in lines]
    results = [Result(**{**values, "run": Run(**values["run"])}) for values in found]
    return {result.run: result for result in results}


def correct_file(folder: Path, run: Run) -> Path:
    """Return the file with the correctness of each test image, (N,) bool, in the order of their names."""
    return folder / CORRECT / f"{run.name}.npy"


def read_correct(folder: Path, runs: Iterable[Run]) -> npt.NDArray[np.float64]:
    """Return how often each test image was right, (N,), 0 to 1: the mean over runs of several seeds."""
    found: npt.NDArray[np.float64] = np.mean([np.load(correct_file(folder, run)) for run in runs], axis=0)
    return found
