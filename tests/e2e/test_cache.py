"""`make cache`: what is there is listed, and what is to go goes."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from graftline.features.shards import Description
from workplace import Workplace

from graftline.errors import UserError
from graftline.features.cache import Features
from graftline.features.store import ActivationStore
from pipeline.cache import Cache


def fill(root: Path, name: str, used: float) -> str:
    key = {"dataset": "0123abcd", "network": [name, {}], "boundary": "head", "split": "train", "view": 1}
    store = ActivationStore(root / "cache" / "activations", 1e9)
    entry = store.entry(key)
    described = Description(key, 100, 1280, "float16", used, used)
    with entry.lock_for_use():
        store.reserve(entry, described)
        entry.write(described, 0, np.zeros((100, 1280), np.float32))
    return entry.directory.name


def test_it_lists_and_clears(workplace: Workplace) -> None:
    now = time.time()
    names = [fill(workplace.root, f"network_{days}", now - days * 86_400) for days in (0, 20, 40)]
    trunk = workplace.root / "cache" / "activations" / "trunks" / "a.onnx"
    trunk.parent.mkdir()
    trunk.write_bytes(os.urandom(5000))

    ran = workplace.run("cache", "clear=unused", "days=30")
    assert ran.code == 0, ran.output
    assert ran.result["removed"] == [names[2]]
    assert [entry["name"] for entry in ran.result["entries"]] == names[:2]
    assert ran.result["trunk_bytes"] == 0, "they are made again when they are needed"
    for text in (*names[:2], "network_20", "0123abcd", "head", "train view 1", "256 KB", "float16", "20 days ago"):
        assert text in ran.output
    assert "512 KB of 20.0 GB" in ran.output
    assert "1 entry, 256 KB" in ran.output

    features = Features(directory=str(workplace.root / "cache" / "activations"))
    one = Cache(features, clear=names[1]).run(workplace.root)
    assert one.facts["removed"] == [names[1]]
    with features.store.entry({"no": "such"}).lock_for_use():  # what a killed run may leave
        kept = Cache(features, clear="all").run(workplace.root)
    assert kept.facts["removed"] == [names[0]]
    everything = Cache(features, clear="all").run(workplace.root)
    assert (everything.facts["entries"], everything.facts["bytes"], everything.facts["trunk_bytes"]) == ([], 0, 0)
    assert [path.name for path in Path(features.directory).iterdir()] == ["lock"]


def test_a_name_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no entry everything"):
        Cache(Features(directory=str(tmp_path)), clear="everything").run(tmp_path)
