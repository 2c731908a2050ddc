"""Start graftline or a peer, each in a process and a folder of its own, and read what came of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.results import Origin, Result, Run, correct_file
from benchmarks.accuracy.sets.folders import DIGEST
from graftline import __version__
from graftline.evaluation.predictions import Predictions
from graftline.execution import available_cores
from graftline.tracking.environment import git_state

ROOT = Path(__file__).parents[2]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
_CODE, _CODE_OF_PEERS = ("src/graftline", "pipeline", "conf"), ("benchmarks/accuracy/peers",)
_CODE_SUFFIXES = (".py", ".yaml", ".txt")
_PATIENCE_S = 3_600  # that a process may take beyond its budget, with the test


@dataclass(frozen=True)
class Place:
    """Where the sets, the weights for the peers, and the results are."""

    sets: Path
    weights: Path
    results: Path


class RunFailedError(RuntimeError):
    """A process ended without a result; the message is the end of what it printed."""


def origin(run: Run, place: Place) -> Origin:
    """Return what a run would be made with now."""
    code = hashlib.sha256()
    for folder in _CODE if run.peer in OURS else _CODE_OF_PEERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in _CODE_SUFFIXES:
                code.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    commit, is_changed = git_state(ROOT)
    said = f"{__version__}, {commit[:10]}" + (" with changes" if is_changed == "true" else "")
    return Origin(set_digest(run.image_set, place), code.hexdigest()[:16], said, available_cores())


def set_digest(image_set: str, place: Place) -> str:
    """Return the digest of a set as it lies there; nothing if it does not."""
    file = place.sets / image_set / DIGEST
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


def is_current(result: Result, place: Place) -> bool:
    """Return whether a result stands for a run of today: same images, code and cores."""
    return result.origin == replace(origin(result.run, place), commit=result.origin.commit)


def start(run: Run, place: Place) -> Result:
    """Do a run.

    Raises:
        RunFailedError: it came to no result.
    """
    now = origin(run, place)
    try:
        return replace(PEERS[run.peer].start(run, place), origin=now)
    except (LookupError, ValueError, OSError) as error:  # what should be there after a run is not, or is not whole
        raise RunFailedError(f"{run.name} ended without a result: {error!r}") from error


def run_graftline(stage: str, run: Run, place: Place) -> Result:
    """Run ``graftline train`` or ``graftline search`` from nothing: no cache, no dataset version, no runs.

    The search chooses among all networks whose weights are there; here it has the one that the peers have too.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "graftline", stage, "data=folder", f"data.path={place.sets / run.image_set}"]
        command += [f"seed={run.seed}"] + (["backbone=efficientnet_lite0"] if stage == "search" else [])
        command += [] if run.minutes is None else [f"minutes={run.minutes:g}"]
        started = time.time()
        seconds, _ = _start(command, run, Path(folder))
        answer = max(Path(folder).glob("outputs/*/*/result.json"), key=lambda file: file.stat().st_mtime)
        said = json.loads(answer.read_text(encoding="utf-8"))
        file = max(Path(folder).glob("outputs/**/test/predictions.parquet"), key=lambda file: file.stat().st_mtime)
        trained = (file.parents[1] / "bundle" / "model.safetensors").stat().st_mtime - started
        rows = Predictions.load(file).table()
    right = dict(zip(map(Path, rows["path"]), rows["correct"], strict=True))
    files = sorted((place.sets / run.image_set / "test").glob("*/*.png"))
    assert right.keys() == set(files), "the test split is that of the folder"
    correct = np.array([right[file] for file in files])
    _save(correct, place, run)
    facts = {name: said[name] for name in ("freeze", "epochs") if name in said}
    return Result(run, seconds, round(trained, 1), float(correct.mean()), len(correct), facts)


def run_peer(script: str, run: Run, place: Place) -> Result:
    """Run a peer's script in the peers' environment."""
    assert run.minutes is not None, "a peer has a budget"
    module = f"benchmarks.accuracy.peers.{script}"
    out = correct_file(place.results, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(place.sets / run.image_set), str(place.weights), str(out)]
    command = [str(PEERS_PYTHON), "-m", module, *paths, f"{run.minutes * 60:g}", str(run.seed)]
    with tempfile.TemporaryDirectory() as folder:
        seconds, printed = _start(command, run, Path(folder))
    said: dict[str, Any] = json.loads(printed[-1])
    return Result(run, seconds, said.pop("trained_seconds"), said.pop("accuracy"), len(np.load(out)), said)


def _start(command: Sequence[str], run: Run, folder: Path) -> tuple[float, list[str]]:
    """Run a command in a folder; returns the seconds that it took and the lines that it printed."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    limit = 60 * (run.minutes or 0) + _PATIENCE_S
    started = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers end with it
    ) as process:
        try:
            printed, complaints = process.communicate(timeout=limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise RunFailedError(f"{run.name} was stopped after {limit:,.0f} s") from error
            raise
    seconds = round(time.monotonic() - started, 1)
    if process.returncode != 0:
        last = "\n".join((printed + complaints).splitlines()[-15:])
        raise RunFailedError(f"{run.name} ended with {process.returncode}: {last}")
    return seconds, printed.splitlines()


def _save(correct: "np.ndarray[Any, np.dtype[np.bool_]]", place: Place, run: Run) -> None:
    file = correct_file(place.results, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, correct)


@dataclass(frozen=True)
class Peer:
    """Who takes part.

    Attributes:
        title: in the table and the picture.
        start: runs it.
        has_budget: whether it is told how long it may take.
    """

    title: str
    start: Callable[[Run, Place], Result]
    has_budget: bool = True


PEERS: dict[str, Peer] = {
    "graftline": Peer("graftline train", lambda run, place: run_graftline("train", run, place), has_budget=False),
    "graftline-minutes": Peer("graftline train minutes=", lambda run, place: run_graftline("train", run, place)),
    "graftline-search": Peer("graftline search minutes=", lambda run, place: run_graftline("search", run, place)),
    "plain": Peer("plain loop", lambda run, place: run_peer("plain", run, place)),
    "fastai": Peer("fastai fine_tune", lambda run, place: run_peer("fastai_finetune", run, place)),
    "timm": Peer("timm's train.py", lambda run, place: run_peer("timm_train", run, place)),
    "autogluon": Peer("AutoGluon MultiModal", lambda run, place: run_peer("autogluon_multimodal", run, place)),
}
OURS = tuple(name for name in PEERS if name.startswith("graftline"))
