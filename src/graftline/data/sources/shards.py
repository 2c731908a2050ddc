"""List the images of shards: tars as WebDataset lays them out, read by random access."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from graftline.console import track
from graftline.data.further_columns import from_json
from graftline.data.image_bytes import is_there, open_image
from graftline.data.references import DIGITS, OFFSET_DIGITS, find_url
from graftline.data.remote import list_urls
from graftline.data.remote_cache import INDEX_SUFFIX
from graftline.data.shards.index import SUMMARY, index_path, make_index, read_index
from graftline.data.shards.processes import in_processes
from graftline.data.sources.source import IMAGE_SUFFIXES, TABLE_SUFFIXES, find_split, require
from graftline.data.walk import is_leftover, walk_files
from graftline.errors import UserError
from graftline.words import join_names

logger = logging.getLogger(__name__)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True)
class Shards:
    """List the images in a folder of tars (Hydra target).

    The files of an image share a name up to its first dot: ``0001.jpg``, and ``0001.json`` with its label, or
    ``0001.cls``. Where there is neither, the folder in the tar is the label. An index beside each tar tells where its
    images lie; a tar of another tool gets one when it is first read, and a new one when it was written to since. Images
    are never unpacked.

    Attributes:
        workers: processes that index tars; 0 for one per core.
    """

    workers: int = 0

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images.

        Raises:
            UserError: no tars, one that is compressed or not whole, an index that does not fit, a shard is missing, or
                the names of some tell a split and those of others do not.
        """
        url = None if path is None else find_url(path)
        shards = _find(require(path, "a folder of shards")) if url is None else _find_remote(url)
        files = {shard: index_path(shard) for shard in shards}
        indices = {shard: read_index(shard, file) for shard, file in files.items()}
        new = [(shard, file) for shard, file in files.items() if indices[shard] is None]
        made = track(in_processes(_index, new, self.workers), "Indexing shards", len(new)) if new else ()
        indices |= {shard: index for (shard, _), index in zip(new, made, strict=True)}  # not all could be written
        return _list(shards, list(indices.values()))


def holds_shards(images: Path) -> bool:
    """Tell whether a folder or URL is one of shards, or a file a shard: by `SUMMARY`, or by the indices of all tars."""
    if (url := find_url(images)) is not None:
        is_folder = Path(url).suffix.lower() not in IMAGE_SUFFIXES | TABLE_SUFFIXES
        return is_folder and is_there(f"{url.rstrip('/')}/{SUMMARY}")
    if not images.is_dir():
        return images.is_file() and images.suffix == ".tar" and index_path(images).is_file()
    if (images / SUMMARY).is_file():
        return True
    files = map(Path, walk_files(images))
    first = next(files, None)
    return first is not None and all(map(_is_of_shards, chain([first], files)))


def _is_of_shards(file: Path) -> bool:
    return file.name.endswith(INDEX_SUFFIX) or (file.suffix == ".tar" and index_path(file).is_file())


def list_references(images: Path) -> Iterator[str]:
    """Yield the references of all images in shards, in order; the index of one shard is in memory at a time.

    Raises:
        UserError: as `Shards.read` does.
    """
    url = find_url(images)
    for shard in _find(images) if url is None else _find_remote(url):
        file = index_path(shard)
        index = read_index(shard, file)
        yield from _references(shard, make_index(shard, file) if index is None else index).to_pylist()


def _index(task: tuple[Path, Path]) -> pa.Table:
    return make_index(*task)


def _find(given: Path) -> list[Path]:
    """Return the shards of a folder, in order.

    Raises:
        UserError: there are none, or fewer than were written.
    """
    if given.is_file():
        return [_require_tar(given)]
    files = sorted(Path(file) for file in walk_files(given) if file.endswith((".tar", *_COMPRESSED)))
    shards = [file for file in files if file.suffix == ".tar"]
    if not shards:
        if files:
            _require_tar(files[0])
        raise UserError(f"{given} holds no .tar: give a folder of shards, or use Folder() for one of images.")
    if (given / SUMMARY).is_file():
        names = _names(str(given / SUMMARY))
        if missing := sorted(set(names) - {shard.name for shard in shards}):
            raise UserError(
                f"{given} lacks {len(missing):,} of {len(names):,} shards ({join_names(missing)}): write them with the "
                "command that wrote the others, or copy them there."
            )
    return shards


def _names(summary: str) -> list[str]:
    """Return the names of the shards that are to be in a folder, as a file in it tells.

    Raises:
        OSError: it is not there.
        UserError: it is none of ours.
    """
    with open_image(summary) as file:
        content = file.read()
    try:
        told = json.loads(content)
        return [f"{told['name']}-{number:06}.tar" for number in range(told["shards"])]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{summary} is damaged, or none that graftline has written: put it back from a copy, or remove it, and all "
            "tars beside it are read."
        ) from error


def _find_remote(url: str) -> list[Path]:
    """Return the shards at a URL, in order: those that its summary names, as not every server lists its files."""
    if url.endswith(".tar"):
        return [Path(url)]
    with suppress(OSError):
        return [Path(f"{url}/{name}") for name in _names(f"{url.rstrip('/')}/{SUMMARY}")]
    found = [one for one in list_urls(url, ".tar") if not any(map(is_leftover, one.removeprefix(url).split("/")))]
    if not found:
        raise UserError(f"{url} holds no .tar: give the folder of shards.")
    return [Path(one) for one in found]


def _require_tar(file: Path) -> Path:
    if file.suffix != ".tar":
        raise UserError(
            f"{file} is no plain tar, and shards are read by random access: unpack it to a .tar, or use Archive()."
        )
    return file


def _list(shards: list[Path], indices: list[pa.Table]) -> pd.DataFrame:
    """Return a source's columns of all images in these shards, whose indices are given."""
    parts = []
    words = [_split_of(shard) for shard in shards]
    is_told = "train" in words and all(words)
    if "train" in words and not is_told and any(index["split"].null_count == len(index) for index in indices):
        others = [shard.name for shard, word in zip(shards, words, strict=True) if word is None]
        raise UserError(
            f"The names of some shards tell a split and those of others do not ({join_names(others)}): name each with "
            "train, val or test, such as x-train-000000.tar, or none, or move the others away."
        )
    for shard, index, word in zip(shards, indices, words, strict=True):
        part = index.append_column("path", _references(shard, index))
        if is_told and part["split"].null_count == len(part):
            part = part.set_column(part.column_names.index("split"), "split", pa.repeat(word, len(part)))
        parts.append(part.select(["path", "label", "class_index", "split", "group", "weight", "stratum", "columns"]))
    images: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    if images.empty:
        raise UserError(f"{shards[0].parent} holds no images in its {len(shards):,} tars: give another folder.")
    if images["split"].isna().all():
        images = images.drop(columns="split")
    further = from_json(images.pop("columns")).drop(columns=images.columns, errors="ignore")
    images = images.assign(label=_in_order(images)).drop(columns="class_index")
    return pd.concat([images, further], axis=1)


def _references(shard: Path, index: pa.Table) -> pa.ChunkedArray:
    """Return the references of the images that the index of a shard lists, as `Place.reference` writes them."""
    offset = pc.utf8_lpad(index["offset"].cast(pa.string()), OFFSET_DIGITS, "0")
    digest = pc.utf8_slice_codeunits(index["sha256"], 0, DIGITS)
    place = pc.binary_join_element_wise(offset, index["size"].cast(pa.string()), digest, "+")
    return pc.binary_join_element_wise(find_url(shard) or str(shard), place, index["name"], "/")


def _split_of(shard: Path) -> str | None:
    """Return the split that the name of a shard or of its folder tells, as in imagenet-train-000000.tar."""
    words = [*re.split(r"[-_.]", shard.stem), shard.parent.name]
    return next((split for word in words if (split := find_split(word)) is not None), None)


def _in_order(images: pd.DataFrame) -> "pd.Series[Any]":
    """Return the labels; of categories in the order of their numbers, where each has one of its own."""
    pairs = images[["class_index", "label"]].drop_duplicates()
    if pairs.isna().any().any() or not (pairs["label"].is_unique and pairs["class_index"].is_unique):
        return images["label"]
    return images["label"].astype(pd.CategoricalDtype(pairs.sort_values("class_index")["label"].tolist()))
