"""Keep the index of a shard: a Parquet file beside it that tells where each image lies and what is known of it.

A shard is a tar in WebDataset's layout (https://github.com/webdataset/webdataset): files that share a name up to its
first dot belong together, as ``0001.jpg``, ``0001.cls`` (the number of the class) and ``0001.json`` do.
"""

import errno
import hashlib
import json
import logging
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graftline.data.file_names import to_text
from graftline.data.image_bytes import FileStatus, is_there, open_image, read_status
from graftline.data.references import find_url
from graftline.data.remote import remote_status
from graftline.data.remote_cache import INDEX_SUFFIX, STATE_SUFFIX, cached_file
from graftline.data.sources.source import IMAGE_SUFFIXES, MOST_WEIGHT, find_split, tidy_label
from graftline.data.walk import is_leftover
from graftline.errors import UserError, first_line
from graftline.files import atomic_file, write_text

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "shard": pa.string(),  # the tar's name
        "name": pa.string(),  # of the image in it
        "offset": pa.int64(),  # of the image's first byte
        "size": pa.int64(),  # bytes
        "sha256": pa.string(),  # in hex
        "label": pa.string(),
        "class_index": pa.int64(),  # from 0; null where nobody numbered the classes
        "group": pa.string(),
        "split": pa.string(),  # as the source has given it
        "weight": pa.float32(),
        "stratum": pa.string(),
        "columns": pa.string(),  # further ones, as JSON; indices of before have no such column
    }
)
KNOWN = ("label", "split", "group", "weight", "stratum")  # what the .json of an image may tell
_PIECE = 2**20  # bytes read at once
SUMMARY = "shards.json"  # in a folder of shards that we wrote: what is to be in it, written first and never again
_SIZE, _MODIFIED = b"graftline.shard_bytes", b"graftline.shard_modified"  # the latter in ns
_NUMBER = re.compile("[0-9]{1,18}")  # of a class; longer ones are names, as no 64 bits hold them


def index_path(shard: Path) -> Path:
    """Return where the index of a shard lies: beside it, or in the cache where nobody has put its own beside it."""
    beside, url = shard.with_suffix(INDEX_SUFFIX), find_url(shard)
    if url is None or (is_there(str(beside)) and _is_of_now(url, str(beside))):
        return beside
    return cached_file(url).with_suffix(INDEX_SUFFIX)


def _is_of_now(url: str, beside: str) -> bool:
    """Tell whether the index beside a shard at a URL is of the shard as it is now, as far as this machine knows.

    The cache notes with which state of the shard an index was first read; the same index is none of another state.
    """
    index, state = find_url(beside), str(remote_status(url).stamp)
    assert index is not None
    note = cached_file(index).with_suffix(STATE_SUFFIX)
    if not note.exists():
        with suppress(OSError):  # a cache that cannot be written to
            write_text(note, state)
        return True
    is_of_now = note.read_text(encoding="utf-8") == state
    if not is_of_now:
        logger.warning(f"{index} is not of {url} as it is now: put the index of the new shard there, or remove it.")
    return is_of_now


def write_index(rows: Iterable[Mapping[str, Any]], shard: Path, file: Path, status: FileStatus) -> pa.Table:
    """Write the index of a shard, which must be complete, and return it.

    Args:
        rows: the values of `SCHEMA` but for the shard's name, for each image; what is missing is unknown.
        shard: the tar.
        file: where the index is to appear.
        status: of the tar that the rows are of.
    """
    table = pa.Table.from_pylist([{"shard": shard.name, **row} for row in rows], SCHEMA)
    table = table.replace_schema_metadata({_SIZE: str(status.size), _MODIFIED: str(status.modified)})
    with atomic_file(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return table


def read_index(shard: Path, file: Path) -> pa.Table | None:
    """Return the index of a shard; None where there is none, or the shard was written anew since, with the same size.

    Tars are padded, so that one whose labels were corrected mostly has its size of before: the time tells. Not so of
    shards that we wrote, which nobody writes anew, while a copy may have other times.

    Raises:
        UserError: it is none of ours, it is damaged, or the shard has another size than it had.
    """
    if not is_there(str(file)):
        return None
    way_out = f"remove {file}, and the shard is indexed anew"
    try:
        with open_image(file) as content:
            table = pq.read_table(content)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"The index {file} cannot be read ({first_line(error)}): {way_out}.") from error
    metadata = table.schema.metadata or {}
    written = int(metadata.get(_SIZE, -1))
    if "columns" not in table.column_names:
        table = table.append_column("columns", pa.nulls(len(table), pa.string()))
    if not set(SCHEMA.names) <= set(table.column_names) or written < 0:
        raise UserError(f"The index {file} does not fit, it is none of a shard: {way_out}.")
    size, modified, _ = read_status(str(shard))
    if size != written:
        raise UserError(
            f"The shard {shard} has changed since it was indexed, from {written:,} to {size:,} bytes: put the earlier "
            f"one back, or {way_out}."
        )
    is_local = find_url(shard) is None  # of a URL, `index_path` sees to it
    if is_local and int(metadata.get(_MODIFIED, -1)) != modified and not is_there(str(shard.with_name(SUMMARY))):
        return None
    ends = pc.max(pc.add(table["offset"], table["size"])).as_py() or 0
    if ends > size:
        raise UserError(f"The index {file} does not fit, its last image ends behind the shard's end: {way_out}.")
    return table.select(SCHEMA.names).cast(SCHEMA)


def make_index(shard: Path, file: Path) -> pa.Table:
    """Return the index of a shard that has none of its own, which is written to ``file`` where that is possible.

    Raises:
        UserError: it is no tar, it is compressed or not whole, or an image has two files or what is no label.
    """
    try:
        status = read_status(str(shard))
        with open_image(shard) as opened:
            rows = list(_rows(shard, opened))
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{shard} cannot be read as a tar ({first_line(error)}): shards are plain tars, neither compressed nor cut "
            "short; write it anew."
        ) from error
    try:
        return write_index(rows, shard, file, status)
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
            raise
        logger.warning(f"There is no access to {file.parent}: {shard.name} is indexed anew each time.")
        return pa.Table.from_pylist([{"shard": shard.name, **row} for row in rows], SCHEMA)


@dataclass
class _Sample:
    """The files of one key."""

    image: dict[str, Any] | None = None
    known: dict[str, Any] = field(default_factory=dict)
    number: str | None = None


def _rows(shard: Path, opened: BinaryIO) -> Iterable[dict[str, Any]]:
    """Return the rows of an index but for the shard's name."""
    samples: dict[str, _Sample] = {}
    with tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            folder, name = posixpath.split(to_text(member.name))
            stem, _, kind = name.partition(".")
            if not member.isreg() or is_leftover(name):
                continue
            sample = samples.setdefault(posixpath.join(folder, stem), _Sample())
            opened.seek(member.offset_data)  # tar.extractfile takes five times as long; tar finds its place again
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (a name)
                if sample.image is not None:
                    raise UserError(
                        f"{shard} has two images of one key ({sample.image['name']}, {member.name}), and a classifier "
                        "takes one: write the others to shards of their own."
                    )
                sample.image = {
                    "name": to_text(member.name),
                    "offset": member.offset_data,
                    "size": member.size,
                    "sha256": _digest(opened, member.size),
                }
            elif kind == "cls":
                sample.number = opened.read(member.size).decode("utf-8", "replace").strip()
            elif kind == "json":
                sample.known = _known(opened.read(member.size), member.name, shard)
        opened.seek(tar.offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any other end for the end, too
            raise EOFError(f"it ends without a mark, or is damaged, at byte {tar.offset:,}")
    for sample in samples.values():
        if sample.image is not None:
            yield {**sample.image, **_describe(sample)}


def _digest(content: IO[bytes], size: int) -> str:
    total, left = hashlib.sha256(), size
    while piece := content.read(min(left, _PIECE)):
        total.update(piece)
        left -= len(piece)
    if left:
        raise EOFError("it ends within an image")
    return total.hexdigest()


def _known(content: bytes, name: str, shard: Path) -> dict[str, Any]:
    """Return what the .json of an image tells that we know of.

    Raises:
        UserError: it is none, or its label is a list.
    """
    try:
        told = json.loads(content)
        known = {key: told[key] for key in KNOWN if told.get(key) is not None}
        further = told.get("columns")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{name} in {shard} is no JSON of names and values ({first_line(error)}): write it anew."
        ) from error
    if wrong := [key for key, value in known.items() if not isinstance(value, str | int | float)]:
        raise UserError(
            f"The {wrong[0]} that {name} in {shard} tells is {known[wrong[0]]!r}, and has to be one name or number: "
            "write the shard anew."
        )
    if "weight" in known:
        known["weight"] = _weight(known["weight"], name, shard)
    if isinstance(further, dict) and all(isinstance(value, str) for value in further.values()):  # as we write them
        known["columns"] = json.dumps(further)
    return known


def _weight(told: str | float, name: str, shard: Path) -> float:
    """Return a weight, which may be written as text.

    Raises:
        UserError: it is none.
    """
    with suppress(ValueError, OverflowError):
        if 0 <= (weight := float(told)) <= MOST_WEIGHT:  # NaN is not
            return weight
    raise UserError(f"{name} in {shard} has the weight {told!r}: weights are numbers from 0 up; write the shard anew.")


def _describe(sample: _Sample) -> dict[str, Any]:
    """Return the label of an image, and whatever else is known of it.

    Its .json tells the label, else its .cls, else the folder that it lies in.
    """
    assert sample.image is not None
    known = {key: value if key == "weight" else tidy_label(str(value)) for key, value in sample.known.items()}
    number = int(sample.number) if sample.number is not None and _NUMBER.fullmatch(sample.number) else None
    folder = posixpath.basename(posixpath.dirname(sample.image["name"]))
    label = known.pop("label", None) or sample.number or tidy_label(folder) or None
    if (split := known.get("split")) is not None:
        known["split"] = find_split(split)
    return {"label": label, "class_index": number, **known}
