"""List images that are to be classified, however many they are: the list lies in a file, not in memory."""

import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from graftline.data.file_names import to_path, to_text
from graftline.data.sources.archive import Archive, is_archive
from graftline.data.sources.source import TABLE_SUFFIXES
from graftline.data.sources.table import Table
from graftline.data.walk import walk_files
from graftline.errors import UserError

logger = logging.getLogger(__name__)

Kind = Literal["image", "folder", "table", "archive", "list"]

_END = b"\0"  # of a name in the file: no path holds it
_PIECE = 2**20  # bytes read at once
_LONGEST_TITLE = 100  # bytes
_SAID_EACH = 200_000  # images; listing them takes seconds

JOB_FILE = "_job.json"  # of a folder of predictions; readers of a folder of Parquet files pass over what starts so
_RUN_FOLDER = ".hydra"  # of a run's directory
# what predictions and runs write themselves: listed, it would make another list of the same images each time
_OWN = {
    JOB_FILE: re.compile(r"_job\.json|_part-\d+\.json|part-\d+\.(csv|parquet)"),
    _RUN_FOLDER: re.compile(r"(log|traceback)\.txt|result\.json"),
}


class ListedImage(NamedTuple):
    """An image as it was listed, and where its file lies."""

    name: str
    path: str


@dataclass(frozen=True)
class ImageList:
    """Images in an order that is the same each time that the same ones are listed.

    Attributes:
        kind: what they were listed from.
        title: name of the folder, table or archive.
        count: how many they are.
        digest: 16 hex digits that change with their names, their order and, but for those of an archive, which is known
            by its content, sizes and times of their files.
        root: the folder that they were listed from; None: they were listed from something else.
    """

    kind: Kind
    title: str
    count: int
    digest: str
    _file: BinaryIO
    root: Path | None = None

    def is_away(self, missing: Iterable[str]) -> bool:
        """Tell whether files are missing because their folder is away, or was for a while, as one that is mounted.

        Args:
            missing: paths of files that were not there.
        """
        if self.root is None:
            return False
        try:
            with os.scandir(self.root) as entries:
                is_empty = next(entries, None) is None
        except OSError:
            return True
        return is_empty or any(os.path.exists(to_path(path)) for path in missing)  # noqa: PTH110 (speed)

    def __iter__(self) -> Iterator[ListedImage]:
        """Yield one after the other, from the first."""
        return self.starting_at(0)

    def starting_at(self, number: int) -> Iterator[ListedImage]:
        """Yield those from a number on, counted from 0; there is one such iterator at a time."""
        self._file.seek(0)
        texts = _texts(self._file)
        for index, (name, path) in enumerate(zip(texts, texts, strict=True)):
            if index >= number:
                yield ListedImage(os.fsdecode(name), os.fsdecode(path or name))


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
                or lines that are paths, as ``find`` prints them.
            folder: gets the file with the list, which no other process sees and which is gone with this one.

        Raises:
            UserError: there is nothing, or nothing in it, or it cannot be read.
        """
        if not isinstance(images, Path):
            return _write(
                "list", "listed", _lines(images), folder, "No path came on standard input: give one per line."
            )
        images = images.expanduser()
        if images.is_dir():
            return replace(_write("folder", _title(images), _below(images), folder, _no_files(images)), root=images)
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
            entries = (ListedImage(os.path.relpath(path, root), path) for _, path in _below(target))
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


def _title(path: Path) -> str:
    """Return the name of a folder or file for that of another, which it leaves room to."""
    name = os.path.basename(os.path.abspath(path)) or "images"  # noqa: PTH100, PTH119 - also of ..
    return to_text(name).encode()[:_LONGEST_TITLE].decode(errors="ignore")


def _no_files(images: Path) -> str:
    return f"{images} holds no files: give a folder that holds images."


def _below(root: Path) -> Iterator[ListedImage]:
    """Yield the files below a folder; also links that lead nowhere, but no pipes, which might never end.

    What earlier predictions have written there themselves is passed over.
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


def _lines(lines: Iterable[bytes]) -> Iterator[ListedImage]:
    for line in lines:
        for text in line.rstrip(b"\r\n").split(_END):  # as `find -print0` ends them
            if name := os.fsdecode(text):
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
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it lives as long as the list
    total, count = hashlib.sha256(content.encode()), 0
    for name, path in images:
        count += 1
        written = os.fsencode(name.replace("\0", "\ufffd")) + _END
        file.write(written + (b"" if path == name else os.fsencode(path)) + _END)
        total.update(written if content else written + _stamp(path))
        if count % _SAID_EACH == 0:
            logger.info(f"Listing images: {count:,} so far")
    if count == 0:
        raise UserError(if_none)
    return ImageList(kind, title, count, total.hexdigest()[:16], file)


def _stamp(path: str) -> bytes:
    """Return what changes with a file."""
    try:
        status = os.stat(to_path(path))  # noqa: PTH116 (speed)
    except (OSError, ValueError):
        return b"-"
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def _texts(file: BinaryIO) -> Iterator[bytes]:
    """Yield what lies between the ends."""
    rest = b""
    while piece := file.read(_PIECE):
        *whole, rest = (rest + piece).split(_END)
        yield from whole
