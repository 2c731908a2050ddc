"""What was seen, on disk: a file for each hour and process, so that any number of them may write.

    DIRECTORY/DIGEST OF THE MODEL/2026-11-28T14/PROCESS.npz

Letters: N images, K classes.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from graftline.bundle.reference import Observations
from graftline.errors import first_line
from graftline.files import atomic_file
from graftline.monitoring.window import Window

logger = logging.getLogger(__name__)

HOUR = 3_600
HOUR_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}")
_COUNTS = ("seen", "unreadable", "refused")


@dataclass(frozen=True, eq=False)
class Kept:
    """What one process kept of one hour.

    Attributes:
        observed: of N images, drawn evenly from all that were seen.
        names: of them.
        counts: of images: seen (those with an answer), unreadable, refused.
        probabilities: (K,) float64, the sum over all images that were seen; empty if no image had an answer, or an
            earlier graftline has kept it.
        begin: when the first was seen, in s since 1970.
        end: when the last was.
        pictures: small versions of some of the images, as encoded files, by their number.
    """

    observed: Observations
    names: Sequence[str]
    counts: Mapping[str, int]
    probabilities: np.ndarray
    begin: float
    end: float
    pictures: Mapping[int, bytes]

    def save(self, file: Path) -> None:
        """Write it, atomically."""
        arrays = {field.name: getattr(self.observed, field.name) for field in fields(Observations)}
        with atomic_file(file) as temporary, temporary.open("wb") as opened:
            np.savez(
                opened,
                allow_pickle=False,
                names=np.array(self.names, dtype=np.str_),
                counts=np.array([self.counts[name] for name in _COUNTS]),
                probabilities=self.probabilities,
                times=np.array([self.begin, self.end]),
                picture_rows=np.array(list(self.pictures), np.int64),
                picture_sizes=np.array([len(one) for one in self.pictures.values()], np.int64),
                picture_bytes=np.frombuffer(b"".join(self.pictures.values()), np.uint8),
                **arrays,
            )

    def finite(self) -> "Kept":
        """Return it without images for which a network has given no numbers, which count as unreadable."""
        is_finite = np.isfinite(self.observed.embeddings).all(axis=1) & np.isfinite(self.observed.confidences)
        if is_finite.all():
            return self
        rows: list[int] = np.flatnonzero(is_finite).tolist()
        logger.warning(
            f"For {len(is_finite) - len(rows)} of {len(is_finite)} kept images the model has given no finite numbers: "
            "they are left out."
        )
        seen = round(self.counts["seen"] * len(rows) / len(is_finite))  # they were drawn evenly
        unreadable = self.counts["unreadable"] + self.counts["seen"] - seen
        return replace(
            self,
            observed=self.observed.take(rows),
            names=[self.names[row] for row in rows],
            counts={**self.counts, "seen": seen, "unreadable": unreadable},
            pictures={place: self.pictures[row] for place, row in enumerate(rows) if row in self.pictures},
        )

    @classmethod
    def load(cls, file: Path) -> "Kept":
        """Read what ``save`` wrote.

        Raises:
            Exception: of many kinds; it cannot be read.
        """
        with np.load(file, allow_pickle=False) as kept:
            arrays = {name: kept[name] for name in kept.files}
        pictures = np.split(arrays["picture_bytes"], np.cumsum(arrays["picture_sizes"])[:-1])
        begin, end = arrays["times"].tolist()
        return cls(
            Observations(*(arrays[field.name] for field in fields(Observations))),
            arrays["names"].tolist(),
            dict(zip(_COUNTS, arrays["counts"].tolist(), strict=True)),
            arrays.get("probabilities", np.empty(0)),
            begin,
            end,
            {row: one.tobytes() for row, one in zip(arrays["picture_rows"].tolist(), pictures, strict=False)},
        )


def hour_folder(moment: float) -> str:
    """Return the name of the folder of an hour, by a moment in it in s since 1970.

    >>> hour_folder(0), hour_folder(3_600 * 25)
    ('1970-01-01T00', '1970-01-02T01')
    """
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H}"


def read_window(directory: Path, begin: float, end: float, most: int, seed: int) -> Window | None:
    """Return what was seen of a model in a time; None where nothing was kept.

    Of each file so many images are drawn as it has seen, in proportion: a busy hour counts for more than a quiet one,
    though neither kept more than a few hundred images.

    Args:
        directory: of the model.
        begin: in s since 1970, or before; the whole hour counts.
        end: likewise, exclusive.
        most: images.
        seed: of the draws.
    """
    first, last = hour_folder(max(0, begin)), hour_folder(end)
    folders = sorted(one for one in directory.glob("*T*") if first <= one.name <= last) if directory.is_dir() else []
    kept = [one for folder in folders for file in sorted(folder.glob("*.npz")) if (one := _read(file)) is not None]
    if not kept:
        return None
    sizes = np.array([len(one.observed) for one in kept])
    some = sizes > 0  # else no image could be read
    seen = np.where(some, [one.counts["seen"] for one in kept], 0.0)
    total = min(most, int(sizes.sum()), int((sizes[some] * seen.sum() / seen[some]).min(initial=most) + 1e-9))
    shares = np.floor(total * seen / max(1.0, seen.sum()) + np.random.default_rng(seed).random(len(kept)))
    return _join(kept, np.minimum(shares, sizes).astype(int), seed)


def _read(file: Path) -> Kept | None:
    if file.name.startswith("."):  # of a process that writes just now, or that was killed while it did
        return None
    try:
        return Kept.load(file).finite()
    except Exception as error:  # what is wrong in a zip archive of arrays has a dozen kinds
        logger.warning(f"{file} cannot be read ({first_line(error)}): it is left out.")
        return None


def _join(kept: Sequence[Kept], numbers: np.ndarray, seed: int) -> Window:
    """Draw so many images of each file."""
    generator = np.random.default_rng(seed)
    parts: list[Observations] = []
    names: list[str] = []
    pictures: dict[int, bytes] = {}
    for one, number in zip(kept, numbers.tolist(), strict=True):
        rows = np.sort(generator.permutation(len(one.observed))[:number])
        pictures |= {len(names) + place: one.pictures[row] for place, row in enumerate(rows) if row in one.pictures}
        parts.append(one.observed.take(rows))
        names += [one.names[row] for row in rows]
    counts = {name: sum(one.counts[name] for one in kept) for name in _COUNTS}
    answered = [one.probabilities for one in kept if one.counts["seen"] > 0]
    is_known = bool(answered) and all(len(one) > 0 for one in answered)  # else some are of an earlier graftline
    return Window(
        Observations.join(parts),
        names,
        counts["seen"] + counts["unreadable"],
        counts["unreadable"],
        counts["refused"],
        datetime.fromtimestamp(min(one.begin for one in kept), UTC),
        datetime.fromtimestamp(max(one.end for one in kept), UTC),
        pictures,
        np.sum(answered, axis=0) / counts["seen"] if is_known else None,
    )
