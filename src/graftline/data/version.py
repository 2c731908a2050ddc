"""Keep a dataset version: an immutable table of images, named by the digest of what it holds.

On disk it is a folder ``<name>/<digest>/``:

    manifest.parquet  a row per image; paths are relative to the root named in the summary, so that the same images
                      elsewhere give the same digest
    summary.json      the root, classes, counts, a digest per split, the parent and what has changed since
    findings.json     what ingest found
    departed.parquet  where images were that earlier versions had and this one has not; only if there are any
    decisions.parquet what people have decided on its images (`graftline.data.decisions`); only if they have
    columns.parquet   what else its source tells of them (`graftline.data.further_columns`); only if it does

Manifest and digest never change. The rest is bookkeeping: a version that comes up again in another chain of versions
gains what that chain knows of departed images, and has the further columns of the source that told them last.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from graftline.data.decisions import NO_DECISIONS
from graftline.data.decoding import PLAIN, Decoding
from graftline.data.departed import HISTORY_COLUMNS
from graftline.data.further_columns import COLUMNS_FILE
from graftline.data.hashing import hash_rows, hash_texts
from graftline.data.manifest import SPLITS, count_images, digest_splits
from graftline.data.rows import read_parquet
from graftline.errors import UserError

FORMAT = 2  # raise it when the files' layout changes; format 1 had no parent, split digests and departed images


@dataclass(frozen=True)
class Samples:
    """Hold the images of one split, ready for a loader (N images)."""

    paths: list[str]  # N absolute paths
    labels: np.ndarray  # (N,) int64, indices into the version's class_names
    weights: np.ndarray | None  # (N,) float32, mean not normalized; None when the dataset has none
    sha256: list[str]  # N digests of the files' bytes, in hex
    decoding: Decoding = PLAIN  # how the files become pixels
    sizes: np.ndarray | None = None  # (N, 2) int64, height and width in px as ingest decoded them

    def take(self, rows: np.ndarray) -> "Samples":
        """Return some of the images, in the order of the rows."""
        paths, sha256 = ([column[row] for row in rows.tolist()] for column in (self.paths, self.sha256))
        weights, sizes = (None if column is None else column[rows] for column in (self.weights, self.sizes))
        return Samples(paths, self.labels[rows], weights, sha256, self.decoding, sizes)


@dataclass(frozen=True)
class DatasetVersion:
    """Read an immutable table of images.

    Attributes:
        name: the data set's name.
        digest: 16 hex digits, of the images' contents, relative paths, labels, splits, groups, weights and strata, and
            of the settings by which they become pixels where there are any.
        directory: where its files lie.
        class_names: the classes, in the order of their indices.
        parent: digest of the version that it grew from; None for a first one.
    """

    name: str
    digest: str
    directory: Path
    class_names: tuple[str, ...]
    parent: str | None = None

    @classmethod
    def load(cls, directory: Path) -> "DatasetVersion":
        """Open the version in ``directory``.

        Raises:
            UserError: there is none, or a later graftline wrote it.
        """
        summary = _read_summary(directory)
        class_names = tuple(summary["class_names"])
        version = cls(summary["name"], summary["digest"], directory, class_names, summary.get("parent"))
        version.__dict__["summary"] = summary  # where the cached property keeps it
        return version

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Return the content of ``summary.json``, read once."""
        return _read_summary(self.directory)

    @cached_property
    def split_digests(self) -> Mapping[str, str]:
        """Return 16 hex digits for each split, of its images' contents and labels, wherever they lie."""
        digests: dict[str, str] = self.summary.get("split_digests") or digest_splits(self._table)
        return digests

    @property
    def test_digest(self) -> str:
        """Return the digest of the test split: scores of the same test digest are of the same images."""
        return self.split_digests["test"]

    @property
    def origin(self) -> dict[str, Any]:
        """Return how the version came to be: its parent, what the split was asked to be, and what has changed since."""
        return {key: self.summary.get(key) for key in ("parent", "split", "changes")}

    @cached_property
    def decoding(self) -> Decoding:
        """Return how the version's files become pixels, for all that looks at them and for the models trained on it."""
        return Decoding.from_dict(self.summary.get("decoding"))

    @property
    def ingested(self) -> str:
        """Return when an ingest last gave this version after another one; in UTC, ordered as text."""
        written = datetime.fromtimestamp((self.directory / "summary.json").stat().st_mtime, UTC)
        return str(self.summary.get("ingested") or written.isoformat(timespec="microseconds"))

    @cached_property
    def _table(self) -> pd.DataFrame:
        table = self._read("manifest.parquet")
        table["path"] = os.path.join(self.summary["root"], "") + table["path"]  # noqa: PTH118 (a prefix)
        return table

    def table(self) -> pd.DataFrame:
        """Return a row per image, ordered by path, with absolute paths and labels as class names; read once.

        Columns: path, label, split ("train" | "validation" | "test"), group (None: alone), weight (float32, NaN: none),
        stratum, sha256, width and height in pixels as decoded.

        Raises:
            UserError: the version has lost its manifest.
        """
        return self._table.copy(deep=False)  # pandas copies what a caller changes, then

    def contents(self) -> pd.DataFrame:
        """Return sha256, label and split of each image; the rest of the table, paths above all, is not read for it.

        Raises:
            UserError: the version has lost its manifest.
        """
        return self._columns(["sha256", "label", "split"])

    def history(self) -> pd.DataFrame:
        """Return where images have been, in this version and in all that it grew from.

        Returns:
            Distinct rows of sha256, group and split; split is None for images that no split could take.

        Raises:
            UserError: the version has lost one of its files.
        """
        return self._history.copy(deep=False)

    @cached_property
    def _history(self) -> pd.DataFrame:
        rows = [self._columns(list(HISTORY_COLUMNS))]
        if self.summary.get("departed", 0) > 0:  # without the file, an image that comes back could change its split
            rows.append(self._read("departed.parquet"))
        history: pd.DataFrame = pd.concat(rows, ignore_index=True)
        again = pd.Series(hash_rows(history)).duplicated()
        return history[~again].reset_index(drop=True) if again.any() else history

    def decisions(self) -> pd.DataFrame:
        """Return what people have decided on images, for this version or one that it grew from.

        Returns:
            Rows of sha256, label (the one that it had), suggested and decision ("keep", "relabel" or "drop").

        Raises:
            UserError: the version has lost the file.
        """
        return self._read("decisions.parquet") if self.summary.get("decisions") else NO_DECISIONS

    def further_columns(self, sha256: "list[str] | pd.Series[str]") -> pd.DataFrame:
        """Return what the source tells of images (N digests) beside the columns of `table`.

        Returns:
            N rows of categories, NaN where the version has no such image; without columns where none are told.
        """
        if not (self.directory / COLUMNS_FILE).exists():
            return pd.DataFrame(index=range(len(sha256)))
        contents = self._columns(["sha256"])["sha256"].drop_duplicates()
        columns = self._read(COLUMNS_FILE).loc[contents.index].set_axis(contents.to_numpy())
        return columns.reindex(sha256).reset_index(drop=True)

    @property
    def files(self) -> list[Path]:
        """Return the files that `load` needs on another machine, and that with what was found."""
        names = ("manifest.parquet", "summary.json", "departed.parquet", "decisions.parquet", COLUMNS_FILE)
        return [file for name in (*names, "findings.json") if (file := self.directory / name).exists()]

    def samples(self, split: str) -> Samples:
        """Return the images of one split in the manifest's order.

        Raises:
            UserError: the split is unknown or has no images.
        """
        rows = self._rows(split)
        indices = {name: index for index, name in enumerate(self.class_names)}
        weights = None if rows["weight"].isna().all() else rows["weight"].to_numpy(np.float32)
        labels = rows["label"].map(indices).to_numpy(np.int64)
        sizes = rows[["height", "width"]].to_numpy(np.int64)
        return Samples(rows["path"].tolist(), labels, weights, rows["sha256"].tolist(), self.decoding, sizes)

    def renumber(self, labels: np.ndarray, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return labels (N,) as indices into the class names of a model, which has them in an order of its own."""
        numbers = {name: number for number, name in enumerate(class_names)}
        renumbered: npt.NDArray[np.int64] = np.array([numbers[name] for name in self.class_names])[labels]
        return renumbered

    def num_images(self, split: str) -> int:
        """Return how many images there are in one split.

        Raises:
            UserError: the split is unknown or has no images.
        """
        return len(self._rows(split))

    def _rows(self, split: str) -> pd.DataFrame:
        if split not in SPLITS:
            raise UserError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
        rows = self._table.query("split == @split")
        if rows.empty:
            raise UserError(
                f"The {split} split of {self.name} has no images: ingest with Ingest.parent='none', which draws all "
                f"splits anew, and Split.{split} above 0."
            )
        return rows

    def seen_in_training(self, sha256: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Tell which images have trained a model of this version, or chosen its epoch.

        Args:
            sha256: digests of N images.

        Returns:
            (N,) whether an image is in the training or validation split.

        Raises:
            UserError: the version has lost its manifest.
        """
        contents = self.contents()
        return np.asarray(pd.Series(sha256, dtype=str).isin(contents.loc[contents["split"] != "test", "sha256"]))

    def has_any_of(self, sha256: "pd.Series[str]") -> bool:
        """Tell whether any of some images, by their digests, is in the version.

        Raises:
            UserError: the version has lost its manifest.
        """
        wanted = hash_texts(sha256)
        if (table := self.__dict__.get("_table")) is not None:
            return bool(np.isin(hash_texts(table["sha256"]), wanted).any())
        with self._found("manifest.parquet"), pq.ParquetFile(self.directory / "manifest.parquet") as manifest:
            parts = (part.to_pandas()["sha256"] for part in manifest.iter_batches(columns=["sha256"]))
            return any(np.isin(hash_texts(part), wanted).any() for part in parts)  # mostly the first one tells

    def groups(self, split: str) -> list[str]:
        """Return a name for what each image of a split must stay together with, in the order of ``samples``.

        It is the image's group, or where it has none its content.
        """
        rows = self._table[self._table["split"] == split]
        groups: list[str] = rows["group"].mask(rows["group"].isna(), "sha256:" + rows["sha256"]).tolist()
        return groups

    def is_part_of(self, later: "DatasetVersion") -> bool:
        """Tell whether each image is in another version too: the same file with the same content, label, split and all.

        Raises:
            UserError: one of the two has lost its manifest.
        """
        rows = [pd.util.hash_pandas_object(one._table.astype("str"), index=False) for one in (self, later)]
        return self.decoding == later.decoding and bool(rows[0].isin(rows[1]).all())

    def part(self, *, least_of_class: int = 1, **images: int) -> "DatasetVersion":
        """Return the version with about so many images of the splits named, each class in proportion, none lost.

        Their contents decide which ones, so that a data set that grows keeps most of them.

        Args:
            least_of_class: so many of each class are taken, as far as there are, even beyond its share.
            images: by split: ``part(train=1000)``; a split that has no more stays whole, and one that is not named.
        """
        table = self._table
        rank = table.groupby(["split", "label"])["sha256"].rank(method="first")
        sizes = {str(split): size for split, size in table["split"].value_counts().items()}
        share = table["split"].map(
            {split: min(1.0, images.get(str(split), size) / size) for split, size in sizes.items()}
        )
        of_class = table.groupby(["split", "label"])["sha256"].transform("size")
        return self._with_table(table[rank <= np.maximum(np.ceil(share * of_class), least_of_class)])

    def divided(self, splits: Mapping[str, str]) -> "DatasetVersion":
        """Return the version with some of its images only, in other splits.

        Args:
            splits: digest of an image's file → split.
        """
        table = self._table[self._table["sha256"].isin(list(splits))]
        return self._with_table(table.assign(split=table["sha256"].map(dict(splits))))

    def _with_table(self, table: pd.DataFrame) -> "DatasetVersion":
        other = replace(self)
        # where the cached properties keep their values; the digests are of other images, and computed when asked for
        other.__dict__.update(_table=table, summary={**self.summary, "split_digests": None})
        return other

    def typical_side(self) -> int:
        """Return the length in px that the shorter side of nine in ten training images does not exceed.

        Raises:
            UserError: the version has lost its manifest.
        """
        sides = self._table.loc[self._table["split"] == "train", ["width", "height"]].min(axis=1)
        return int(sides.quantile(0.9, interpolation="lower"))

    def typical_aspect(self) -> float:
        """Return how many times as long as wide, or as wide as high, half of the training images are at most.

        Raises:
            UserError: the version has lost its manifest.
        """
        sides = self._table.loc[self._table["split"] == "train", ["width", "height"]]
        return float((sides.max(axis=1) / sides.min(axis=1)).median())

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class: ``counts()["train"]["cat"]``."""
        if "_table" in self.__dict__:  # which may have other images than the summary tells of
            return count_images(self._table, self.class_names)
        return {split: dict(classes) for split, classes in self.summary["counts"].items()}

    def _columns(self, names: list[str]) -> pd.DataFrame:
        """Return some columns, read alone unless the whole table is there: paths take most of the room."""
        table: pd.DataFrame | None = self.__dict__.get("_table")
        return self._read("manifest.parquet", names) if table is None else table[names]

    def _read(self, name: str, columns: list[str] | None = None) -> pd.DataFrame:
        with self._found(name):
            return read_parquet(self.directory / name, columns)

    @contextmanager
    def _found(self, name: str) -> Iterator[None]:
        """Say during the block that a file is lost where it is not found."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(f"{self.directory} has lost its {name}: restore it, or remove the folder.") from error


def order_by_content(sha256: Sequence[str]) -> npt.NDArray[np.intp]:
    """Return the rows of images, by their digests, in an order that any machine has and that knows no classes.

    The first so many are the ones to take of a data set that may grow: it keeps most of them. Copies stay in order.

    >>> order_by_content(["c0", "a1", "b7", "a1"])
    array([1, 3, 2, 0])
    """
    return np.argsort(np.array(sha256, dtype=str), kind="stable")


def newest_version(folder: Path) -> DatasetVersion | None:
    """Return the version in ``folder`` that was ingested last, None if there is none."""
    directories = [file.parent for file in folder.glob("*/summary.json") if not file.parent.name.startswith(".")]
    versions = (DatasetVersion.load(directory) for directory in directories)
    return max(versions, key=lambda version: version.ingested, default=None)


def _read_summary(directory: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{directory} holds no dataset version: give the folder that has its summary.json.") from error
    except ValueError as error:  # also of the version that a data set would grow from, which nobody has named
        raise UserError(f"The summary.json in {directory} is damaged: restore it, or remove the folder.") from error
    if summary["format"] > FORMAT:
        raise UserError(f"{directory} was written by a later graftline: update graftline, or ingest again.")
    return summary
