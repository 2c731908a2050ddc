"""`make cache`: what is there is listed, and what is to go goes."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from workplace import Workplace

from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.digests import distinct
from graftline.features.store import ActivationStore
from graftline.files import write_json
from graftline.pipeline.cache import Cache


def fill(root: Path, name: str, days: float, images: int = 100) -> str:
    """Write a table of two segments, the first of which was used for the last time many days ago."""
    key = {"network": [name, {}], "boundary": "head", "view": 1}
    store = ActivationStore(root / "cache" / "activations", 1e9)
    table = store.table(key)
    for number, age in enumerate((2 * days, days)):
        digests, _, _ = distinct(np.arange(2 * images, dtype=np.uint64).reshape(2, -1) + np.uint64(1000 * number))
        reserved = store.reserve(table, digests, 1280, "float16")
        assert reserved is not None
        segment, lock = reserved
        with lock:
            segment.write(0, np.zeros((images, 1280), np.float32))
        os.utime(segment.directory / "used", (time.time() - age * 86_400,) * 2)
    return table.directory.name


def write_format_1(directory: Path) -> str:
    """Write an entry as the first graftline did."""
    entry = directory / "0123456789abcdef"
    entry.mkdir()
    (entry / "entry.json").write_text(json.dumps({"key": {"dataset": "abc"}, "images": 100}))
    (entry / "activations.bin").write_bytes(bytes(256_000))
    (entry / "used").touch()
    return entry.name


def test_it_lists_and_clears(workplace: Workplace) -> None:
    names = [fill(workplace.root, f"network_{days}", days) for days in (0, 20, 40)]
    directory = workplace.root / "cache" / "activations"
    old = write_format_1(directory)
    trunk = directory / "trunks" / "a.onnx"
    trunk.parent.mkdir()
    trunk.write_bytes(os.urandom(5000))
    answers = [directory.parent / question / "0123456789abcdef.json" for question in ("depths", "sources")]
    for answer in answers:
        write_json(answer, {})

    ran = workplace.run("cache", "clear=unused", "days=30")
    assert ran.code == 0, ran.output
    assert set(ran.result["removed"]) == set(names[1:]), "of the second what was not used for 40 days"
    assert [entry["name"] for entry in ran.result["entries"]] == [*names[:2], old]
    assert ran.result["trunk_bytes"] == 0, "they are made again when they are needed"
    assert all(answer.exists() for answer in answers), "what was found out is true of what is left"
    for text in (*names[:2], "network_20", "head", "517 KB", "259 KB", "float16", "20 days ago", old, "not readable"):
        assert text in ran.output, ran.output
    assert f"{old}: of an earlier format" in ran.output
    assert "of 20.0 GB" in ran.output
    assert "of 2 entries" in ran.output

    features = Features(directory=str(directory))
    for name in (names[1], old):
        one = Cache(features, clear=name).run(workplace.root)
        assert one.removed == [name]
    assert all(answer.exists() for answer in answers)
    (entry,) = one.entries
    with entry.segments[0].lock_for_use():
        kept = Cache(features, clear="all").run(workplace.root)
    assert [entry.name for entry in kept.entries] == kept.removed == [names[0]], "what is in use stays"
    everything = Cache(features, clear="all").run(workplace.root)
    assert (everything.facts["entries"], everything.facts["bytes"], everything.facts["trunk_bytes"]) == ([], 0, 0)
    assert [path.name for path in directory.iterdir()] == ["lock"]
    assert not any(answer.exists() for answer in answers), "everything is found out anew"


def test_a_name_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no entry everything"):
        Cache(Features(directory=str(tmp_path)), clear="everything").run(tmp_path)
