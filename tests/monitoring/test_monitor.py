"""What a model sees is sampled and kept, by any number of processes, and never stands in the way of an answer."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drifting import paint_all

from graftline.bundle.answers import Answers
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.images import ImageLike, read_pixels
from graftline.bundle.reference import Observations, Projection, Reference
from graftline.data.decoding import PLAIN, Decoding
from graftline.monitoring import monitor as monitor_module
from graftline.monitoring.monitor import IMAGES_PER_HOUR, KEPT_DAYS, Monitor
from graftline.monitoring.store import HOUR, read_window
from graftline.monitoring.window import Window

WIDTH = 8  # of an embedding
NOON = 1_000_000 * HOUR


def embeddings_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


@pytest.fixture
def reference() -> Reference:
    embeddings = embeddings_of(60, 0)
    projection = Projection.fit(embeddings)
    answers = np.arange(60, dtype=np.int32) % 2
    observed = Observations(projection(embeddings), answers, np.ones(60, np.float32), np.ones((60, 5), np.float32))
    return Reference(observed, answers, np.arange(60, dtype=np.int32), projection)


def answers_to(count: int, seed: int = 1, unreadable: int = 0) -> Answers:
    probabilities = np.random.default_rng(seed).dirichlet((1, 1), count).astype(np.float32)
    return Answers(probabilities, None, dict.fromkeys(range(unreadable), "broken"), embeddings_of(count, seed))


@pytest.fixture
def photos(tmp_path: Path) -> list[bytes]:
    return [file.read_bytes() for file in paint_all(tmp_path / "photos", range(30))]


def make(folder: Path, reference: Reference, images: int = 0, clock: Callable[[], float] = lambda: NOON) -> Monitor:
    return Monitor(folder, "digest", reference, MOST_PROBABLE, PLAIN, images, clock)


def test_what_was_seen_is_there_afterwards(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    monitor, answers = make(tmp_path / "kept", reference), answers_to(30, unreadable=2)
    monitor.observe(photos, answers)
    monitor.close()
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (30, 2, 28)
    assert answers.embeddings is not None
    np.testing.assert_array_equal(window.observed.embeddings, reference.projection(answers.embeddings[2:]))
    np.testing.assert_array_equal(window.observed.answers, answers.probabilities[2:].argmax(axis=1))
    assert window.observed.facts[:, 3].tolist() == [1.0] * 28, "width to height"
    assert len(set(window.names)) == 28
    assert window.pictures == {}, "no images unless they are asked for"


def test_the_probabilities_of_all_are_added_up(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    """Of more images than the sample keeps, and those of two processes together."""
    given = []
    for seed in (1, 2):
        monitor = make(tmp_path / "kept", reference)
        for number in range(10):
            answers = answers_to(30, 10 * seed + number, unreadable=2)
            given.append(answers.probabilities[2:])
            monitor.observe(photos, answers)
        monitor.close()
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert window.class_shares is not None
    assert (window.num_seen, len(window.observed)) == (600, 400)
    np.testing.assert_allclose(window.class_shares, np.concatenate(given).mean(axis=0), rtol=1e-6)
    old = next((tmp_path / "kept").rglob("*.npz"))
    with np.load(old) as arrays:
        earlier = {name: arrays[name] for name in arrays.files if name != "probabilities"}
    np.savez(old, allow_pickle=False, **earlier)
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert (window.num_seen, window.class_shares) == (600, None), "an earlier graftline has kept none"


def test_pictures_are_kept_where_they_are_asked_for(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    monitor, answers = make(tmp_path / "kept", reference, images=3), answers_to(30)
    assert answers.embeddings is not None
    answers.embeddings[[4, 7, 9]] += 100
    monitor.observe(photos, answers)
    monitor.close()
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert sorted(window.pictures) == [4, 7, 9], "those farthest from the reference"
    assert all(one[8:12] == b"WEBP" for one in window.pictures.values())


def test_many_threads_and_processes_keep_an_even_sample(
    tmp_path: Path, reference: Reference, photos: list[bytes]
) -> None:
    busy, quiet = (make(tmp_path / "kept", reference) for _ in range(2))

    def ask() -> None:
        for seed in range(30):
            busy.observe(photos, answers_to(30, seed))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quiet.observe(photos[:20], answers_to(20))
    busy.close()
    quiet.close()
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert window.num_seen == 4 * 30 * 30 + 20
    assert len(window.observed) <= IMAGES_PER_HOUR + 20
    assert len(list((tmp_path / "kept").rglob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_file_is_left_out(
    damage: str, tmp_path: Path, reference: Reference, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    monitor = make(tmp_path / "kept", reference)
    monitor.observe(photos, answers_to(30))
    monitor.close()
    (whole,) = (tmp_path / "kept").rglob("*.npz")
    content = whole.read_bytes()
    harm = {"empty": b"", "cut": content[:2000], "flipped": content[:300] + b"\xff" * 40 + content[340:], "text": b"a"}
    whole.with_name("other.npz").write_bytes(harm[damage])
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert window.num_seen == 30
    assert "other.npz cannot be read" in caplog.text


def test_a_time_longer_than_the_calendar_is_all_of_it(
    tmp_path: Path, reference: Reference, photos: list[bytes]
) -> None:
    monitor = make(tmp_path / "kept", reference)
    monitor.observe(photos, answers_to(30))
    monitor.close()
    assert read_window(tmp_path / "kept" / "digest", NOON - 1e15, NOON, 1000, seed=0) is not None


def test_a_name_is_text_that_a_page_can_hold(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    monitor, file = make(tmp_path / "kept", reference), tmp_path / "caf\udce9.png"
    file.write_bytes(photos[0])
    monitor.observe([str(file)], answers_to(1))
    monitor.close()
    window = read_window(tmp_path / "kept" / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None
    assert window.names == [str(tmp_path / r"caf\xe9.png")]


def test_hours_have_files_of_their_own_and_old_ones_go(
    tmp_path: Path, reference: Reference, photos: list[bytes]
) -> None:
    old = tmp_path / "kept" / "digest" / "1970-01-01T00"
    of_another = tmp_path / "kept" / "replaced" / "1970-01-01T00"
    not_ours = tmp_path / "kept" / "photos" / "1970 in Toulouse"
    for folder in (old, of_another, not_ours):
        folder.mkdir(parents=True)
    moments = iter([NOON, NOON + HOUR, NOON + HOUR, NOON + HOUR])
    monitor = make(tmp_path / "kept", reference, clock=lambda: next(moments, NOON + KEPT_DAYS * 24 * HOUR - 1))
    monitor.observe(photos[:10], answers_to(10))
    monitor.observe(photos[10:], answers_to(20))
    monitor.close()
    assert len(list((tmp_path / "kept").rglob("*.npz"))) == 2
    assert not old.exists()
    assert not of_another.parent.exists(), "nor anything of the model before"
    assert not_ours.exists()
    window = read_window(tmp_path / "kept" / "digest", NOON + HOUR, NOON + HOUR, 1000, seed=0)
    assert window is not None
    assert window.num_seen == 20, "of the second hour"


def test_what_cannot_be_kept_costs_a_warning(
    tmp_path: Path, reference: Reference, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text("a file where the directory should be")
    monitor = make(tmp_path / "kept", reference)
    with caplog.at_level(logging.WARNING):
        monitor.observe(photos, answers_to(30))
        monitor.observe(photos, answers_to(29))  # a row too few: our own mistake
        monitor.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("answers go on.")


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Lets the monitor look at one more image whenever it is released."""
    turns = threading.Semaphore(0)

    def wait_and_read(image: ImageLike, decoding: Decoding) -> np.ndarray:
        turns.acquire()
        return read_pixels(image, decoding)

    monkeypatch.setattr(monitor_module, "read_pixels", wait_and_read)
    return turns


def test_files_that_wait_take_little_memory(
    tmp_path: Path,
    reference: Reference,
    photos: list[bytes],
    turns: threading.Semaphore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor_module, "MOST_BYTES", sum(map(len, photos[:3])))
    monitor = make(tmp_path, reference)
    monitor.observe(photos, answers_to(30))
    assert monitor._waiting_bytes == monitor_module.MOST_BYTES
    turns.release(30)
    monitor.close()
    assert monitor._waiting_bytes == 0
    assert (read(tmp_path).num_seen, len(read(tmp_path).observed)) == (30, 3), "all are counted"


def test_a_sample_is_even_where_images_come_faster_than_they_are_looked_at(
    tmp_path: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_slowly(image: ImageLike, decoding: Decoding) -> np.ndarray:
        time.sleep(0.003)
        return np.full((8, 8, 3), int(str(image)) % 256, np.uint8)

    monkeypatch.setattr(monitor_module, "read_pixels", read_slowly)
    ranks = list[int]()
    for number in range(3):
        monitor = make(tmp_path / str(number), reference)
        for first in range(0, 2000, 20):
            monitor.observe([str(rank) for rank in range(first, first + 20)], answers_to(20))
        monitor.close(patient=True)
        kept = [int(name) for name in read(tmp_path / str(number)).names]
        assert len(set(kept)) == len(kept) == IMAGES_PER_HOUR
        ranks += kept
    # a rank is uniform from 0 to 1999: the mean of 600 has a standard deviation of 2000 / sqrt(12 * 600) = 24
    assert np.mean(ranks) == pytest.approx(1000, abs=120)


def test_what_was_counted_is_written_before_what_waits_is_looked_at(
    tmp_path: Path,
    reference: Reference,
    photos: list[bytes],
    turns: threading.Semaphore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(monitor_module, "CLOSE_SECONDS", 0.5)
    monitor = make(tmp_path, reference)
    monitor.observe(photos, answers_to(30))
    closing = threading.Thread(target=monitor.close)
    closing.start()
    assert monitor._closing.wait(10)
    turns.release()
    closing.join()
    assert "What the model has seen last may not be kept" in caplog.text
    assert (read(tmp_path).num_seen, len(read(tmp_path).observed)) == (30, 1)
    turns.release()
    monitor._thread.join(10)
    assert (read(tmp_path).num_seen, len(read(tmp_path).observed)) == (30, 2)


def read(folder: Path) -> Window:
    window = read_window(folder / "digest", NOON - 10 * HOUR, NOON + HOUR, 1000, seed=0)
    assert window is not None
    return window


def test_an_hour_of_unreadable_images_is_counted(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    monitor = make(tmp_path, reference)
    monitor.observe(photos, answers_to(30, unreadable=30))
    monitor.close()
    window = read_window(tmp_path / "digest", NOON - HOUR, NOON, 1000, seed=0)
    assert window is not None, "it is not as if nothing had been kept"
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (30, 30, 0)
    monitor = make(tmp_path, reference, clock=lambda: NOON + HOUR)
    monitor.observe(photos, answers_to(30))
    monitor.close()
    window = read(tmp_path)
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (60, 30, 30)


def test_a_clock_that_is_set_back_overwrites_nothing(tmp_path: Path, reference: Reference, photos: list[bytes]) -> None:
    now = [NOON]
    monitor = make(tmp_path, reference, clock=lambda: now[0])
    for now[0] in (NOON, NOON + HOUR, NOON):
        monitor.observe(photos, answers_to(30))
    monitor.close()
    assert read(tmp_path).num_seen == 90


def test_an_image_that_nobody_has_time_for_keeps_no_earlier_one(
    tmp_path: Path, reference: Reference, photos: list[bytes]
) -> None:
    monitor = make(tmp_path, reference, images=5)
    many = IMAGES_PER_HOUR // len(photos) + 1
    for _ in range(many):
        monitor.observe(photos, answers_to(30))
    hour = monitor._hour
    assert hour is not None
    deadline = time.monotonic() + 60
    while monitor._waiting or not hour.places:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    place = max(hour.places)
    with monitor._lock:
        monitor._clear(hour, place, 10**6)  # as for an image that found no room to wait
    monitor.close()
    assert place not in hour.places
    assert place not in hour.pictures


def test_images_without_finite_numbers_are_left_out(
    tmp_path: Path, reference: Reference, photos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    monitor, answers = make(tmp_path, reference), answers_to(30)
    assert answers.embeddings is not None
    answers.embeddings[:4] = np.nan
    monitor.observe(photos, answers)
    monitor.close()
    window = read(tmp_path)
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (30, 4, 26)
    assert np.isfinite(window.observed.embeddings.astype(np.float32)).all()
    assert "For 4 of 30 kept images the model has given no finite numbers: they are left out." in caplog.text


def test_an_hour_of_images_without_finite_numbers_takes_no_images_of_another(
    tmp_path: Path, reference: Reference, photos: list[bytes]
) -> None:
    """Each hour has its share of a window by the images that it has seen with an answer."""
    monitor, answers = make(tmp_path, reference), answers_to(30)
    assert answers.embeddings is not None
    answers.embeddings[1:] = np.nan
    monitor.observe(photos, answers)
    monitor.close()
    monitor = make(tmp_path, reference, clock=lambda: NOON + HOUR)
    monitor.observe(photos, answers_to(30))
    monitor.close()
    window = read(tmp_path)
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (60, 29, 31)
