"""Stages as a user runs them, on small real images, with MLflow on sqlite in a folder of their own."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow import MlflowClient
from warm_process import WarmProcess, WarmRank

PROJECT = Path(__file__).resolve().parents[1]

# a real network of timm's that trains in seconds: 32 px, random weights, nothing frozen
TINY = (
    "backbone=test_efficientnet",
    "backbone.weights=none",
    "backbone.image_size=32",
    "freeze=none",
    "features=live",
    "augment=none",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "train.workers=0",
    "train.batch_size=16",
    "optim.lr=0.003",
    "evaluation.resamples=100",
    "tracking.system_metrics=false",
)


@dataclass(frozen=True)
class Ran:
    """What a stage left: its exit code, its output and, if it did its work, its output directory and result."""

    code: int
    output: str

    @property
    def directory(self) -> Path:
        """The last line that a stage prints."""
        return Path(self.output.strip().splitlines()[-1])

    @property
    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory / "result.json").read_text())
        return content


@dataclass(frozen=True)
class Workplace:
    """A folder where stages run, as in a fresh clone."""

    root: Path

    def environment(self) -> dict[str, str]:
        names = {
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "src")]),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        }
        return {**os.environ, **names}

    def command(self, stage: str, *overrides: str) -> list[str]:
        return [sys.executable, "-m", "pipeline", stage, *overrides]

    def run(self, stage: str, *overrides: str, timeout: float = 300) -> Ran:
        """Run a stage in a process of its own, which has its imports done."""
        return self.run_function(partial(run_stage, [stage, *overrides]), timeout)

    def run_function(self, target: Callable[[], int], timeout: float = 300) -> Ran:
        """Run a function in such a process."""
        process = self.start_function(target)
        return Ran(process.wait(timeout), process.output)

    def run_command(self, stage: str, *overrides: str, timeout: float = 300) -> Ran:
        """Run a stage by its command, as a shell does."""
        done = subprocess.run(
            self.command(stage, *overrides),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        return Ran(done.returncode, done.stdout)

    def start_command(self, stage: str, *overrides: str) -> subprocess.Popen[str]:
        """Start a stage by its command, as a shell does."""
        return subprocess.Popen(
            self.command(stage, *overrides),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=listen_to_ctrl_c,
        )

    def start(self, stage: str, *overrides: str, variables: Mapping[str, str] | None = None) -> WarmProcess:
        """Start a stage in a process of its own, which has its imports done."""
        return self.start_function(partial(run_stage, [stage, *overrides]), variables)

    def start_function(self, target: Callable[[], int], variables: Mapping[str, str] | None = None) -> WarmProcess:
        """Start a function in such a process."""
        descriptor, output = tempfile.mkstemp()  # not in the folder, of which tests look at everything
        os.close(descriptor)
        return WarmProcess(target, self.root, {**self.environment(), **(variables or {})}, Path(output))

    def await_file(self, process: subprocess.Popen[str], pattern: str, seconds: float) -> None:
        """Wait until a command has made a file like ``pattern``."""
        deadline = time.monotonic() + seconds
        while not list(self.root.glob(pattern)):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def interrupt(self, pattern: str, stage: str, *overrides: str) -> str:
        """Run a stage, press Ctrl-C as soon as there is a file like ``pattern``, and return the output."""
        process = self._stop(signal.SIGINT, pattern, stage, *overrides)
        assert process.code == 130, process.output
        return process.output

    def kill(self, pattern: str, stage: str, *overrides: str) -> str:
        """Run a stage, kill it as soon as there is a file like ``pattern``, and return the output."""
        process = self._stop(signal.SIGKILL, pattern, stage, *overrides)
        assert process.code == -signal.SIGKILL, process.output
        return process.output

    def _stop(self, signum: signal.Signals, pattern: str, stage: str, *overrides: str) -> WarmProcess:
        process = self.start(stage, *overrides)
        deadline = time.monotonic() + 200
        while not list(self.root.glob(pattern)):
            assert process.code is None, process.output
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signum)
        process.wait(timeout=60)
        return process

    @property
    def mlflow(self) -> MlflowClient:
        uri = f"sqlite:///{self.root / 'mlflow.db'}"
        return MlflowClient(uri, uri)


def run_stage(arguments: list[str], of_ranks: Callable[[list[str]], int] | None = None) -> int:
    """Do what the command `graftline` does with these arguments.

    Args:
        arguments: of the command line.
        of_ranks: what runs in further processes of a training, in place of this.
    """
    from graftline.pipeline.__main__ import main

    sys.argv = [str(Path(sys.executable).with_name("graftline")), *arguments]
    launcher: Any = import_module("pytorch_lightning.strategies.launchers.subprocess_script")
    launcher.subprocess = SimpleNamespace(Popen=partial(WarmRank, of_ranks or run_stage))
    return main(arguments)


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to the processes it starts in the background, which are to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
