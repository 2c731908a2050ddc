"""Unpack a zip or tar archive of a folder or a table of images, and refuse a dangerous one."""

import bz2
import codecs
import gzip
import io
import logging
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple, TypeAlias

import pandas as pd

from graftline.console import progress
from graftline.data.references import find_url
from graftline.data.remote import remote_status
from graftline.data.signatures import HEAD_BYTES, name_content
from graftline.data.sources.folder import Folder
from graftline.data.sources.source import TABLE_SUFFIXES, Source, require_file, told_as
from graftline.data.sources.table import Table
from graftline.data.walk import is_leftover, list_folders
from graftline.errors import UserError
from graftline.files import atomic_directory, atomic_file, digest, sha256_file
from graftline.locks import Lock

logger = logging.getLogger(__name__)

# Photographs do not shrink in an archive, and drawings or masks by 10 to 50 times; a bomb grows 1,000 times and more.
_MAX_GROWTH = 100
_HARMLESS_BYTES = 100 * 2**20  # less than this fills no disk, whatever the growth
_PER_FILE = 512  # bytes that even an empty file takes
_SAYS_UTF_8 = 0x800  # the bit of a zip's flags
_PIECE = 2**20  # bytes read at once
_READ = re.compile(rb"PK|\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar", re.DOTALL)  # how what we unpack starts
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
    UnicodeError,
)


class _RefusedError(Exception):
    """Raised for what should not be in an archive."""


@dataclass(frozen=True)
class Archive:
    """Read images from a zip or tar (gz, bz2, xz) archive (Hydra target).

    It is unpacked once into the cache, which is keyed by the archive's digest. An archive is refused as a whole if it
    holds links, devices, absolute paths, paths that lead out of it, a name twice, encrypted files, or if it is a bomb.

    Attributes:
        inside: the source that reads what was unpacked; None for a table if there is one at the top, else a folder.
        member: the path inside the archive that is given to ``inside``; None for that table, or the top folder.
        splits: as for `Folder`, where that is what is read.
        encoding: of names in a zip that does not say it is UTF-8; None for UTF-8 where they are, else code page 437.
        cache: where archives are unpacked.

    Raises:
        UserError: there is no such encoding.
    """

    inside: Source | None = None
    member: str | None = None
    splits: bool = True
    encoding: str | None = None
    cache: str = "cache/archives"

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise UserError(
                f"Archive.encoding={self.encoding} is no encoding: give one that Python knows, such as gbk or cp1252."
            ) from error

    def read(self, path: Path | None) -> pd.DataFrame:
        """Unpack the archive, unless it is unpacked already, and list the images.

        Raises:
            UserError: no archive, one that is refused, or what ``inside`` raises.
        """
        target = self.unpack(path).target
        source = self.inside or (Folder(splits=self.splits) if target.is_dir() else Table())
        return source.read(target)

    def unpack(self, path: Path | None) -> "Unpacked":
        """Unpack the archive, unless it is unpacked already.

        Raises:
            UserError: no archive, one that is refused, or one without ``member``.
        """
        given, cache = _given(path), Path(self.cache).absolute()
        root = cache / (_identify(given, cache) + (f"-{self.encoding}" if self.encoding else ""))
        if not root.exists():
            archive = given.file()
            with (
                told_as(path, archive),
                Lock(cache / f".{root.name}.lock", shared=False, on_wait=lambda: None, temporary=True),
            ):
                if not root.exists():  # another process has not unpacked it meanwhile
                    _unpack(archive, root, self.encoding)
        if self.member is None:
            return Unpacked(root, _target(root, self.inside))
        target = root / self.member
        if not target.exists():
            raise UserError(f"{given.name} holds no '{self.member}': set Archive.member to a path inside it.")
        return Unpacked(root, target)


class Unpacked(NamedTuple):
    """What an archive became.

    Attributes:
        root: the folder, named by the archive's content.
        target: the table or the folder in it that is to be read.
    """

    root: Path
    target: Path


def is_archive(file: Path) -> bool:
    """Tell by its first bytes whether a file is an archive that we unpack, or an empty or broken one."""
    with file.open("rb") as content:
        return _READ.match(content.read(HEAD_BYTES)) is not None


class _Given(NamedTuple):
    """An archive that is given.

    Attributes:
        name: its path, or its URL.
        stamp: what changes with it.
        file: returns it, downloaded if need be.
    """

    name: str
    stamp: tuple[int, ...]
    file: Callable[[], Path]


def _given(path: Path | None) -> _Given:
    """Look at an archive, without reading it.

    Raises:
        UserError: there is none.
    """
    what = "a zip or tar archive"
    if path is not None and (url := find_url(path)) is not None:
        with suppress(FileNotFoundError):
            return _Given(url, remote_status(url), partial(require_file, path, what))
    archive = require_file(path, what)
    if not archive.is_file():
        raise UserError(f"{archive} is no archive: for a folder use Folder().")
    status = archive.stat()
    return _Given(str(archive), (status.st_size, status.st_mtime_ns, status.st_ctime_ns), lambda: archive)


def _identify(given: _Given, cache: Path) -> str:
    """Return the SHA-256 of the archive; read again only if its size or times have changed, as it may be large."""
    note = cache / "seen" / digest([given.name, *given.stamp])
    if not note.exists():
        with atomic_file(note) as temporary:
            temporary.write_text(sha256_file(given.file()), encoding="ascii")
    return note.read_text(encoding="ascii")


def _target(root: Path, inside: Source | None) -> Path:
    """Return the one table at the top, where lone folders are gone into; else what ``inside`` is to read."""
    folder = root
    while not isinstance(inside, Folder):
        entries = [entry for entry in folder.iterdir() if not is_leftover(entry.name)]
        tables = [entry for entry in entries if entry.suffix.lower() in TABLE_SUFFIXES]
        if len(tables) == 1:
            return tables[0]
        folders = list_folders(folder)
        if len(folders) != 1:
            break
        folder = folders[0]
    return root if inside is None else folder  # a `Folder` goes into lone folders by itself


def _unpack(archive: Path, root: Path, encoding: str | None) -> None:
    """Unpack ``archive`` to ``root``, whole or not at all."""
    size = archive.stat().st_size
    limit = max(_HARMLESS_BYTES, _MAX_GROWTH * size)
    try:
        with (
            archive.open("rb") as file,
            atomic_directory(root) as temporary,
            progress(f"Unpacking {archive.name} (MB)", total=size // _PIECE) as bar,
        ):
            is_zip = file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}  # a file's, or an empty archive's signature
            file.seek(0)
            unpacked = 0
            for name, content in _zip_members(file, encoding) if is_zip else _tar_members(file, limit):
                target = temporary / _safe(name)
                folder = target if content is None else target.parent
                folder.mkdir(parents=True, exist_ok=True)
                if content is None:
                    continue
                unpacked += _PER_FILE
                with target.open("xb") as output:
                    while unpacked <= limit and (piece := content.read(_PIECE)):
                        output.write(piece)
                        unpacked += len(piece)
                if unpacked > limit:
                    raise _bomb(limit)
                bar.update(bar.task_ids[0], completed=file.tell() // _PIECE)
    except _RefusedError as error:
        raise UserError(f"The archive {archive} is refused: {error}; pack it anew without.") from error
    except _BROKEN as error:
        raise UserError(_explain(archive, error)) from error


def _explain(archive: Path, error: Exception) -> str:
    """Say why an archive cannot be unpacked: it is something else by its first bytes, or it is broken."""
    with archive.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return f"The archive {archive} has no content: get it again."
    found = name_content(head)
    if found is not None and not _READ.match(head):
        return f"{archive} is no zip or tar archive but {found[0]}: {found[1]}."
    return f"The archive {archive} cannot be unpacked ({error}): check that it is whole, and that the disk has room."


def _zip_members(file: BinaryIO, encoding: str | None) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield the name of each folder and regular file, with the latter's content."""
    encoding = encoding or _guess_encoding(zipfile.ZipFile(file))
    with zipfile.ZipFile(file, metadata_encoding=encoding) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on Windows
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise _RefusedError(f"it holds a link or device ({info.filename})")
            if info.flag_bits & 1:
                raise _RefusedError(f"it holds an encrypted file ({info.filename})")
            if info.is_dir():
                yield info.filename, None
            else:
                with archive.open(info) as content:
                    yield info.filename, content


def _guess_encoding(archive: zipfile.ZipFile) -> str:
    """Return the encoding of names that a zip does not say to be UTF-8: that if they are, else the format's first."""
    names = [info.orig_filename for info in archive.infolist() if not info.flag_bits & _SAYS_UTF_8]
    names = [name for name in names if not name.isascii()]
    try:
        for name in names:
            name.encode("cp437").decode("utf-8")
    except UnicodeDecodeError:
        logger.warning(
            f"{len(names):,} names in the archive are not in UTF-8 and are read as code page 437 (first: {names[0]}): "
            "if they look wrong, set Archive.encoding, as to 'gbk' or 'cp1252'."
        )
        return "cp437"
    return "utf-8"


def _tar_members(file: BinaryIO, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield what `_zip_members` does, in one pass over the expanded stream, of which no more than ``limit`` bytes."""
    with tarfile.open(fileobj=_Limited(_expand(file), limit), mode="r|") as archive:
        for member in archive:
            if not (member.isreg() or member.isdir()):
                raise _RefusedError(f"it holds a link or device ({member.name})")
            yield member.name, archive.extractfile(member)


_Stream: TypeAlias = BinaryIO | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile


def _expand(file: BinaryIO) -> _Stream:
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(file)
    if start.startswith(b"BZh"):
        return bz2.open(file)
    return lzma.open(file) if start.startswith(b"\xfd7zXZ") else file


class _Limited(io.RawIOBase):
    """A stream that ends in an error after ``limit`` bytes: a tar archive's own headers can be a bomb, too."""

    def __init__(self, stream: _Stream, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._read += len(piece)
        if self._read > self._limit:
            raise _bomb(self._limit)
        return piece


def _bomb(limit: int) -> _RefusedError:
    return _RefusedError(f"it unpacks to more than {limit / 2**20:,.0f} MB, more than {_MAX_GROWTH} times its size")


def _safe(name: str) -> Path:
    """Return a member's path relative to where it is unpacked."""
    path = PurePosixPath(name.replace("\\", "/"))  # as packed on Windows
    if path.is_absolute() or re.match("[A-Za-z]:", name):
        raise _RefusedError(f"it holds an absolute path ({name})")
    if ".." in path.parts:
        raise _RefusedError(f"it holds a path that leads out of it ({name})")
    return Path(path)
