"""What the cache takes on disk, and what is removed where there is too little room."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data.version import Samples
from graftline.features.cache import ActivationRequest, CacheFullError, Features
from graftline.features.digests import distinct
from graftline.features.engine import Engine
from graftline.features.segment import Segment
from graftline.features.store import MAX_SEGMENTS, ActivationStore
from graftline.files import sha256_file

WIDTH = 3 * 8 * 8


class Pixels:
    """A trunk that hands the pixels on, and counts the images."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, _: Tensor) -> Engine:
        return Engine(self._run, "pixels", callers=1, batch_size=4)

    def _run(self, images: Tensor) -> np.ndarray:
        self.images += len(images)
        result: np.ndarray = images.flatten(1).numpy()
        return result


@pytest.fixture
def samples(color_folder: Path) -> Samples:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    return Samples(paths, np.zeros(60, np.int64), None, [sha256_file(Path(path)) for path in paths])


def open_them(features: Features, samples: Samples, name: str, first: int = 0, last: int = 60) -> tuple[Any, int]:
    """Return the activations of some images for a network of that name, and how many were computed for it."""
    some = Samples(samples.paths[first:last], samples.labels[first:last], None, samples.sha256[first:last])
    request = ActivationRequest(some, EvalTransform(Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)), 0, {"name": name})
    trunk = Pixels()
    (opened,) = features.open([request], trunk, nn.Linear(WIDTH, 3), WIDTH)
    return opened, trunk.images


def names(directory: Path) -> list[str]:
    return sorted(json.loads(file.read_text())["key"]["name"] for file in directory.glob("*/*/segment.json"))


def age(directory: Path, name: str, seconds: float) -> None:
    """Say that a network's segments were last used some time ago."""
    for file in directory.glob("*/*/segment.json"):
        if json.loads(file.read_text())["key"]["name"] == name:
            os.utime(file.parent / "used", (time.time() - seconds,) * 2)


def test_the_one_not_used_for_longest_makes_room(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), max_gb=80e-6)  # three segments of 25 KB
    for seconds, name in ((300, "a"), (200, "b"), (100, "c")):
        open_them(features, samples, name)
        age(tmp_path, name, seconds)
    assert open_them(features, samples, "a")[1] == 0
    open_them(features, samples, "d")
    assert names(tmp_path) == ["a", "c", "d"]
    assert len(list(tmp_path.iterdir())) == 1 + 3, "nothing is left of a table that is empty"


def test_images_that_nobody_uses_any_more_make_room(samples: Samples, tmp_path: Path) -> None:
    """What is evicted is a segment, not all that a network ever gave."""
    features = Features(directory=str(tmp_path), max_gb=28e-6)
    open_them(features, samples, "a", 0, 20)
    age(tmp_path, "a", 100)
    open_them(features, samples, "a", 20, 60)
    open_them(features, samples, "b", 0, 10)
    assert names(tmp_path) == ["a", "b"]
    assert open_them(features, samples, "a", 20, 60)[1] == 0


def test_one_in_use_is_not_removed(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), max_gb=30e-6)  # one segment of 25 KB
    used, _ = open_them(features, samples, "a")
    with pytest.raises(CacheFullError, match=r"what is in use leaves"):
        open_them(features, samples, "b")
    assert names(tmp_path) == ["a"]
    del used
    open_them(features, samples, "b")
    assert names(tmp_path) == ["b"]


def test_exported_trunks_count_and_go_first(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 1000)
    file = store.trunk_file({"a": 1})
    file.parent.mkdir()
    file.write_bytes(bytes(600))
    store.make_room(300)
    assert file.exists()
    store.make_room(500)
    assert not file.exists()


def write_format_1(directory: Path) -> Path:
    """Write an entry as graftline 0.1 did."""
    entry = directory / "0123456789abcdef"
    (entry / "shards").mkdir(parents=True)
    described = {"key": {"dataset": "abc"}, "images": 60, "width": WIDTH, "dtype": "float16", "created": 0, "used": 0}
    (entry / "entry.json").write_text(json.dumps(described))
    (entry / "activations.bin").write_bytes(bytes(60 * WIDTH * 2))
    (entry / "used").touch()
    return entry


def test_entries_of_format_1_are_counted_and_make_room_first(
    samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = write_format_1(tmp_path)
    features = Features(directory=str(tmp_path), max_gb=70e-6)
    (listed,) = features.store.entries()
    assert (listed.name, listed.is_readable) == (entry.name, False)
    assert listed.bytes >= 23_000
    open_them(features, samples, "a")
    assert "of an earlier format: they are not read, and make room first" in capsys.readouterr().out.replace("\n", " ")
    age(tmp_path, "a", 10**6)
    assert entry.exists()
    open_them(features, samples, "b")
    assert not entry.exists(), "though it was used later"
    assert names(tmp_path) == ["a", "b"]


def test_many_small_segments_are_merged(samples: Samples, tmp_path: Path) -> None:
    """A data set that grows by an image a day does not end in a thousand open files."""
    features = Features(directory=str(tmp_path), precision="float32")
    computed = sum(open_them(features, samples, "a", 0, last)[1] for last in range(10, 61))
    assert computed == 60
    assert len(names(tmp_path)) <= MAX_SEGMENTS
    activations, more = open_them(features, samples, "a")
    assert more == 0
    fresh, _ = open_them(Features(directory=str(tmp_path / "fresh"), precision="float32"), samples, "a")
    np.testing.assert_array_equal(activations.array, fresh.array)


def test_merging_removes_nothing_of_the_table(samples: Samples, tmp_path: Path) -> None:
    """There is no room for two copies: the segment not used for longest is of the same images, so it must stay."""
    features = Features(directory=str(tmp_path), precision="float32")
    open_them(features, samples, "a", 0, 61 - MAX_SEGMENTS)
    age(tmp_path, "a", 100)
    for last in range(62 - MAX_SEGMENTS, 61):
        open_them(features, samples, "a", last - 1, last)
    assert len(names(tmp_path)) == MAX_SEGMENTS
    taken = sum(entry.bytes for entry in features.store.entries())
    full = Features(directory=str(tmp_path), precision="float32", max_gb=(taken + 1_000) / 1e9)
    assert open_them(full, samples, "a")[1] == 0
    assert len(names(tmp_path)) == MAX_SEGMENTS


def test_what_is_damaged_is_not_merged(samples: Samples, tmp_path: Path) -> None:
    features = Features(directory=str(tmp_path), precision="float32")
    for last in range(1, MAX_SEGMENTS + 1):
        open_them(features, samples, "a", last - 1, last)
    victim = max(tmp_path.glob("*/*/activations.bin"))  # all are as large; the last ones are taken
    victim.write_bytes(bytes(victim.stat().st_size))
    open_them(features, samples, "a", MAX_SEGMENTS, MAX_SEGMENTS + 1)
    assert len(names(tmp_path)) < MAX_SEGMENTS
    activations, computed = open_them(features, samples, "a")
    assert computed == 60 - MAX_SEGMENTS - 1 + 1, "those that are new, and the damaged one"
    fresh, _ = open_them(Features(directory=str(tmp_path / "fresh"), precision="float32"), samples, "a")
    np.testing.assert_array_equal(activations.array, fresh.array)


def test_what_a_process_left_that_was_killed_while_it_reserved_is_removed_first(
    samples: Samples, tmp_path: Path
) -> None:
    features = Features(directory=str(tmp_path), max_gb=55e-6)
    open_them(features, samples, "a")
    (whole,) = tmp_path.glob("*/*/segment.json")
    half = whole.parent.with_name("00001")
    half.mkdir()
    (half / "used").touch()
    (half / "activations.bin").write_bytes(bytes(23_040))
    assert Segment(half).header is None
    open_them(features, samples, "b")
    assert not half.exists()
    assert names(tmp_path) == ["a", "b"]


def test_digests_are_found() -> None:
    values = np.random.default_rng(0).integers(0, 2**63, (2, 1000), np.uint64)
    values[0, 500:] = values[0, :500]  # the first 8 bytes alone do not tell
    digests, first, which = distinct(values)
    assert len(digests) == 1000
    np.testing.assert_array_equal(first, np.arange(1000))
    np.testing.assert_array_equal(which, np.arange(1000))
    wanted = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(digests.find(values[:, wanted]), wanted)
    others = values[:, :10] + np.array([[0], [1]], np.uint64)
    np.testing.assert_array_equal(digests.find(others), np.full(10, -1))
    twice, first, which = distinct(np.concatenate([values[:, :3], values], axis=1))
    np.testing.assert_array_equal(twice.values, values)
    np.testing.assert_array_equal(first, [0, 1, 2, *range(6, 1003)])
    np.testing.assert_array_equal(which, [0, 1, 2, *range(1000)])
