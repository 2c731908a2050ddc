"""List a folder of images with a sub-folder per class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from graftline.data.decode import FORMATS
from graftline.data.sources.source import SPLIT_NAMES, require
from graftline.errors import UserError

# What lies beside images and is not meant as one. Everything else in a class folder is looked into.
_NOT_IMAGES = frozenset({".csv", ".db", ".html", ".ini", ".json", ".md", ".parquet", ".txt", ".xml", ".yaml", ".yml"})


@dataclass(frozen=True)
class Folder:
    """List a folder of class sub-folders, with or without ``train``, ``val`` and ``test`` above them (Hydra target).

    A class folder may have folders of its own, whose images are of the same class. Hidden files, and those that by
    their extension are no images, are passed over; links are followed.
    """

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images, with column split if the folder has one.

        Raises:
            UserError: no folder, no class folders, an empty one, or split folders beside class folders.
        """
        root = require(path, "a folder of images")
        if not root.is_dir():
            raise UserError(f"{root} is no folder: for a table use Table(), for a zip or tar archive Archive().")
        folders = _folders(root)
        splits = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
        has_training = any(SPLIT_NAMES[folder.name.lower()] == "train" for folder in splits)
        if not has_training and (not splits or splits != folders or not all(map(_folders, splits))):
            return pd.DataFrame(_labeled(root), columns=["path", "label"])
        if len(splits) < len(folders):
            other = next(folder.name for folder in folders if folder not in splits)
            raise UserError(f"{root} holds split folders and others ({other}): leave either splits or classes there.")
        rows = [(*row, SPLIT_NAMES[folder.name.lower()]) for folder in splits for row in _labeled(folder)]
        return pd.DataFrame(rows, columns=["path", "label", "split"])


def _labeled(root: Path) -> Iterator[tuple[str, str | None]]:
    """Yield path and label of the images below ``root``; images beside the class folders have no label."""
    classes = _folders(root)
    images = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    loose = [file for file in _files(root, deep=False) if Path(file).suffix.lower() in images]
    if not classes and loose:
        raise UserError(f"{root} holds images but no class folders: sort them into one per class, or use Table().")
    if not classes:
        raise UserError(f"{root} holds no images: give the folder that has a sub-folder of images per class.")
    yield from ((file, None) for file in loose)
    for folder in classes:
        files = [(file, _text(folder.name)) for file in _files(folder)]
        if not files:
            raise UserError(f"The class folder {folder} holds no images: add some, or remove the folder.")
        yield from files


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))


def _files(root: Path, deep: bool = True) -> Iterator[str]:
    """Yield the absolute paths of the files in ``root``, and below it if ``deep``, that may be images."""
    seen = set()  # of folders: a link may lead back
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if deep and not is_hidden(name))
        for name in sorted(names):
            if not is_hidden(name) and os.path.splitext(name)[1].lower() not in _NOT_IMAGES:  # noqa: PTH122 (speed)
                yield _text(os.path.join(folder, name))  # noqa: PTH118 (speed)


def _refuse(error: OSError) -> None:
    raise UserError(
        f"The folder {error.filename} cannot be read ({error.strerror}): allow it, or move it away."
    ) from error


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder is none of the user's: hidden, or what macOS adds to its archives."""
    return name.startswith(".") or name == "__MACOSX"


def _text(name: str) -> str:
    """Replace bytes in a file's name that are not UTF-8, which no table can hold; the check then misses the file."""
    return os.fsencode(name).decode("utf-8", "replace")
