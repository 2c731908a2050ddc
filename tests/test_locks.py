"""Locks between processes: two descriptors of one file are to each other what two processes are."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from graftline.locks import Lock

POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "termios")


def test_one_alone_or_any_number(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "lock"
    with Lock(file, shared=True), Lock(file, shared=True), pytest.raises(BlockingIOError):
        Lock(file, shared=False)
    with Lock(file, shared=False):
        for shared in (True, False):
            with pytest.raises(BlockingIOError):
                Lock(file, shared=shared)


def test_it_waits_and_says_so(tmp_path: Path) -> None:
    held, waits = Lock(tmp_path / "lock", shared=False), threading.Event()

    def release() -> None:
        waits.wait()
        held.close()

    threading.Thread(target=release).start()
    with Lock(tmp_path / "lock", shared=True, on_wait=waits.set):
        assert waits.is_set()


def test_a_lock_whose_file_was_removed_while_it_waited_is_taken_on_the_new_file(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    held = Lock(file, shared=False)

    def remove() -> None:
        file.unlink()
        held.close()

    with Lock(file, shared=False, on_wait=remove), pytest.raises(BlockingIOError):
        Lock(file, shared=False)


def test_a_temporary_one_takes_its_file_along_once(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = Lock(file, shared=False, temporary=True)
    assert file.exists()
    first.close()
    assert not file.exists()
    with Lock(file, shared=False):
        first.close()
        assert file.exists(), "it is another one's now"


def test_it_is_free_when_its_process_has_ended(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from graftline.locks import Lock; "
        "lock = Lock(pathlib.Path(sys.argv[1]), shared=False); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock")], check=True)
    Lock(tmp_path / "lock", shared=False).close()


def test_no_module_of_ours_needs_posix() -> None:
    source = Path(__file__).resolve().parents[1] / "src" / "graftline"
    folders = (source, source / "pipeline")
    imports = [
        line for folder in folders for file in folder.rglob("*.py") for line in file.read_text("utf-8").splitlines()
    ]
    assert not [
        line for line in imports if line.lstrip().startswith(("import ", "from ")) and line.split()[1] in POSIX_ONLY
    ]
