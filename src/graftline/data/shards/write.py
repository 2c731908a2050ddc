"""Write images into shards, in parallel, so that a second call goes on where a killed one was.

A shard is there as a whole or not at all, and its index comes after it: what has an index is done.
"""

import hashlib
import io
import json
import logging
import math
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from graftline.console import counted
from graftline.data.image_bytes import open_image, read_status
from graftline.data.references import find_place
from graftline.data.shards.index import KNOWN, SUMMARY, index_path, read_index, write_index
from graftline.data.shards.processes import in_processes
from graftline.data.version_writing import common_folder
from graftline.data.walk import is_leftover
from graftline.errors import UnreachableError, UserError
from graftline.files import atomic_file, write_json
from graftline.locks import Lock

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

logger = logging.getLogger(__name__)

_FORMAT = 1
_BLOCK = tarfile.BLOCKSIZE
_BESIDE = (
    6 * _BLOCK
)  # of each image: the headers of its three files, the .cls, the .json, and what fills the last block
_SEED = 0  # of the order, which differs from the source's so that a tool that reads shards one by one sees all classes


@dataclass(frozen=True)
class WrittenShards:
    """What was written.

    Attributes:
        count: number of shards.
        images: in all of them.
        bytes: that they take.
        already: how many of them were there already.
        left_out: paths of images that are listed and not there, or forbidden.
    """

    count: int
    images: int
    bytes: int
    already: int
    left_out: Sequence[str]


class _DigestedFile(io.BufferedWriter):
    """A file that is written, and the SHA-256 of what was to be."""

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, content: "ReadableBuffer") -> int:
        """Write to the end of it."""
        self.sha256.update(content)
        return super().write(content)


class _Task(NamedTuple):
    """A shard to write."""

    shard: Path
    images: pd.DataFrame  # the columns of `_with_keys`


def write_shards(
    images: pd.DataFrame, class_names: Sequence[str], directory: Path, name: str, shard_bytes: int, workers: int
) -> WrittenShards:
    """Write images into ``<directory>/<name>-000000.tar`` and so on, each with its index, unless they are there.

    Args:
        images: columns path, label, split, group, weight and stratum, as a source lists them; and columns, where it
            tells further ones (`graftline.data.further_columns.to_json`).
        class_names: the classes in the order of their numbers.
        directory: of the shards.
        name: of the data set.
        shard_bytes: how large a shard is, about.
        workers: processes; 0 for one per core.

    Raises:
        UserError: the folder has shards of other images or no room, or an image cannot be read any more.
    """
    stamps, refusal = _stamps(images["path"])
    sizes = pd.DataFrame(stamps, columns=["size", "modified"], index=images.index)
    is_there = sizes["size"] >= 0
    left_out = images.loc[~is_there, "path"].tolist()
    images = images.join(sizes)[is_there]
    if images.empty:
        raise refusal or UserError(f"None of the images is there (first: {left_out[0]}): correct Ingest.path.")
    images = images.iloc[np.random.default_rng(_SEED).permutation(len(images))].reset_index(drop=True)
    takes = images["size"] + _BESIDE
    share = takes.sum() / math.ceil(takes.sum() / shard_bytes)  # bytes of each, so that none is much smaller
    numbers = pd.factorize((takes.cumsum() - takes) // share)[0]
    count = int(numbers[-1]) + 1
    with alone_in(directory):
        _claim(directory, {"format": _FORMAT, "name": name, "shards": count, "images": _identify(images, numbers)})
        images = _with_keys(images, class_names)
        ends = np.searchsorted(numbers, np.arange(count + 1))
        shards = [directory / f"{name}-{number:06}.tar" for number in range(count)]
        tasks = [_Task(shard, images.iloc[ends[number] : ends[number + 1]]) for number, shard in enumerate(shards)]
        missing = [task for task in tasks if not is_done(task.shard)]
        _require_room(directory, sum(int(task.images["size"].sum()) + _BESIDE * len(task.images) for task in missing))
        with counted("Writing images into shards", len(images)) as advance:
            advance(len(images) - sum(len(task.images) for task in missing))
            for written in in_processes(_write_task, missing, workers):
                advance(written)
        size = sum(task.shard.stat().st_size for task in tasks)
        return WrittenShards(len(tasks), len(images), size, len(tasks) - len(missing), left_out)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep others from writing shards into a folder during the block, and remove what killed ones have left there."""
    wait = f"Waiting for another process that writes shards into {directory}"
    with Lock(directory / ".lock", shared=False, on_wait=lambda: logger.info(wait), temporary=True):
        for half_written in directory.glob(".*.[0-9]*.tmp.tar"):
            half_written.unlink(missing_ok=True)
        yield


def write_shard(shard: Path, images: Iterable[tuple[Mapping[str, Any], bytes]]) -> int:
    """Write a shard and its index, read it back, and return how many images it has.

    Args:
        shard: the tar.
        images: what is known of each (`KNOWN`, class_index, key and suffix of its name, and source), and its content.
    """
    with atomic_file(shard) as temporary:
        with _DigestedFile(temporary) as tar:
            rows = [_write(tar, row, content) for row, content in images]
            _fill(tar, tarfile.RECORDSIZE, at_least=2 * _BLOCK)
            tar.flush()
            os.fsync(tar.fileno())  # the index says that the shard is whole: after a power failure, too
        with temporary.open("rb") as file:
            if hashlib.file_digest(file, "sha256").digest() != tar.sha256.digest():
                raise UserError(f"{shard} reads otherwise than it was written: check the disk.")
    write_index(rows, shard, index_path(shard), read_status(str(shard)))
    return len(rows)


def is_done(shard: Path) -> bool:
    """Tell whether a shard is there as it was written."""
    file = index_path(shard)
    if not (shard.exists() and file.exists()):
        return False
    read_index(shard, file)
    return True


def _write_task(task: _Task) -> int:
    return write_shard(task.shard, _read_all(task.images))


def _read_all(images: pd.DataFrame) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield each image with its content."""
    for row in images.to_dict("records"):
        try:
            with open_image(row["path"]) as file:
                yield {str(name): value for name, value in row.items()}, file.read()
        except OSError as error:
            raise UserError(
                f"{row['path']} could be listed but not read ({error.strerror or error}): run the same command again."
            ) from error


def _stamps(paths: Iterable[str]) -> tuple[list[tuple[int, int]], UserError | None]:
    """Return size and time of each image, -1 for both if it is not there or forbidden, and why the first one is that.

    Raises:
        UnreachableError: a storage does not answer.
    """
    stamps, refusal = list[tuple[int, int]](), None
    for path in paths:
        size = modified = -1
        try:
            size, modified, _ = read_status(path)
        except UnreachableError:
            raise
        except UserError as error:
            refusal = refusal or error
        except OSError:
            pass
        stamps.append((size, modified))
    return stamps, refusal


def _identify(images: pd.DataFrame, numbers: np.ndarray) -> str:
    """Return a digest of all images and what is known of them, and which shard each goes to."""
    total = hashlib.sha256()
    columns = images[["path", "size", "modified", *KNOWN, *images.columns.intersection(["columns"])]]
    for row in zip(numbers, *(columns[name] for name in columns), strict=True):
        total.update(repr(row).encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:16]


def _claim(directory: Path, summary: dict[str, Any]) -> None:
    """Note what is to be in the folder.

    Raises:
        UserError: it is something else.
    """
    file = directory / SUMMARY
    if not file.exists():
        if directory.is_dir() and any(not is_leftover(tar.name) for tar in directory.glob("*.tar")):
            raise UserError(f"{directory} holds tars that are none of our shards: choose another folder.")
        write_json(file, summary)
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if before != summary:
        raise UserError(
            f"{directory} holds shards of other images or of another size, or the images have changed since (labels, "
            "columns, sizes, times): choose another folder, or remove it."
        )


def _with_keys(images: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Add the columns source, key and suffix, by which an image and its label belong together, and class_index.

    A key is an image's path in the data set without its suffix; as the first dot ends it, others become underscores.
    """
    root = common_folder(images["path"])
    names = [place.name if (place := find_place(path)) else path[len(root) :].lstrip("/") for path in images["path"]]
    parts = [os.path.splitext(name) for name in names]  # noqa: PTH122 (names)
    keys = pd.Series([stem.replace(".", "_") for stem, _ in parts], index=images.index)
    again = keys.str.lower().duplicated(keep=False)  # also where two differ in capitals only, as on a Mac
    keys = keys.mask(again, keys + "-" + pd.Series(range(len(keys)), index=keys.index).astype("str"))
    numbers = {name: number for number, name in enumerate(class_names)}
    suffixes = pd.Series([suffix.lower() or ".bin" for _, suffix in parts], index=images.index)
    return images.assign(key=keys, suffix=suffixes, source=names, class_index=images["label"].map(numbers))


def _require_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise UserError(
            f"The shards take about {needed / 1e9:,.1f} GB, and {directory} has room for {free / 1e9:,.1f} GB: choose "
            "another folder, or make room."
        )


def _write(tar: BinaryIO, row: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """Write an image with its .cls and .json, and return its row of the index."""
    known = {name: row[name] for name in KNOWN if not pd.isna(row.get(name))}
    further = {"columns": row["columns"]} if "columns" in row else {}
    told = {name: json.loads(text) for name, text in further.items()}
    number = None if pd.isna(row["class_index"]) else int(row["class_index"])
    name = row["key"] + row["suffix"]
    offset = _add(tar, name, content)
    if number is not None:
        _add(tar, f"{row['key']}.cls", str(number).encode())
    _add(tar, f"{row['key']}.json", json.dumps({**known, **told, "source": row["source"]}).encode())
    sha256 = hashlib.sha256(content).hexdigest()
    place = {"name": name, "offset": offset, "size": len(content), "sha256": sha256}
    return {**known, **further, **place, "class_index": number}


def _add(tar: BinaryIO, name: str, content: bytes) -> int:
    """Add a file to a tar, and return where its content starts."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    tar.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
    offset = tar.tell()
    tar.write(content)
    _fill(tar, _BLOCK)
    return offset


def _fill(tar: BinaryIO, unit: int, at_least: int = 0) -> None:
    """Add zeros up to a multiple of ``unit``."""
    end = tar.tell() + at_least
    tar.write(bytes(at_least + -end % unit))
