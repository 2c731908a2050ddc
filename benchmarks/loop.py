"""The daily loop in whole processes, and the parts of a training: `python benchmarks/loop.py [ROUNDS] [key=value …]`.

Each round runs every command in turn; the table gives medians, in seconds on the clock and of CPU time (user and
system, further processes included), which a busy machine changes less. The parts of a training are those of a further
process, which times the functions that `PARTS` names; what a part calls of another part counts there.

Overrides after the number of rounds go to the trainings: ``data=folder data.path=… backbone=lenet5``.
"""

import functools
import importlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
ROUNDS = 3
BATCH = 64  # images per call of the bare pass

# What is typed in a clone; none of it writes anything.
COMMANDS = {
    "help": ["help"],
    "an unknown key": ["train", "bakbone=lite0"],
    "a wrong value": ["train", "train.batch_size=many"],
    "a wrong name": ["train", "backbone=efficientnet_bo"],
    "config": ["config"],
}

# The functions that do a part of a training.
PARTS = {
    "ingest": ["graftline.data.ingest.Ingest.run"],
    "network": ["graftline.backbones.backbone.Backbone.build"],
    "cache": ["graftline.training.source_decision.choose_source"],
    "fit": ["graftline.training.fit.fit"],
    "export": ["graftline.bundle.save.save_bundle"],
    "evaluation": [
        "graftline.bundle.predictor.Predictor.from_directory",
        "graftline.evaluation.evaluation.Evaluation.run",
    ],
    "figures": [
        "graftline.augment.preview.preview_sheet",
        "graftline.report.style.save",
        "graftline.pipeline.evaluating.scoring.write_evaluation",
        "graftline.pipeline.training.result.write_run_report",
    ],
    "tracking": [
        "graftline.tracking.tracking.Tracking.check",
        "graftline.tracking.tracking.Tracking.start",
        *(
            f"graftline.tracking.run.Run.{name}"
            for name in ("log_params", "log_environment", "log_dataset", "log_artifact", "log_model", "finish")
        ),
    ],
}


class Clock:
    """Seconds of each part; the time of an inner part is taken out of the outer one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(["imports", *PARTS, "else"], 0.0)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] += spent - self._inner.pop()
            self._inner[-1] += spent

    def watch(self, path: str, name: str) -> None:
        """Time each call of a function or method, wherever its module's name for it has been imported to."""
        module_name, attributes = _split(path)
        holder: Any = sys.modules[module_name]
        *classes, last = attributes
        for one in classes:
            holder = getattr(holder, one)
        declared = vars(holder)[last]
        function: Callable[..., Any] = declared.__func__ if isinstance(declared, classmethod) else declared

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*arguments, **named)

        setattr(holder, last, classmethod(timed) if isinstance(declared, classmethod) else timed)
        for module in list(sys.modules.values()) if not classes else ():
            if vars(module).get(last) is function and module.__name__.startswith("graftline"):
                setattr(module, last, timed)


def _split(path: str) -> tuple[str, list[str]]:
    """Split a dotted path into the module, which is imported, and what is in it."""
    parts = path.split(".")
    for number in range(len(parts), 0, -1):
        try:
            importlib.import_module(name := ".".join(parts[:number]))
        except ModuleNotFoundError:
            continue
        return name, parts[number:]
    raise ModuleNotFoundError(path)


def run_in_parts(overrides: Sequence[str]) -> dict[str, float]:
    """Train in this process, and return the seconds of each part."""
    start = time.perf_counter()
    clock = Clock()
    with clock.part("imports"):
        from graftline.console import show_log
        from graftline.pipeline.cli.composed_stage import compose

        show_log()
        stage = compose("train", overrides)
        _ = stage.stage
    for name, paths in PARTS.items():
        for path in paths:
            clock.watch(path, name)
    with clock.part("else"):
        stage.run()
    clock.seconds["process"] = time.perf_counter() - start
    return clock.seconds


def bare_pass(folder: Path) -> float:
    """Return the seconds that ONNX Runtime alone needs for as many images as the data set has, from memory."""
    import numpy as np

    from graftline.backbones.onnx import open_session
    from graftline.data.version import DatasetVersion

    run = next(folder.glob("outputs/train/*"))
    version = DatasetVersion.load(Path(json.loads((run / "dataset.json").read_text(encoding="utf-8"))["directory"]))
    images = sum(version.num_images(split) for split in ("train", "validation", "test"))
    session = open_session(run / "bundle" / "model.onnx")
    batch = np.random.default_rng(0).normal(size=(BATCH, *session.get_inputs()[0].shape[1:])).astype(np.float32)
    start = time.perf_counter()
    for first in range(0, images, BATCH):
        session.run(None, {session.get_inputs()[0].name: batch[: images - first]})
    return time.perf_counter() - start


def process(command: Sequence[str], folder: Path, expected: int = 0) -> tuple[float, float, str]:
    """Run a command; return its seconds on the clock and of CPU time, and what it printed."""
    path = os.pathsep.join(map(str, (REPOSITORY / "src", REPOSITORY)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    wrong = done.returncode != 0 if expected == 0 else done.returncode == 0  # make has a code of its own
    if wrong:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stdout


def one_round(folder: Path, overrides: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Run each command once, in an empty folder; yields its name, seconds and CPU seconds."""
    for name, arguments in COMMANDS.items():
        is_mistake = name.startswith(("a ", "an "))
        yield name, *process(["make", "-s", *arguments], REPOSITORY, expected=2 if is_mistake else 0)[:2]
    train = [sys.executable, "-m", "graftline.pipeline", "train", *overrides]
    yield "first train", *process(train, folder)[:2]
    yield "repeated train", *process(train, folder)[:2]
    parts = process([sys.executable, __file__, "--parts", *overrides], folder)[2].splitlines()[-1]
    for name, seconds in json.loads(parts).items():
        yield f"  {name}", seconds, float("nan")
    yield "bare ONNX Runtime pass", bare_pass(folder), float("nan")


def main(arguments: Sequence[str]) -> None:
    """Run the rounds and print the medians."""
    if arguments[:1] == ["--parts"]:
        print(json.dumps(run_in_parts(arguments[1:])))
        return
    rounds = int(arguments[0]) if arguments and arguments[0].isdecimal() else ROUNDS
    overrides = [text for text in arguments if "=" in text]
    measured: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp())
        for name, seconds, cpu in one_round(folder, overrides):
            measured.setdefault(name, []).append((seconds, cpu))
        shutil.rmtree(folder)
    print(f"medians of {rounds}, {os.cpu_count()} cores{'':10}   seconds     CPU s")
    for name, values in measured.items():
        seconds, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name:<30} {seconds:>9.1f} {'' if cpu != cpu else f'{cpu:>9.1f}'}")


if __name__ == "__main__":
    main(sys.argv[1:])
