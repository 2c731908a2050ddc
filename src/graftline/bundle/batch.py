"""Classify as many images as there are, part by part: what was killed goes on after the last part that is whole.

A folder belongs to one model and one list of images, by the digest in its name. It holds ``part-00000.csv`` (or
``.parquet``) and the following ones, each with the next rows; ``_job.json``, which says what they are of; and beside
each part the counts of its rows. A part takes its place in one step, after its counts.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd

from graftline.bundle.answers import Answers, Stream, Watch, join_answers, told
from graftline.bundle.engines import EngineName
from graftline.bundle.ensemble import AnyPredictor
from graftline.bundle.predict import to_table
from graftline.data.decoding import NO_FILE, OUT_OF_REACH
from graftline.data.file_names import to_text
from graftline.data.image_list import JOB_FILE, ImageList, ListedImage
from graftline.errors import UserError
from graftline.files import atomic_file, digest, write_json
from graftline.locks import Lock

TableFormat = Literal["csv", "parquet"]

PART_ROWS = 5_000  # what a killed job has to do again at most: half a minute, where a second is 150 images
_LAYOUT = 2  # raise it when a row of today would be another one tomorrow
_MOST_REASONS = 20  # of unreadable images that a part's counts keep


@dataclass(frozen=True)
class Tally:
    """Counts of rows.

    Attributes:
        images: all.
        classes: by class that is answered.
        refused: those that are none of the classes.
        reasons: of those that cannot be read or answered, by reason; of very many reasons the usual ones.
        unreadable: those that cannot be read or answered.
    """

    images: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0

    @classmethod
    def of(cls, table: pd.DataFrame) -> Self:
        """Count the rows of a table of `to_table`."""
        errors = table["error"].dropna().tolist()
        return cls(
            len(table),
            Counter(table["class"].dropna().tolist()),
            int(table["refused"].sum()) if "refused" in table else 0,
            Counter(dict(Counter(errors).most_common(_MOST_REASONS))),
            len(errors),
        )

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.images + other.images,
            self.classes + other.classes,
            self.refused + other.refused,
            self.reasons + other.reasons,
            self.unreadable + other.unreadable,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {**vars(self), "classes": dict(self.classes), "reasons": dict(self.reasons)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Return what ``to_dict`` wrote."""
        return cls(**{**fields, "classes": Counter(fields["classes"]), "reasons": Counter(fields["reasons"])})


@dataclass(frozen=True)
class BatchJob:
    """What a model makes of a list of images, in a folder of its own.

    Attributes:
        predictor: the model.
        images: the list.
        root: gets the folder.
        format: of the parts.
        engine: what runs the network; another one gives other digits.
        part_rows: of a part.
        watch: is shown each answer; None: nothing is.
        stream: what answers in the predictor's place, as its ``stream`` would: a cluster; None: the predictor itself.
    """

    predictor: AnyPredictor
    images: ImageList
    root: Path
    format: TableFormat = "csv"
    engine: EngineName = "onnx"
    part_rows: int = PART_ROWS
    watch: Watch | None = None
    stream: Stream | None = None

    @property
    def folder(self) -> Path:
        """The folder, named by the images and by all that decides on its rows."""
        return self.root / f"{self.images.title}-{digest(self._identity())}"

    def _identity(self) -> dict[str, Any]:
        return {
            "layout": _LAYOUT,
            "model": self.predictor.digest,
            "engine": self.engine,
            "images": self.images.digest,
            "format": self.format,
            "part_rows": self.part_rows,
        }

    @property
    def num_parts(self) -> int:
        """How many parts there will be."""
        return -(-self.images.count // self.part_rows)

    def part(self, number: int) -> Path:
        """Return the file of a part, from 0."""
        return self.folder / f"part-{number:05}.{self.format}"

    def _counts(self, number: int) -> Path:
        return self.folder / f"_part-{number:05}.json"

    def done(self) -> tuple[int, Tally]:
        """Return how many parts there are, and what they hold."""
        total = Tally()
        for number in range(self.num_parts):
            if not (self.part(number).exists() and self._counts(number).exists()):
                return number, total
            total += Tally.from_dict(json.loads(self._counts(number).read_text(encoding="utf-8")))
        return self.num_parts, total

    def run(self, on_progress: Callable[[int], None] | None = None) -> Tally:
        """Write the parts that are not there.

        Args:
            on_progress: is given the number of images just done, now and then.

        Returns:
            Counts of all parts.

        Raises:
            UserError: another process writes to the folder, or that of the images is away.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = Lock(self.folder / ".lock", shared=False, temporary=True)
        except BlockingIOError as error:
            raise UserError(f"Another process writes to {self.folder}: wait for it.") from error
        with lock:
            for left in self.folder.glob(".*.tmp.*"):  # of a process that was killed
                left.unlink()
            first, total = self.done()
            if first < self.num_parts:
                write_json(self.folder / JOB_FILE, {**self._identity(), "rows": self.images.count})
            for number, table in enumerate(self._tables(first, on_progress), first):
                total += self._write(number, table)
        return total

    def _tables(self, first: int, on_progress: Callable[[int], None] | None) -> Iterator[pd.DataFrame]:
        """Yield the rows of each part, from the first one that is missing."""
        listed: list[ListedImage] = []  # that the predictor has taken, but for those of parts that are written
        taken: list[str] = []  # paths of those that it has not answered yet

        def paths() -> Iterator[str]:
            for image in self.images.starting_at(first * self.part_rows):
                listed.append(image)
                taken.append(image.path)
                yield image.path

        answer: Stream = self.stream or self.predictor.stream
        with contextlib.closing(answer(paths(), embed=self.watch is not None)) as stream:
            for answers in _regrouped(told(self._watched(stream, taken), on_progress), self.part_rows):
                size = len(answers.probabilities)
                self._check_there(listed, answers)
                yield to_table(self.predictor, [to_text(image.name) for image in listed[:size]], answers)
                del listed[:size]

    def _check_there(self, images: Sequence[ListedImage], answers: Answers) -> None:
        """Make sure that missing files are missing one by one, and not because their folder is away.

        Raises:
            UserError: it is away, or was when they were read.
        """
        reasons = answers.reasons.items()
        away = next(((images[row], f", {reason}") for row, reason in reasons if reason.startswith(OUT_OF_REACH)), None)
        missing = self.images.find_away(images[row] for row, reason in reasons if reason == NO_FILE)
        lost, why = away or (missing, "")
        if lost is not None:
            folder, first = self.images.folder_of(lost), to_text(lost.name)
            raise UserError(
                f"{folder} was away while its images were read (first: {first}{why}): what was done before is kept, "
                "and the same command goes on with the rest once it is back."
            )

    def _watched(self, stream: Iterable[Answers], taken: list[str]) -> Iterator[Answers]:
        """Yield answers without their embeddings, and show them to those who watch."""
        for answers in stream:
            size = len(answers.probabilities)
            if self.watch is not None:
                self.watch.observe(taken[:size], answers)
            del taken[:size]
            yield answers._replace(embeddings=None)

    def _write(self, number: int, table: pd.DataFrame) -> Tally:
        """Write a part, its counts first: what is killed in between leaves no part without them."""
        tally = Tally.of(table)
        write_json(self._counts(number), tally.to_dict())
        with atomic_file(self.part(number)) as temporary:
            if self.format == "csv":
                table.to_csv(temporary, index=False)
            else:
                table.to_parquet(temporary, index=False)
        return tally


def _regrouped(batches: Iterable[Answers], size: int) -> Iterator[Answers]:
    """Yield the answers of batches in groups of a size; the last one may be smaller."""
    waiting, rows = list[Answers](), 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch.probabilities)
        while rows >= size:
            joined = join_answers(waiting)
            yield joined.rows(0, size)
            waiting, rows = [joined.rows(size, rows)], rows - size
    if rows:
        yield join_answers(waiting)
