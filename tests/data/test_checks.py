"""Images are looked at once: what is known of them is remembered, until they change or nobody asks for them."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ingested import ingest

from graftline.data import checks
from graftline.data.checks import FileCheck, check_images
from graftline.data.decode import Decoding, decode


def test_only_new_files_are_decoded_again(tmp_path: Path, make_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "pets", cat=10, dog=10)
    (root / "dog/broken.png").write_bytes(b"no image")
    time.sleep(0.15)
    ingest(tmp_path, root)
    make_folder(root, first_seed=500, bird=3)
    decoded: list[str] = []

    def spy(file: Any, *args: Any) -> Any:
        decoded.append(os.path.relpath(file.name, root))
        return decode(file, *args)

    monkeypatch.setattr(checks, "decode", spy)
    ingest(tmp_path, root)
    assert sorted(decoded) == ["bird/000.png", "bird/001.png", "bird/002.png", "dog/broken.png"]
    decoded.clear()
    ingest(tmp_path, root, max_pixels=1_000)  # another question, so other answers
    assert len(decoded) == 24


def test_a_change_is_noticed_even_with_the_old_size_and_time(tmp_path: Path, make_image: Any) -> None:
    root = tmp_path / "pets"
    for number in range(10):
        for label in ("cat", "dog"):
            make_image(root / label / f"{number}.bmp", seed=number + 100 * (label == "dog"))
    time.sleep(0.15)  # longer than checks._SETTLED_NS, so that the files are remembered
    first = ingest(tmp_path, root)
    victim = root / "cat/0.bmp"
    before = victim.stat()
    make_image(victim, seed=999)  # a BMP of the same size in pixels has the same size in bytes
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    second = ingest(tmp_path, root)
    assert second.is_new
    assert second.version.digest != first.version.digest


def test_an_interrupted_pass_goes_on_where_it_was(
    tmp_path: Path, make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "pets", cat=30)
    files = sorted(map(str, (root / "cat").iterdir()))
    memory = tmp_path / "checked.parquet"
    decoded: list[str] = []

    def interrupt(file: Any, *args: Any) -> Any:
        if file.name == files[20]:
            raise KeyboardInterrupt
        decoded.append(file.name)
        return decode(file, *args)

    time.sleep(0.15)
    monkeypatch.setattr(checks, "_AT_ONCE", 5)
    monkeypatch.setattr(checks, "decode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        check_images(files, Decoding(), workers=1, memory=memory)
    assert decoded[:20] == files[:20]
    decoded.clear()

    def note(file: Any, *args: Any) -> Any:
        decoded.append(file.name)
        return decode(file, *args)

    monkeypatch.setattr(checks, "decode", note)
    found = check_images(files, Decoding(), workers=2, memory=memory)
    assert sorted(decoded) == files[20:]
    assert found["path"].tolist() == files
    assert tuple(found.columns) == FileCheck._fields


def test_paths_that_nobody_asks_for_are_forgotten(
    tmp_path: Path, make_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(tmp_path / "pets", cat=4, dog=4)
    cats, dogs = (sorted(map(str, (root / name).iterdir())) for name in ("cat", "dog"))
    memory, now = tmp_path / "checked.parquet", time.time()
    time.sleep(0.15)

    def check(paths: list[str], days: int) -> set[str]:
        monkeypatch.setattr(time, "time", lambda: now + days * 86_400)
        check_images(paths, Decoding(), workers=1, memory=memory)
        return set(pd.read_parquet(memory)["path"])

    assert check([*cats, *dogs], 0) == {*cats, *dogs}
    monkeypatch.setattr(checks, "decode", None)  # none is looked at again
    assert check(cats, 80) == {*cats, *dogs}, "of another source, perhaps"
    assert check(cats, 120) == {*cats}
    assert check(cats, 200) == {*cats}


def test_checks_leave_no_thread_behind_and_need_no_torch(tmp_path: Path, make_folder: Any) -> None:
    before = threading.active_count()
    ingest(tmp_path, make_folder(tmp_path / "pets", cat=100, dog=100), workers=4)
    assert threading.active_count() == before
    program = "import sys, graftline.data.ingest, graftline.data.sources.archive; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
