"""The manifest of a dataset version: a row per image, what it counts, and the digests that name it."""

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pandas as pd

from graftline.data.decoding import Decoding
from graftline.data.rows import order_by

SPLITS = ("train", "validation", "test")
COLUMNS = ("path", "label", "split", "group", "weight", "stratum", "sha256", "width", "height")
_AT_ONCE = 10_000  # rows that are made into objects, which take many times the room of columns
_DIGEST_FORMAT = 1  # raise it when the digest covers something else: all digests change


def count_images(manifest: pd.DataFrame, class_names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Return the number of images by split and class."""
    found = manifest.groupby(["split", "label"]).size().to_dict()
    return {split: {label: int(found.get((split, label), 0)) for label in class_names} for split in SPLITS}


def digest_splits(table: pd.DataFrame) -> dict[str, str]:
    """Return 16 hex digits for each split of a table with columns split, sha256 and label."""
    order, columns = order_by(table, ["sha256", "label"]), table[["sha256", "label"]]
    digests = {}
    for split in SPLITS:
        rows = columns.take(order[(table["split"] == split).to_numpy()[order]])
        digests[split] = _hash([], rows.itertuples(index=False, name=None))
    return digests


def digest_manifest(manifest: pd.DataFrame, class_names: tuple[str, ...], decoding: Decoding) -> str:
    """Return 16 hex digits for a manifest with relative paths, its classes, and how its files become pixels."""
    parts = (manifest.iloc[start : start + _AT_ONCE] for start in range(0, len(manifest), _AT_ONCE))
    rows = chain.from_iterable(map(_as_rows, parts))
    settings = [identity] if (identity := decoding.identity()) else []
    return _hash([_DIGEST_FORMAT, class_names, *settings], rows)


def _as_rows(manifest: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    """Return the rows of a manifest, with None where a value is missing."""
    missing = manifest.isna()
    return zip(*(manifest[column].astype(object).mask(missing[column], None) for column in COLUMNS), strict=True)


def _hash(head: Any, rows: Iterable[tuple[Any, ...]]) -> str:
    """Return 16 hex digits for a head and rows, one by one so that memory stays flat."""
    total = hashlib.sha256(json.dumps(head).encode())
    for row in rows:
        total.update(json.dumps(row).encode())
    return total.hexdigest()[:16]
