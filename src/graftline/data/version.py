"""A dataset version: an immutable table of images, named by the digest of what it holds.

On disk it is a folder ``<name>/<digest>/`` of two files: ``manifest.parquet``, a row per image, and ``summary.json``.
The manifest's paths are relative to the root named in the summary, so that the same images elsewhere give the same
digest.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graftline.errors import UserError
from graftline.files import atomic_directory, write_json

SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "label", "split", "group", "weight", "stratum", "sha256", "width", "height")
_FORMAT = 1  # raise it when the files' layout changes


@dataclass(frozen=True)
class Samples:
    """The images of one split, ready for a loader (N images)."""

    paths: list[str]  # N absolute paths
    labels: np.ndarray  # (N,) int64, indices into the version's class_names
    weights: np.ndarray | None  # (N,) float32, mean not normalized; None when the dataset has none
    sha256: list[str]  # N digests of the files' bytes, in hex


@dataclass(frozen=True)
class DatasetVersion:
    """An immutable table of images.

    Attributes:
        name: the data set's name.
        digest: 16 hex digits, of the images' contents, relative paths, labels, splits, groups, weights and strata.
        directory: where ``manifest.parquet`` and ``summary.json`` lie.
        class_names: the classes, in the order of their indices.
    """

    name: str
    digest: str
    directory: Path
    class_names: tuple[str, ...]

    @classmethod
    def load(cls, directory: Path) -> "DatasetVersion":
        """Open the version in ``directory``.

        Raises:
            UserError: there is none, or a later graftline wrote it.
        """
        summary = _read_summary(directory)
        return cls(summary["name"], summary["digest"], directory, tuple(summary["class_names"]))

    def table(self) -> pd.DataFrame:
        """Return a row per image, ordered by path, with absolute paths and labels as class names.

        Columns: path, label, split ("train" | "validation" | "test"), group (None: alone), weight (float32, NaN: none),
        stratum, sha256, width and height in pixels as decoded.
        """
        table = pd.read_parquet(self.directory / "manifest.parquet")
        table["path"] = os.path.join(_read_summary(self.directory)["root"], "") + table["path"]  # noqa: PTH118 (a prefix)
        return table

    def samples(self, split: str) -> Samples:
        """Return the images of one split in the manifest's order.

        Raises:
            UserError: the split is unknown or has no images.
        """
        if split not in SPLITS:
            raise UserError(f"There is no split '{split}': choose one of {', '.join(SPLITS)}.")
        rows = self.table().query("split == @split")
        if rows.empty:
            raise UserError(f"The {split} split of {self.name} has no images: ingest with a larger data.split.{split}.")
        indices = {name: index for index, name in enumerate(self.class_names)}
        weights = None if rows["weight"].isna().all() else rows["weight"].to_numpy(np.float32)
        return Samples(
            rows["path"].tolist(), rows["label"].map(indices).to_numpy(np.int64), weights, rows["sha256"].tolist()
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images by split and class: ``counts()["train"]["cat"]``."""
        counts: dict[str, dict[str, int]] = _read_summary(self.directory)["counts"]
        return counts


def write_version(
    parent: Path, name: str, table: pd.DataFrame, class_names: tuple[str, ...]
) -> tuple[DatasetVersion, bool]:
    """Write the version that holds ``table``, unless it is there already.

    Args:
        parent: the folder that gets ``<digest>/``.
        name: the data set's name.
        table: the columns of `DatasetVersion.table`, any order of rows, absolute paths.
        class_names: the classes in the order of their indices.

    Returns:
        The version, and whether it is new.
    """
    root = _common_folder(table["path"])
    manifest = table.loc[:, list(COLUMNS)].assign(path=table["path"].str.slice(len(os.path.join(root, ""))))  # noqa: PTH118
    manifest = manifest.sort_values(["path", "label"], ignore_index=True).astype({"weight": "float32"})
    digest = _digest(manifest, class_names)
    directory = parent / digest
    summary = {
        "format": _FORMAT,
        "name": name,
        "digest": digest,
        "root": root,
        "class_names": list(class_names),
        "counts": _count(manifest, class_names),
    }
    is_new = not all((directory / file).exists() for file in ("manifest.parquet", "summary.json"))
    if is_new:
        with atomic_directory(directory) as temporary:
            manifest.to_parquet(temporary / "manifest.parquet", index=False)
            write_json(temporary / "summary.json", summary)
    elif _read_summary(directory) != summary:  # the same images, moved
        write_json(directory / "summary.json", summary)
    return DatasetVersion(name, digest, directory, class_names), is_new


def _count(manifest: pd.DataFrame, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    found = manifest.groupby(["split", "label"]).size().to_dict()
    return {split: {label: int(found.get((split, label), 0)) for label in class_names} for split in SPLITS}


def _read_summary(directory: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{directory} holds no dataset version: give the folder that has its summary.json.") from error
    if summary["format"] > _FORMAT:
        raise UserError(f"{directory} was written by a later graftline: update graftline, or ingest again.")
    return summary


def _common_folder(paths: "pd.Series[str]") -> str:
    """Return the deepest folder that holds all of the absolute ``paths``."""
    first, last = paths.min(), paths.max()  # what these two share at their start, all between them share
    return os.path.commonpath([os.path.dirname(first), os.path.dirname(last)])  # noqa: PTH120 (strings)


def _digest(manifest: pd.DataFrame, class_names: tuple[str, ...]) -> str:
    """Return 16 hex digits for a manifest with relative paths, row by row so that memory stays flat."""
    total = hashlib.sha256(json.dumps([_FORMAT, class_names]).encode())
    missing = manifest.isna()
    rows = zip(*(manifest[column].astype(object).mask(missing[column], None) for column in COLUMNS), strict=True)
    for row in rows:
        total.update(json.dumps(row).encode())
    return total.hexdigest()[:16]
