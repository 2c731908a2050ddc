"""Who waits for another retraining, and what is told of a decision or a failure: once, and of what it was."""

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from past_retrainings import NAME, Past

from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.cli.errors import EXIT_INTERRUPTED
from graftline.pipeline.retrain import Retrain, RetrainResult
from graftline.processes import Terminated
from graftline.tracking.lease import Lease
from graftline.tracking.ledger import Kind


def test_who_waits_goes_on_once_the_other_has_ended(
    past: Past, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(past.place.root)
    monkeypatch.setattr("graftline.pipeline.retrain.WAIT_SECONDS", 0.1)
    typed = ["data=folder", f"data.path={past.images}", f"data.name={NAME}", f"tracking.uri={past.tracking.uri}"]
    stage = compose("retrain", [*typed, "retrain.wait=300"]).stage
    assert isinstance(stage, Retrain)
    other = Lease(past.tracking.uri, NAME, past.place.root / "another-machine", "The retraining of colors")
    other.acquire()
    ended = threading.Event()

    def end() -> None:
        with other:
            time.sleep(1)
        ended.set()

    thread = threading.Thread(target=end)
    thread.start()
    with stage._alone() as (lease, _):
        assert ended.is_set()
        lease.check()
    thread.join()
    assert capsys.readouterr().out.count("Waiting for ") == 1, "it says so once"


def test_a_retraining_that_is_stopped_while_it_waits_tells_it(past: Past) -> None:
    """By SIGTERM, as at the end of job.hours, when there is no run yet that could take it."""
    tell = "cat > told.json; cp outputs/retrain/*/result.json there.json"  # it is written first: SIGKILL may follow
    typed = ["data=folder", "data.path=images", f"data.name={NAME}", f"notify.command='{tell}'"]
    other = Lease(past.tracking.uri, NAME, past.place.root / "data" / NAME, "The retraining of colors")
    other.acquire()
    with other:
        process = past.place.start("retrain", *typed, "retrain.wait=300")
        while "Waiting for " not in process.output:
            assert process.code is None, process.output
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == EXIT_INTERRUPTED, process.output
    told = json.loads((past.place.root / "told.json").read_text())
    assert (told["outcome"], told["reason"].partition(",")[0]) == ("failed", "it was stopped by SIGTERM")
    (result,) = past.place.root.glob("outputs/retrain/*/result.json")
    assert json.loads(result.read_text()) == json.loads((past.place.root / "there.json").read_text()) == told


def test_a_decision_is_told_once_and_before_old_files_are_removed(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever starts next, where the process that decided ended before it could; what removes files is stopped."""
    monkeypatch.chdir(past.place.root)
    decided: list[Kind] = ["promoted"]

    def retrain(*_: object) -> RetrainResult:
        if not decided:
            return RetrainResult(outcome="nothing new")
        past.retrain(decided.pop())
        return RetrainResult(outcome="promoted")

    def stopped(*_: object) -> str:
        raise Terminated

    monkeypatch.setattr(Retrain, "_run", retrain)
    monkeypatch.setattr("graftline.pipeline.retrain.remove_leftovers", stopped)
    typed = ["data=folder", f"data.path={past.images}", f"data.name={NAME}", f"tracking.uri={past.tracking.uri}"]
    stage = compose("retrain", [*typed, "notify.command='cat > told.json'"]).stage
    told = Path("told.json")

    def outcome() -> str | None:
        told.unlink(missing_ok=True)
        result = stage.run(past.place.root / "outputs" / "retrain")
        assert isinstance(result, RetrainResult)
        assert result.outcome == ("nothing new" if is_idle else "promoted")
        return json.loads(told.read_text())["outcome"] if told.exists() else None

    is_idle = False
    assert outcome() == "promoted"
    is_idle = True
    assert outcome() is None, "that was told"
    past.retrain("refused", "s")
    assert [outcome(), outcome()] == ["refused", None]


def test_what_fails_after_a_decision_is_not_told_as_a_failure(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(past.place.root)

    def decide(*given: Any) -> RetrainResult:
        *_, decided = given
        decided.append(RetrainResult(outcome="promoted"))
        raise UserError("MLflow does not answer.")

    monkeypatch.setattr(Retrain, "_run", decide)
    typed = ["data=folder", f"data.path={past.images}", f"data.name={NAME}", f"tracking.uri={past.tracking.uri}"]
    stage = compose("retrain", [*typed, "notify.command='cat > told.json'"]).stage
    with pytest.raises(UserError, match="MLflow does not answer"):
        stage.run(past.place.root / "outputs" / "retrain")
    assert not Path("told.json").exists()
