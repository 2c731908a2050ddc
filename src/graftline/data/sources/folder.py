"""List a folder of images with a sub-folder per class."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from graftline.data.file_names import to_text
from graftline.data.references import find_url
from graftline.data.sources.skeleton import skeleton
from graftline.data.sources.source import IMAGE_SUFFIXES, find_split, require, tidy_label, told_as
from graftline.data.walk import list_folders, walk_files
from graftline.errors import UserError
from graftline.words import join_names

logger = logging.getLogger(__name__)

# What lies beside images and is not meant as one. Everything else in a class folder is looked into.
_NOT_IMAGES = frozenset(
    {".csv", ".db", ".doc", ".docx", ".html", ".ini", ".json", ".md", ".parquet", ".pdf", ".tsv", ".txt", ".xls"}
    | {".xlsx", ".xml", ".yaml", ".yml"}
)


@dataclass(frozen=True)
class Folder:
    """List a folder of class sub-folders, with or without ``train``, ``val`` and ``test`` above them (Hydra target).

    A class folder may have folders of its own, whose images are of the same class. A lone folder that holds folders and
    no images is gone into. What systems and tools leave is passed over, as are files that by their extension are no
    images; links are followed.

    Attributes:
        splits: whether folders called ``train``, ``val`` and ``test`` that hold folders are splits; False where they
            are classes.
    """

    splits: bool = True

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images, with column split if the folder has one.

        Raises:
            UserError: no folder, no class folders, an empty one, or split folders beside class folders.
        """
        if path is not None and (url := find_url(path)) is not None:
            return self._read_at(url)
        given = require(path, "a folder of images")
        if not given.is_dir():
            raise UserError(f"{given} is no folder: for a table use Table(), for a zip or tar archive Archive().")
        root = self._go_down(given)
        leftovers: Counter[str] = Counter()
        if splits := self._find_splits(root):
            images = _label_splits(splits, leftovers)
        else:
            images = pd.DataFrame(_label(root, leftovers), columns=["path", "label"])
            _require_images(images, root)
            _warn_of_equal_folders(root)
        if root != given:
            logger.info(f"The class folders are those in {root.relative_to(given)}, the only folder of images there.")
        if leftovers:
            names = ", ".join(f"{name} {count:,}" for name, count in leftovers.most_common(5))
            logger.info(f"Passed over what systems and tools leave, {leftovers.total():,} in all ({names}).")
        return images

    def _read_at(self, url: str) -> pd.DataFrame:
        """List the images at a URL, by the rules for a folder of this machine."""
        with skeleton(url) as (folder, urls), told_as(Path(url), folder):
            images = self.read(folder)
            return images.assign(path=images["path"].map(urls.__getitem__))

    def _go_down(self, root: Path) -> Path:
        """Return the first folder with several folders of images, where each above it holds one; else ``root``.

        Documents and folders of them may lie beside; a folder with images of its own is a class.
        """
        folder = root
        while len(folders := [inner for inner in list_folders(folder) if not _is_of_documents(inner)]) == 1:
            if self.splits and find_split(folders[0].name):
                return folder
            folder = folders[0]
            if _loose_images(folder):
                return root
        return folder if len(folders) > 1 else root

    def _find_splits(self, root: Path) -> list[Path]:
        """Return the folders of splits, none if there are class folders.

        Raises:
            UserError: some of the folders look like splits and others do not.
        """
        folders = list_folders(root)
        named = [folder for folder in folders if find_split(folder.name)] if self.splits else []
        of_folders = [folder for folder in named if list_folders(folder)]
        has_train = any(find_split(folder.name) == "train" for folder in named)
        others = [folder.name for folder in folders if folder not in named and not _is_of_documents(folder)]
        if not others and (of_folders or has_train):
            return named
        if len(of_folders) < 2 and not any(find_split(folder.name) == "train" for folder in of_folders):
            return []
        raise UserError(
            f"{root} holds split folders ({join_names([folder.name for folder in of_folders])}) and others "
            f"({join_names(others)}): move away either, or set Folder.splits=False if all of them are classes."
        )


def _warn_of_equal_folders(root: Path) -> None:
    """Warn where each class folder holds the same ones: years that hold the classes, or images beside masks."""
    inner = {tuple(below.name for below in list_folders(folder)) for folder in list_folders(root)}
    names = next(iter(inner))
    if len(inner) == 1 and len(names) > 1:
        logger.warning(
            f"Each class folder holds the folders {join_names(names)}, whose images are all of the class "
            "above them: list the images and their labels in a table for Table() if that is not meant."
        )


def _label_splits(folders: Sequence[Path], leftovers: Counter[str]) -> pd.DataFrame:
    """List the images in split folders; a class may lack images in a split if it has some in another."""
    parts = []
    for folder in folders:
        part = pd.DataFrame(_label(folder, leftovers), columns=["path", "label"])
        parts.append(part.assign(split=find_split(folder.name)))
        if not list_folders(folder):
            raise UserError(
                f"{folder} holds no class folders: sort its images into one per class, move it away, use Table(), or "
                f"set Folder.splits=False if '{folder.name}' is a class."
            )
    images = pd.concat(parts, ignore_index=True)
    found = set(images["label"])
    for folder in folders:
        _require_images(images, folder, found)
    return images


def _label(root: Path, leftovers: Counter[str]) -> list[tuple[str, str | None]]:
    """Return path and label of the images below ``root``; images beside the class folders have no label."""
    rows: list[tuple[str, str | None]] = [(to_text(file), None) for file in _loose_images(root, leftovers)]
    names: dict[str, str] = {}
    for folder in list_folders(root):
        label = tidy_label(to_text(folder.name))
        if label in names:
            logger.warning(f"The folders {names[label]!a} and {folder.name!a} have one name: one class.")
        names[label] = folder.name
        rows += [(to_text(file), label) for file in walk_files(folder, leftovers) if _may_be_image(file)]
    return rows


def _require_images(images: pd.DataFrame, root: Path, found: set[str] | None = None) -> None:
    """Raise a UserError unless there are class folders in ``root``, each with images, or in ``found`` with some."""
    folders = list_folders(root)
    if not folders and not images.empty:
        raise UserError(f"{root} holds images but no class folders: sort them into one per class, or use Table().")
    if not folders:
        raise UserError(f"{root} holds no images: give the folder that has a sub-folder of images per class.")
    found = set(images["label"]) if found is None else found
    empty = [folder for folder in folders if tidy_label(to_text(folder.name)) not in found]
    if empty:
        more = "" if len(empty) == 1 else f", nor do {join_names([folder.name for folder in empty[1:]])}"
        raise UserError(f"The class folder {empty[0]} holds no images{more}: add some, or remove it.")


def _is_of_documents(folder: Path) -> bool:
    """Tell whether there are files in a folder, or below it, none of which may be an image."""
    found = False
    for file in walk_files(folder):
        if _may_be_image(file):
            return False
        found = True
    return found


def _loose_images(root: Path, leftovers: Counter[str] | None = None) -> list[str]:
    files = walk_files(root, leftovers, deep=False)
    return [file for file in files if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]  # noqa: PTH122 (speed)


def _may_be_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() not in _NOT_IMAGES  # noqa: PTH122 (speed)
