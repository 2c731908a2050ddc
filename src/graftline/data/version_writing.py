"""Write a dataset version: its manifest once, and the bookkeeping beside it whenever that has changed."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graftline.data.changes import count_changes
from graftline.data.decisions import NO_DECISIONS, write_decisions
from graftline.data.decoding import PLAIN, Decoding
from graftline.data.departed import find_departed, write_departed
from graftline.data.further_columns import COLUMNS_FILE, write_columns
from graftline.data.manifest import COLUMNS, count_images, digest_manifest, digest_splits
from graftline.data.references import find_url
from graftline.data.rows import sorted_by
from graftline.data.version import FORMAT, DatasetVersion, newest_version
from graftline.files import atomic_directory, write_json

LOCK_FILE = "lock"  # beside the versions of a data set: who writes or removes one holds it
TEST_SETS = "test-sets"  # folder beside them, for versions that a model was only tested on: none grows from these


def write_version(
    folder: Path,
    name: str,
    table: pd.DataFrame,
    class_names: tuple[str, ...],
    *,
    parent: DatasetVersion | None = None,
    left_out: pd.DataFrame | None = None,
    split_settings: Mapping[str, float] | None = None,
    decoding: Decoding = PLAIN,
    decisions: pd.DataFrame = NO_DECISIONS,
    further: pd.DataFrame | None = None,
) -> tuple[DatasetVersion, bool]:
    """Write the version that holds ``table``, unless it is there already; it becomes the newest one in either case.

    Args:
        folder: gets ``<digest>/``.
        name: the data set's name.
        table: the columns of `DatasetVersion.table`, any order of rows, absolute paths.
        class_names: the classes in the order of their indices.
        parent: the version that this one grew from.
        left_out: images (columns sha256 and group) that are known but that no split could take.
        split_settings: what the split was asked to be; only kept.
        decoding: how the files become pixels.
        decisions: what people have decided on images, as `DatasetVersion.decisions` returns it; kept.
        further: further columns, a row for each of ``table``; without any, images keep what was told of them before.

    Returns:
        The version, and whether it is new.
    """
    root = common_folder(table["path"])
    manifest, order = _make_manifest(table, root)
    digest = digest_manifest(manifest, class_names, decoding)
    directory = folder / digest
    is_new = not all((directory / file).exists() for file in ("manifest.parquet", "summary.json"))
    existing = None if is_new else DatasetVersion.load(directory)
    same = existing or (parent if parent is not None and parent.digest == digest else None)  # from another machine
    newest = newest_version(folder)
    before = {version.directory: version for version in (existing, parent) if version is not None}
    departed = find_departed(manifest, [version.history() for version in before.values()], left_out)
    summary = {
        "format": FORMAT,
        "name": name,
        "digest": digest,
        "ingested": existing.ingested if existing is not None and newest == existing else _moment_after(newest),
        "root": root,
        "class_names": list(class_names),
        "counts": count_images(manifest, class_names),
        "split_digests": digest_splits(manifest),
        "departed": len(departed),
        **({} if decisions.empty else {"decisions": decisions["decision"].value_counts().to_dict()}),
        "decoding": decoding.to_dict(),
        **(_origin(manifest, parent, split_settings) if same is None else same.origin),
    }
    if further is not None and not further.columns.empty:
        further = further.take(order)
    elif parent is not None and (is_new or not (directory / COLUMNS_FILE).exists()):
        further = parent.further_columns(manifest["sha256"])
    _write(directory, existing, manifest, (departed, decisions, further), summary)
    return DatasetVersion.load(directory), is_new


def _make_manifest(table: pd.DataFrame, root: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the manifest of a table's images, whose paths lie below ``root``, and which row of it each is."""
    manifest = table.loc[:, list(COLUMNS)].assign(path=table["path"].str.slice(len(os.path.join(root, ""))))  # noqa: PTH118 (a prefix)
    manifest = sorted_by(manifest.reset_index(drop=True), ["path", "label"])
    return manifest.reset_index(drop=True).astype({"weight": "float32"}), manifest.index.to_numpy()


def _write(
    directory: Path,
    existing: DatasetVersion | None,
    manifest: pd.DataFrame,
    facts: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None],
    summary: Mapping[str, Any],
) -> None:
    """Write a version whole; of one that exists, the facts (departed, decisions, further columns) that changed."""
    departed, decisions, further = facts
    if existing is None:
        with atomic_directory(directory) as temporary:
            manifest.to_parquet(temporary / "manifest.parquet", index=False)
            write_columns(further, temporary / COLUMNS_FILE)
            _write_facts(temporary, departed, decisions, summary)
        return
    write_columns(further, directory / COLUMNS_FILE)
    if existing.summary != summary:
        _write_facts(directory, departed, decisions, summary)


def _write_facts(directory: Path, departed: pd.DataFrame, decisions: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """Write what a version knows beside its manifest; the summary is last, as it says that all is there."""
    write_departed(departed, directory / "departed.parquet")
    write_decisions(decisions, directory / "decisions.parquet")
    write_json(directory / "summary.json", summary)


def _origin(
    manifest: pd.DataFrame, parent: DatasetVersion | None, split_settings: Mapping[str, float] | None
) -> dict[str, Any]:
    """Return what a new version remembers of how it came to be."""
    return {
        "parent": None if parent is None else parent.digest,
        "split": None if split_settings is None else dict(split_settings),
        "changes": None if parent is None else count_changes(parent.contents(), manifest),
    }


def _moment_after(newest: DatasetVersion | None) -> str:
    """Return the present, or the moment after ``newest`` where a clock was set back or differs between machines."""
    moment = datetime.now(UTC)
    if newest is not None:
        moment = max(moment, datetime.fromisoformat(newest.ingested) + timedelta(microseconds=1))
    return moment.isoformat(timespec="microseconds")


def common_folder(paths: "pd.Series[str]") -> str:
    """Return the deepest folder that holds all of the absolute ``paths``; "" where some are here and some at URLs."""
    first, last = paths.min(), paths.max()  # what these two share at their start, all between them share
    if (find_url(first) is None) != (find_url(last) is None):
        return ""
    folder = os.path.commonpath([os.path.dirname(first), os.path.dirname(last)])  # noqa: PTH120 (strings)
    return find_url(folder) or folder
