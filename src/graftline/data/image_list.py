"""List images that are to be classified, however many they are: the list lies in a file, not in memory."""

import hashlib
import io
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from graftline.data.file_names import to_path, to_text
from graftline.data.image_bytes import read_status
from graftline.data.references import find_url
from graftline.data.remote import require_no_secret
from graftline.data.sources.archive import Archive, is_archive
from graftline.data.sources.shards import holds_shards, list_references
from graftline.data.sources.source import TABLE_SUFFIXES
from graftline.data.sources.table import Table
from graftline.data.walk import walk_files
from graftline.errors import UnreachableError, UserError

logger = logging.getLogger(__name__)

Kind = Literal["image", "folder", "table", "archive", "list"]

_END = b"\0"  # of a name in the file: no path holds it
_NO_STAMP = b"-"  # of a file that is not there
_PIECE = 2**16  # bytes read at once
_LONGEST_PATH = 2**16  # bytes, with room to spare: Linux has 4,096
_LONGEST_TITLE = 100  # bytes
_MOST_REFUSED = 1_000  # images, and none that is not: the credentials are wrong
_SAID_EACH = 200_000  # images; listing them takes seconds

JOB_FILE = "_job.json"  # of a folder of predictions; readers of a folder of Parquet files pass over what starts so
_RUN_FOLDER = ".hydra"  # of a run's directory
# what predictions and runs write themselves: listed, it would make another list of the same images each time
_OWN = {
    JOB_FILE: re.compile(r"_job\.json|_part-\d+\.json|part-\d+\.(csv|parquet)"),
    _RUN_FOLDER: re.compile(r"(log|traceback)\.txt|result\.json"),
}


class ListedImage(NamedTuple):
    """An image as it was listed, where its file lies, and whether there was one when it was listed."""

    name: str
    path: str
    was_there: bool = True


@dataclass(frozen=True)
class ImageList:
    """Images in an order that is the same each time that the same ones are listed.

    Attributes:
        kind: what they were listed from.
        title: name of the folder, table or archive.
        count: how many they are.
        digest: 16 hex digits that change with their names, their order and, but for those of an archive, which is known
            by its content, sizes and times of their files.
        root: the folder that they were listed from; None: they were listed from something else, and may lie anywhere.
    """

    kind: Kind
    title: str
    count: int
    digest: str
    _file: BinaryIO
    root: Path | None = None

    def folder_of(self, image: ListedImage) -> str:
        """Return the folder that all were listed from, else that of an image's file."""
        return str(self.root or Path(image.path).parent)

    def find_away(self, missing: Iterable[ListedImage]) -> ListedImage | None:
        """Return the first image that is missing because its folder is away, or was, as one that is mounted.

        Args:
            missing: images whose files were not there when they were read; that a file was never there says nothing.
        """
        is_away = cache(_is_away)
        for image in missing:
            if image.was_there and (_stamp(image.path) != _NO_STAMP or is_away(self.folder_of(image))):
                return image
        return None

    def __iter__(self) -> Iterator[ListedImage]:
        """Yield one after the other, from the first."""
        return self.starting_at(0)

    def starting_at(self, number: int) -> Iterator[ListedImage]:
        """Yield those from a number on, counted from 0; there is one such iterator at a time."""
        self._file.seek(0)
        texts = _texts(iter(partial(self._file.read, _PIECE), b""))
        for index, (name, path, was_there) in enumerate(zip(texts, texts, texts, strict=True)):
            if index >= number:
                yield ListedImage(os.fsdecode(name), os.fsdecode(path or name), bool(was_there))


@dataclass(frozen=True)
class ImageLister:
    """Lists images.

    Attributes:
        table: how a table is read.
        archive: how an archive is unpacked.
    """

    table: Table = field(default_factory=Table)
    archive: Archive = field(default_factory=Archive)

    def read(self, images: Path | Iterable[bytes], folder: Path) -> ImageList:
        """List images, without a look into them.

        Args:
            images: an image, a folder whose files are all listed, a table with a column of paths, an archive of either,
                shards, also at a URL, or a file or pieces of one with a path per line, as ``find`` prints them.
            folder: gets the file with the list, which no other process sees and which is gone with this one.

        Raises:
            UserError: there is nothing, or nothing in it, or it cannot be read.
        """
        if not isinstance(images, Path):
            return _write(
                "list", "listed", _printed(images), folder, "No path came on standard input: give one per line."
            )
        require_no_secret(str(images), "images")
        images = images.expanduser()
        if holds_shards(images):
            entries = (ListedImage(reference, reference) for reference in list_references(images))
            listed = _write("folder", _title(images), entries, folder, _no_files(images))
            return replace(listed, root=images if images.is_dir() else None)
        if images.is_dir():
            return replace(_write("folder", _title(images), _below(images), folder, _no_files(images)), root=images)
        if (url := find_url(images)) is not None:
            raise UserError(
                f"{url} is no path of this machine and holds no shards: give a table that lists the URLs of the images."
            )
        if not images.exists():
            raise UserError(
                f"There is nothing at {images}: give an image, or a folder, table or archive that holds images."
            )
        if images.suffix.lower() in TABLE_SUFFIXES:
            return _write("table", _title(images.with_suffix("")), self._rows(images), folder, "")
        if not images.is_file() or not is_archive(images):
            return _write("image", _title(images.with_suffix("")), [ListedImage(str(images), str(images))], folder, "")
        return self._list_archive(images, folder)

    def _list_archive(self, archive: Path, folder: Path) -> ImageList:
        root, target = self.archive.unpack(archive)
        entries = self._rows(target)
        if target.is_dir():
            entries = (ListedImage(os.path.relpath(path, root), path) for _, path, _ in _below(target))
        return _write(
            "archive",
            _title(archive).partition(".")[0] or "archive",
            entries,
            folder,
            _no_files(archive),
            content=root.name,
        )

    def _rows(self, table: Path) -> Iterator[ListedImage]:
        rows = self.table.read_paths(table)
        yield from map(ListedImage, rows["name"], rows["path"])


def find_images(images: Path) -> list[Path]:
    """Return all files below a folder, sorted, as an ingest walks it: links are followed, leftovers passed over.

    What earlier predictions and runs have written there themselves is passed over, too.

    Args:
        images: a folder, or one file; of shards the references of the images in them are returned.

    Raises:
        UserError: there is no such folder, or nothing in it, or a folder below it cannot be read, or the file is an
            archive or a table.
    """
    if holds_shards(images):
        return list(map(Path, list_references(images)))
    if images.is_file():
        if images.suffix.lower() in TABLE_SUFFIXES or is_archive(images):
            raise UserError(f"{images} is no image, but a table or archive: give the folder of its images.")
        return [images]
    if not images.is_dir():
        raise UserError(f"There is nothing at {images}: give an image, or a folder that holds images.")
    found = sorted(Path(image.path) for image in _below(images))
    if not found:
        raise UserError(_no_files(images))
    return found


def _title(path: Path) -> str:
    """Return the name of a folder or file for that of another, which it leaves room to."""
    name = os.path.basename(os.path.abspath(path)) or "images"  # noqa: PTH100, PTH119 - also of ..
    return to_text(name).encode()[:_LONGEST_TITLE].decode(errors="ignore")


def _no_files(images: Path) -> str:
    return f"{images} holds no files: give a folder that holds images."


def _below(root: Path) -> Iterator[ListedImage]:
    """Yield the files below a folder; also links that lead nowhere, but no pipes, which might never end.

    What earlier predictions and runs have written there themselves is passed over.
    """
    last, own = "", list[re.Pattern[str]]()
    for path in walk_files(root):
        folder, name = os.path.split(path)
        if folder != last:
            last, own = folder, [files for mark, files in _OWN.items() if os.path.lexists(f"{folder}/{mark}")]
        if any(files.fullmatch(name) for files in own):
            continue
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (speed)
                continue
        except OSError:  # the row of this image will say it
            pass
        yield ListedImage(path, path)


def _printed(source: Iterable[bytes]) -> Iterator[ListedImage]:
    """Yield an image for each line, or for each name of `find -print0`, which may hold line breaks.

    Raises:
        UserError: one is a URL with a password in it.
    """
    pieces = iter(partial(source.read1, _PIECE), b"") if isinstance(source, io.BufferedIOBase) else iter(source)
    head, size = list[bytes](), 0
    for piece in pieces:
        head.append(piece)
        size += len(piece)
        if size > _LONGEST_PATH:  # a name ends before
            break
    end = _END if any(_END in piece for piece in head) else b"\n"
    for text in _texts(chain(head, pieces), end):
        if name := os.fsdecode(text if end == _END else text.rstrip(b"\r")):
            require_no_secret(name, "A path on standard input")
            yield ListedImage(name, os.path.expanduser(name))  # noqa: PTH111 (speed)


def _write(
    kind: Kind, title: str, images: Iterable[ListedImage], folder: Path, if_none: str, content: str = ""
) -> ImageList:
    """Write a list to a file that is gone with its last user.

    Args:
        kind: as in the list.
        title: as in the list.
        images: what is listed.
        folder: where the file is.
        if_none: what is wrong if there are none.
        content: what the images are known by; empty: by size and time of each.

    Raises:
        UserError: there are none, a storage cannot be reached, or it gives access to none of the images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the list
    total, count = hashlib.sha256(content.encode()), 0
    refused, refusal = 0, None
    for image in images:
        count += 1
        name, path = (os.fsencode(text.replace("\0", "\ufffd")) for text in (image.name, image.path))
        try:
            stamp = _stamp(image.path)
        except UnreachableError:
            raise
        except UserError as error:  # the row of this image will say it
            stamp, refused, refusal = _NO_STAMP, refused + 1, refusal or error
            if refused == count == _MOST_REFUSED:
                raise
        file.write(_END.join([name, b"" if path == name else path, b"" if stamp == _NO_STAMP else b"1", b""]))
        total.update(name + _END + (b"" if content else stamp))
        if count % _SAID_EACH == 0:
            logger.info(f"Listing images: {count:,} so far")
    if count == 0:
        raise UserError(if_none)
    if refusal is not None and refused == count:
        raise refusal
    return ImageList(kind, title, count, total.hexdigest()[:16], file)


def _stamp(path: str) -> bytes:
    """Return what changes with a file.

    Raises:
        UserError: it is at a URL that cannot be reached, or gives no access to it.
    """
    try:
        return b"%d %d" % read_status(path)[:2]
    except UserError:
        raise
    except (OSError, ValueError):  # the latter of a name that no file can have
        return _NO_STAMP


def _texts(pieces: Iterable[bytes], end: bytes = _END) -> Iterator[bytes]:
    """Yield what lies between the ends, and what comes after the last one."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(end)
        yield from whole
    if rest:
        yield rest


def _is_away(folder: str) -> bool:
    """Tell whether a folder is gone or empty, as one is where nothing is mounted."""
    try:
        with os.scandir(to_path(folder)) as entries:
            return next(entries, None) is None
    except OSError:
        return True
