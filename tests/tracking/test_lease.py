"""One process at a time retrains a model, on whatever machine it is."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from workplace import Workplace

from graftline.errors import UserError
from graftline.tracking import lease as module
from graftline.tracking.client import START_SECONDS
from graftline.tracking.lease import Holder, Lease, LeaseHeldError


@pytest.fixture
def make(workplace: Workplace, tmp_path: Path) -> Callable[[str], Lease]:
    """Makes the lease as a process on some machine has it, each with a disk of its own."""
    uri = f"sqlite:///{workplace.root / 'mlflow.db'}"
    return lambda machine: Lease(uri, "pets", tmp_path / machine, "The retraining of pets")


def names(client: MlflowClient) -> list[str]:
    return [model.name for model in client.search_registered_models()]


def test_a_second_one_is_told_who_has_it(
    make: Callable[[str], Lease], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)  # for which a second one waits
    first = make("here")
    first.acquire()
    with first:
        first.check()
        for machine in ("here", "there"):
            with pytest.raises(
                LeaseHeldError, match=rf"The retraining of pets is under way.*\(process {os.getpid()}\)"
            ):
                make(machine).acquire()
    assert names(workplace.mlflow) == []
    second = make("there")
    second.acquire()
    with second:
        assert names(workplace.mlflow) == ["pets.retraining"]


def test_a_copy_of_the_folder_is_another_place(
    make: Callable[[str], Lease], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    first = make("here")
    first.acquire()
    with first:
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        with pytest.raises(LeaseHeldError):
            make("there").acquire()
        first.check()


def test_the_disk_of_a_cloned_machine_is_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the numbers of its files are the same."""
    file = tmp_path / "retraining.lock"
    file.touch()
    here = module._identify(file)
    assert module._identify(file) == here
    boot = tmp_path / "boot_id"
    boot.write_text("another-kernel\n")
    monkeypatch.setattr(module, "_BOOT", boot)
    assert module._identify(file) != here


def test_a_model_that_has_the_name_of_a_lease(make: Callable[[str], Lease], workplace: Workplace) -> None:
    """As that of a data set which somebody called ``pets.retraining``."""
    workplace.mlflow.create_registered_model("pets.retraining")
    for _ in range(2):
        with pytest.raises(UserError, match=r"^There is a registered model 'pets\.retraining' that is no lease: give "):
            make("here").acquire()
    assert names(workplace.mlflow) == ["pets.retraining"], "it is left alone"


def die(lease: Lease) -> None:
    """Leave a lease as a process does that was killed a moment ago: the kernel freed its lock, and it gives no sign."""
    assert lease._thread is not None
    assert lease._lock is not None
    lease._stops.set()
    lease._thread.join()
    lease._lock.close()


def test_of_two_that_find_a_dead_one_one_takes_over(
    make: Callable[[str], Lease], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same machine without watching it, on others once they have seen it silent; never two of them.

    The dead one is silent however long they watch, the one that takes over is watched in its turn.
    """
    dead = make("here")
    dead.acquire()
    die(dead)
    assert names(workplace.mlflow) == ["pets.retraining"]
    again = make("here")
    with monkeypatch.context() as patch:
        patch.delattr(Lease, "_lives")  # the kernel has freed the lock on its file
        again.acquire()
    die(again)
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SILENT_SECONDS", 3.0)  # much longer than a beat takes here
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.1)
    held, barrier, refused = list[Lease](), threading.Barrier(3), list[LeaseHeldError]()

    def try_it(machine: str) -> None:
        mine = make(machine)
        barrier.wait()
        try:
            mine.acquire()
            held.append(mine)
        except LeaseHeldError as error:
            refused.append(error)

    threads = [threading.Thread(target=try_it, args=(machine,)) for machine in ("there", "yonder", "far")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 2)
    with held[0]:
        held[0].check()


@pytest.mark.parametrize("was_renamed", [True, False])
def test_an_error_of_the_database_is_one_only_if_nobody_was_faster(
    make: Callable[[str], Lease], workplace: Workplace, monkeypatch: pytest.MonkeyPatch, was_renamed: bool
) -> None:
    """SQLAlchemy's answer to the second of two that rename at the same moment is no clear one."""
    dead = make("here")
    dead.acquire()
    die(dead)
    rename = MlflowClient.rename_registered_model

    def fail(client: MlflowClient, name: str, new_name: str) -> None:
        monkeypatch.setattr(MlflowClient, "rename_registered_model", rename)
        if was_renamed:
            rename(client, name, new_name)
        raise MlflowException("expected to update 1 row(s); 0 were matched", BAD_REQUEST)

    monkeypatch.setattr(MlflowClient, "rename_registered_model", fail)
    mine = make("here")
    if was_renamed:
        mine.acquire()
        with mine:
            mine.check()
    else:
        with pytest.raises(UserError, match="expected to update 1 row"):
            mine.acquire()


def test_a_beat_that_fails_once_does_not_make_a_holder_dead(
    make: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All times are as they are, but 25 times as short; it fails once the server has let it wait as long as it can."""
    for name in ("BEAT_SECONDS", "SILENT_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(module, name, getattr(module, name) / 25)
    first, failed = make("here"), threading.Event()

    def fail(_: int) -> None:
        monkeypatch.setattr(first, "_give_sign", partial(Lease._give_sign, first))
        failed.set()
        time.sleep(2 * START_SECONDS / 25)
        raise UserError("The tracking server does not answer.")

    monkeypatch.setattr(first, "_give_sign", fail)
    first.acquire()
    with first:
        with pytest.raises(LeaseHeldError):
            make("there").acquire()
        assert failed.is_set()
        first.check()


def test_what_mlflow_does_not_answer_is_no_silence(
    make: Callable[[str], Lease], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first look waits for longer than a dead one is watched, and hears what was so before."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    first, second = make("here"), make("there")
    first.acquire()
    answers = [first._read()] * 2

    def read() -> tuple[Holder, str] | None:
        if len(answers) == 1:
            time.sleep(1.0)
        return answers.pop() if answers else Lease._read(second)

    monkeypatch.setattr(second, "_read", read)
    with first, caplog.at_level(logging.INFO, logger=module.__name__):
        with pytest.raises(LeaseHeldError):
            second.acquire()
        first.check()
    assert caplog.text == "", "who waits looks each few seconds, and a log of that has hundreds of lines"


def test_a_slow_one_is_not_dead_and_a_lost_lease_is_noticed(
    make: Callable[[str], Lease], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is watched until it gives a sign, however long that takes here."""
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(module, "SILENT_SECONDS", 600.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.1)
    slow = make("here")
    slow.acquire()
    with slow:
        with pytest.raises(LeaseHeldError):
            make("there").acquire()
        workplace.mlflow.rename_registered_model("pets.retraining", "pets.retraining.taken")
        with pytest.raises(Exception, match="was taken over"):
            slow.check()
    assert names(workplace.mlflow) == ["pets.retraining.taken"], "what is not ours is left alone"
