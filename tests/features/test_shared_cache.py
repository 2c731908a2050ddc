"""A cache that machines share at a URL: what one has computed, no other computes again."""

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import COLORS, paint
from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data import remote
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features import segment, shared_cache
from graftline.features.activation_table import ActivationTable
from graftline.features.cache import ActivationRequest, Features
from graftline.features.engine import Engine, make_engine
from graftline.features.shared_cache import SharedCache
from graftline.files import sha256_file

URL = "memory://bucket/activations"
PREPROCESSING = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
WIDTH = 4 * 16 * 16
TAIL = nn.Linear(WIDTH, 3)


@pytest.fixture(autouse=True)
def _storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(segment, "MAX_SHARD_IMAGES", 8)
    monkeypatch.setattr(remote, "WAITS", ())
    remote.statuses.clear()
    yield
    fsspec.filesystem("memory").rm("/bucket", recursive=True) if stored() else None


def stored() -> list[str]:
    system = fsspec.filesystem("memory")
    return list(system.find("/bucket")) if system.exists("/bucket") else []


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    paths = []
    for number in range(30):
        paths.append(str(tmp_path / f"{number}.png"))
        paint(list(COLORS.values())[number % 3], number).save(paths[-1])
    return Samples(paths, np.zeros(30, np.int64), None, [sha256_file(Path(path)) for path in paths])


def some(samples: Samples, count: int) -> Samples:
    return Samples(samples.paths[:count], samples.labels[:count], None, samples.sha256[:count])


class Machine:
    """A machine with a disk of its own, which counts the images that it computes."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.features = Features(directory=str(folder), **{"shared": URL, **settings})  # type: ignore[arg-type]
        self.file = folder.with_suffix(".onnx")
        self.computed = 0
        self.stored_at_end: list[int] = []  # how many files there were when its engine was ended

    def activations(self, samples: Samples) -> np.ndarray:
        torch.manual_seed(0)
        trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten())

        def counted(images: Tensor) -> Engine:
            engine = make_engine(trunk, self.file, images, Execution(threads=1))

            def run(batch: Tensor) -> np.ndarray:
                self.computed += len(batch)
                return engine.run(batch)

            return replace(engine, run=run, end=lambda: self.stored_at_end.append(len(stored())))

        request = ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {"network": "conv"})
        (found,) = self.features.open([request], counted, TAIL, WIDTH)
        return np.array(found.array)


def test_what_one_machine_has_computed_no_other_computes(tmp_path: Path, samples: Samples) -> None:
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    expected = first.activations(samples)
    assert first.computed >= 30
    np.testing.assert_array_equal(second.activations(samples), expected)
    assert second.computed == 0
    files = stored()
    assert len(files) == 5
    np.testing.assert_array_equal(second.activations(samples), expected)
    assert stored() == files


def test_the_engine_is_ended_before_the_upload(tmp_path: Path, samples: Samples) -> None:
    machine = Machine(tmp_path / "first")
    machine.activations(samples)
    assert machine.stored_at_end == [0]
    assert len(stored()) > 0


def test_only_new_images_are_computed_and_shared_in_turn(tmp_path: Path, samples: Samples) -> None:
    first, second, third = (Machine(tmp_path / name) for name in ("first", "second", "third"))
    first.activations(some(samples, 16))
    grown = second.activations(samples)
    assert second.computed <= 14 + 4  # and the few that the engine is compared with torch on
    np.testing.assert_array_equal(third.activations(samples), grown)
    assert third.computed == 0
    alone = Machine(tmp_path / "alone", shared=None)
    np.testing.assert_array_equal(alone.activations(samples), grown)


def test_the_same_images_are_shared_once(tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Machine(tmp_path / "first"), Machine(tmp_path / "second")
    with monkeypatch.context() as patch:  # it looked before the first one had uploaded anything
        patch.setattr("graftline.features.fill.CacheFill._pull", lambda *_: None)
        first.activations(samples)
        files = stored()
        second.activations(samples)
    assert second.computed >= 30
    assert stored() == files


def test_processes_that_have_filled_a_segment_together_share_it_once(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "cache", shared=None)
    machine.activations(samples)
    store = machine.features.store
    (entry,) = store.entries()
    table = ActivationTable(store.directory / entry.name, {})

    def upload_slowly(file: Path, url: str) -> None:
        time.sleep(0.02)
        remote.upload(file, url)

    monkeypatch.setattr(shared_cache, "upload", upload_slowly)
    processes = [
        threading.Thread(target=SharedCache(URL).push, args=(store, table, table.segments())) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(stored()) == 5


def test_what_is_damaged_there_is_computed(tmp_path: Path, samples: Samples, caplog: pytest.LogCaptureFixture) -> None:
    expected = Machine(tmp_path / "first").activations(samples)
    system = fsspec.filesystem("memory")
    (data,) = [file for file in stored() if file.endswith("activations.bin")]
    content = bytearray(system.cat_file(data))
    content[10] ^= 1
    system.pipe_file(data, bytes(content))
    second, third = Machine(tmp_path / "second"), Machine(tmp_path / "third")
    np.testing.assert_array_equal(second.activations(samples), expected)
    assert 8 <= second.computed <= 8 + 4  # those of its shard
    assert "1 of 4 shards of cached activations are damaged" in caplog.text
    system.pipe_file(data, b"")
    remote.statuses.clear()  # as on another machine
    np.testing.assert_array_equal(third.activations(samples), expected)
    assert third.computed >= 30
    assert "are damaged: they are left alone" in caplog.text


def test_what_there_is_no_room_for_stays_there(tmp_path: Path, samples: Samples) -> None:
    Machine(tmp_path / "first").activations(samples)
    small = Machine(tmp_path / "small", max_gb=17 * (2 * WIDTH + 20) / 1e9)
    small.activations(some(samples, 8))
    assert small.computed >= 8


def test_a_storage_that_is_away_costs_a_warning(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(url: str) -> tuple[object, str]:
        raise ConnectionError("no route to host")

    expected = Machine(tmp_path / "alone", shared=None).activations(samples)
    monkeypatch.setattr(remote, "_open", away)
    machine = Machine(tmp_path / "first")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(machine.activations(samples), expected)
    warnings = [message for message in caplog.messages if "Activations are not shared meanwhile." in message]
    assert len(warnings) == 2, "when it was to be read, and when it was to be written"
    assert "cannot be reached (no route to host)" in warnings[0]


@pytest.mark.parametrize("url", ["/mnt/activations", "https://host/activations"])
def test_a_place_that_cannot_be_written_to_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=rf"Features\.shared={url} is no storage that can be written to"):
        Features(shared=url)
    with pytest.raises(UserError, match="is a URL with a password or key in it"):
        Features(shared="s3://me:hush@bucket/activations")
