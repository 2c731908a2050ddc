"""Keep a small sample of what a model sees, for a later comparison: an answer never waits for it, nor fails with it.

Letters: N images, K classes, D numbers of a projected embedding.
"""

import contextlib
import hashlib
import io
import logging
import math
import os
import platform
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from graftline.bundle.answers import Answers
from graftline.bundle.decision import Decision
from graftline.bundle.images import ImageLike, read_pixels
from graftline.bundle.reference import Observations, Reference
from graftline.data.decoding import Decoding
from graftline.data.file_names import to_text
from graftline.data.image_facts import look_at
from graftline.errors import first_line
from graftline.monitoring.store import HOUR, HOUR_FOLDER, Kept, hour_folder
from graftline.monitoring.window import project

logger = logging.getLogger(__name__)

IMAGES_PER_HOUR = 200  # of each process: 50 kB, 1.2 MB a day
KEPT_DAYS = 90
SAVE_SECONDS = 60.0  # what a killed process loses, at most
MOST_BYTES = 64 * 2**20  # of images that are still to be looked at; what comes beyond is not sampled
PICTURE_SIDE = 192  # px, the longer one
NEIGHBOR = 5  # pictures are kept of images that lie far from so many of the reference
QUALITY = 78  # of 100
TICK_SECONDS = 0.5
CLOSE_SECONDS = 10.0  # that are spent at the end on images which are still to be looked at


@dataclass(frozen=True, eq=False)
class _Seen:
    """One image that is kept."""

    name: str
    observed: Observations


@dataclass(eq=False)
class _Hour:
    """What is kept of an hour, while it lasts.

    Attributes:
        folder: its name.
        file: in the folder; another one where a clock that is set back brings an hour twice.
        begin: when the first image was seen, in s since 1970.
        end: when the last was.
        counts: of images.
        probabilities: (K,) of the images with an answer, added up.
        drawn: number of the image that has a place of the sample, by place.
        places: of the sample, as far as they are taken and were looked at.
        pictures: distance from the reference and encoded file, by place.
    """

    folder: str
    file: str
    begin: float
    end: float
    counts: dict[str, int] = field(default_factory=lambda: {"seen": 0, "unreadable": 0, "refused": 0})
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(1))
    drawn: dict[int, int] = field(default_factory=dict)
    places: dict[int, _Seen] = field(default_factory=dict)
    pictures: dict[int, tuple[float, bytes]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Look:
    """An image that is to be looked at, for a place of the sample."""

    hour: _Hour
    place: int
    number: int
    image: ImageLike
    probabilities: np.ndarray
    embedding: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of the image that are held; a path holds none."""
        if isinstance(self.image, np.ndarray):
            return self.image.nbytes
        return len(self.image) if isinstance(self.image, bytes) else 0


class Monitor:
    """Samples what one model sees in this process; several processes may share a directory.

    An image is drawn before it is looked at, so that of a busy server's images few are decoded a second time (reservoir
    sampling: Vitter 1985, ACM Trans. Math. Softw. 11(1), algorithm R). A thread looks at them and writes; while an
    image waits for it, a later one that is drawn for the same place of the sample takes its turn.

    Args:
        directory: where the files go, in a folder by the model's digest.
        digest: of the model.
        reference: of the model.
        decision: of the model, and so is the rest.
        decoding: how files become pixels.
        images: of which small versions are kept, in an hour: those farthest from the reference; 0: none.
        clock: tells the time, in s since 1970.
    """

    def __init__(
        self,
        directory: Path,
        digest: str,
        reference: Reference,
        decision: Decision,
        decoding: Decoding,
        images: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory / digest
        self._process = f"{platform.node() or 'host'}-{os.getpid()}"
        self._reference, self._decision, self._decoding = reference, decision, decoding
        self._known = reference.observed.embeddings.astype(np.float32)
        self._images, self._clock = images, clock
        self._generator = np.random.default_rng()
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._hour: _Hour | None = None
        self._past: deque[_Hour] = deque()
        self._closing = threading.Event()
        self._waiting: dict[tuple[_Hour, int], _Look] = {}  # by hour and place: as many at most as the sample has
        self._waiting_bytes = 0
        self._end = math.inf  # when the looking stops, on the clock of time.monotonic
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)
        self._thread.start()

    def observe(self, images: Sequence[ImageLike], answers: Answers) -> None:
        """Take note of images and their answers; whatever goes wrong here is a warning.

        Args:
            images: N images, as the model was given them.
            answers: to them.
        """
        try:
            self._observe(images, answers)
        except Exception as error:  # an answer is not to fail because it was watched
            self._report(error)

    def close(self, *, patient: bool = False) -> None:
        """Write what there is, and stop.

        Args:
            patient: look at all images that wait, however long it takes.
        """
        with self._lock:
            if self._hour is not None:
                self._past.append(self._hour)
            self._hour = None
            self._end = math.inf if patient else time.monotonic() + CLOSE_SECONDS
        self._closing.set()
        self._thread.join(None if patient else 2 * CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("What the model has seen last may not be kept: an image or the disk takes too long.")

    def _observe(self, images: Sequence[ImageLike], answers: Answers) -> None:
        chosen: list[tuple[int, int, int]] = []  # row, place, number of the image
        with self._lock:
            hour = self._turn()
            for row in range(len(images)):
                if row in answers.reasons:
                    hour.counts["unreadable"] += 1
                    continue
                hour.counts["seen"] += 1
                hour.probabilities = hour.probabilities + answers.probabilities[row]
                hour.counts["refused"] += 0 if answers.refused is None else int(answers.refused[row])
                seen = hour.counts["seen"]
                place = seen - 1 if seen <= IMAGES_PER_HOUR else int(self._generator.integers(seen))
                if place < IMAGES_PER_HOUR:
                    chosen.append((row, place, seen))
                    self._clear(hour, place, seen)
        if not chosen:
            return
        embeddings = project(self._reference, answers.embeddings, len(images))
        for row, place, number in chosen:
            self._put(_Look(hour, place, number, images[row], answers.probabilities[row], embeddings[row]))

    def _put(self, look: _Look) -> None:
        """Let an image be looked at, unless too large ones wait already: the sample is a little smaller then."""
        with self._news:
            if look.hour.drawn[look.place] != look.number:  # another thread has drawn a later image
                return
            if (outdated := self._waiting.pop((look.hour, look.place), None)) is not None:
                self._waiting_bytes -= outdated.size
            if self._waiting_bytes + look.size > MOST_BYTES:
                return
            self._waiting[look.hour, look.place] = look
            self._waiting_bytes += look.size
            self._news.notify()

    def _take(self, seconds: float) -> bool:
        """Look at the next image; tell whether one has come within the time."""
        with self._news:
            self._news.wait_for(lambda: self._waiting, seconds)
            if not self._waiting:
                return False
            look = self._waiting.pop(next(iter(self._waiting)))
        self._guarded(self._look, look)
        with self._lock:
            self._waiting_bytes -= look.size
        return True

    @staticmethod
    def _clear(hour: _Hour, place: int, number: int) -> None:
        """Give a place of the sample to an image, whether or not it will be looked at in time."""
        hour.drawn[place] = number
        hour.places.pop(place, None)
        hour.pictures.pop(place, None)

    def _turn(self) -> _Hour:
        """Return the hour that it is now, and hand the last one over when it is past."""
        now = self._clock()
        folder = hour_folder(now)
        if self._hour is None or self._hour.folder != folder:
            if self._hour is not None:
                self._past.append(self._hour)
            self._hour = _Hour(folder, f"{self._process}-{os.urandom(4).hex()}.npz", now, now)
        self._hour.end = now
        return self._hour

    def _work(self) -> None:
        """Look at what was drawn, and write now and then, and when an hour is over."""
        due = time.monotonic() + SAVE_SECONDS
        while not self._closing.is_set():
            if not self._take(TICK_SECONDS):
                while self._past:
                    self._guarded(self._write, self._past.popleft())
                    self._guarded(self._remove_old)
            if time.monotonic() >= due and self._hour is not None:
                self._guarded(self._write, self._hour)
                due = time.monotonic() + SAVE_SECONDS
        self._finish()

    def _finish(self) -> None:
        """Write, as whoever ends this process may not wait; look at what waits, while there is time; write again."""
        hours = list(self._past)
        for hour in hours:
            self._guarded(self._write, hour)
        while time.monotonic() < self._end and self._take(0):
            pass
        for hour in hours:
            self._guarded(self._write, hour)
        self._guarded(self._remove_old)

    def _guarded(self, what: Callable[..., None], *arguments: object) -> None:
        try:
            what(*arguments)
        except Exception as error:  # a full disk, an image that has vanished: nothing that an answer depends on
            self._report(error)

    def _report(self, error: Exception) -> None:
        """Warn, once until it works again."""
        if not self._failing:
            logger.warning(f"Not all that the model sees is kept for later ({first_line(error)}): answers go on.")
        self._failing = True

    def _look(self, look: _Look) -> None:
        """Look at an image, and put it into its place of the sample."""
        pixels = read_pixels(look.image, self._decoding)
        facts = np.array(look_at(pixels)[0], np.float32)
        observed = Observations.of(self._decision, look.probabilities[None], look.embedding[None], facts[None])
        hour, place = look.hour, look.place
        distance = self._distance(look.embedding) if self._images > 0 else 0.0
        with self._lock:  # for no longer than that: answers wait for it
            if hour.drawn[place] != look.number:  # a later image has its place
                return
            hour.places[place] = _Seen(_name(look.image), observed)
            nearest = min(hour.pictures, key=lambda one: hour.pictures[one][0], default=place)
            is_full = len(hour.pictures) >= self._images
            if self._images == 0 or (is_full and hour.pictures[nearest][0] >= distance):
                return
        picture = _shrunk(pixels)
        with self._lock:
            if hour.drawn[place] == look.number:
                if is_full:
                    hour.pictures.pop(nearest, None)
                hour.pictures[place] = (distance, picture)

    def _distance(self, embedding: np.ndarray) -> float:
        """Return how far an image (D,) lies from the reference."""
        if len(self._known) < NEIGHBOR or len(embedding) == 0:
            return 0.0
        distances = np.linalg.norm(self._known - embedding.astype(np.float32), axis=1)
        return float(np.partition(distances, NEIGHBOR - 1)[NEIGHBOR - 1])

    def _write(self, hour: _Hour) -> None:
        with self._lock:
            places = sorted(hour.places)
            none = self._reference.observed.take(np.empty(0, np.int64))  # where no image could be read
            kept = Kept(
                Observations.join([none, *(hour.places[place].observed for place in places)]),
                [hour.places[place].name for place in places],
                dict(hour.counts),
                hour.probabilities,
                hour.begin,
                hour.end,
                {places.index(place): picture for place, (_, picture) in hour.pictures.items()},
            )
        kept.save(self._directory / hour.folder / hour.file)
        self._failing = False

    def _remove_old(self) -> None:
        """Remove old hours of all models, also of those that nobody runs any more."""
        oldest = hour_folder(self._clock() - KEPT_DAYS * 24 * HOUR)
        for folder in self._directory.parent.glob("*/*T*"):
            if HOUR_FOLDER.fullmatch(folder.name) and folder.name < oldest:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # it has further hours
                    folder.parent.rmdir()


def _name(image: ImageLike) -> str:
    """Return a path, or the beginning of the digest of what came without a name."""
    if isinstance(image, np.ndarray):
        image = image.tobytes()
    return hashlib.sha256(image).hexdigest()[:16] if isinstance(image, bytes) else to_text(image)


def _shrunk(pixels: np.ndarray) -> bytes:
    """Return a small version of an image (H, W, 3), as an encoded file."""
    picture, content = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    picture.save(content, "WEBP", quality=QUALITY)
    return content.getvalue()
