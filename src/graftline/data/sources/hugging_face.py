"""Read a Hugging Face dataset, from disk or from the hub, through the package datasets."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from graftline.console import counted
from graftline.data.decoding import DecodeError
from graftline.data.image_bytes import open_image
from graftline.data.references import find_url
from graftline.data.shards.write import alone_in, is_done, write_shard
from graftline.data.sources.shards import Shards
from graftline.data.sources.source import find_split
from graftline.errors import UserError, first_line
from graftline.files import digest
from graftline.words import join_names

_PER_SHARD = 2000  # images


@dataclass(frozen=True)
class HuggingFace:
    """List the images of a Hugging Face dataset (Hydra target).

    Its images lie in Arrow files: they are written to shards in the cache, once, and read from there. Splits keep their
    names where these are train, validation and test.

    Attributes:
        image: the column of images; None for the only one.
        label: the column of classes; None for the only one.
        config: the configuration to read, of a dataset of the hub that has several; None for the only one.
        cache: gets the shards, keyed by the fingerprints of the dataset.
    """

    image: str | None = None
    label: str | None = None
    config: str | None = None
    cache: str = "cache/hf"

    def read(self, path: Path | None) -> pd.DataFrame:
        """Write the images to shards, unless they are there, and list them.

        Raises:
            UserError: the package is not installed, there is no such dataset, its columns leave a choice, or it has
                other parts beside its splits.
        """
        if path is None:
            raise UserError("Ingest.path is not given: name a folder of save_to_disk, or a dataset of the hub.")
        if find_spec("datasets") is None:
            raise UserError("datasets is not installed, which reads them: pip install 'graftline[hf]'.")
        parts = _load(path, self.config)
        has_splits = are_splits(list(parts), path)
        columns = {name: self._columns(part, path) for name, part in parts.items()}
        # a shard's name tells its split where it has that word
        stems = {name: name if has_splits else f"part{number}" for number, name in enumerate(parts)}
        prints = [[stems[name], part._fingerprint, *columns[name]] for name, part in parts.items()]
        folder = Path(self.cache).absolute() / digest(prints)
        wanted = [
            (folder / f"{stems[name]}-{start // _PER_SHARD:06}.tar", name, start)
            for name, part in parts.items()
            for start in range(0, len(part), _PER_SHARD)
        ]
        if not all(is_done(shard) for shard, _, _ in wanted):  # a cache that is whole may be read-only
            total = sum(map(len, parts.values()))
            with alone_in(folder), counted("Writing images into shards", total) as advance:
                for shard, name, start in wanted:
                    some = parts[name].select(range(start, min(start + _PER_SHARD, len(parts[name]))))
                    if not is_done(shard):
                        split = find_split(name) if has_splits else None
                        write_shard(shard, _images(some, start, name, split, *columns[name]))
                    advance(len(some))
        return Shards(workers=1).read(folder)

    def _columns(self, part: Any, path: Path) -> tuple[str, str]:
        """Return the names of the columns of images and of classes.

        Raises:
            UserError: there is none, or several.
        """
        import datasets

        found: dict[str, str] = {}
        for argument, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
            names = [name for name, feature in part.features.items() if isinstance(feature, kind)]
            possible = names if argument == "image" else list(part.features)
            named = getattr(self, argument) or (names[0] if len(names) == 1 else None)
            if named is None or named not in possible:
                told = f"no column '{named}' of that kind" if named else f"{len(names)} columns of {kind.__name__}"
                raise UserError(
                    f"{path} has {told}: set HuggingFace.{argument} to one of {join_names(names or possible)}."
                )
            found[argument] = named
        return found["image"], found["label"]


def are_splits(names: Sequence[str], path: Path) -> bool:
    """Tell whether the parts of a dataset are splits, by their names.

    Raises:
        UserError: one is for training, and others are no splits.
    """
    others = [name for name in names if find_split(name) is None]
    if others and "train" in map(find_split, names):
        splits = [name for name in names if name not in others]
        raise UserError(
            f"{path} has splits ({join_names(splits)}) and other parts ({join_names(others)}): save those that you "
            "want as a DatasetDict of train, validation and test, and give that folder as Ingest.path."
        )
    return len(names) > 1 and not others


def _load(path: Path, config: str | None) -> dict[str, Any]:
    """Return the parts of a dataset by the names of their splits; "all" where it has none."""
    import datasets

    if config is not None and path.is_dir():
        raise UserError(f"HuggingFace.config is of a dataset of the hub, and {path} is a folder: leave it out.")
    datasets.disable_progress_bars()
    try:
        found = datasets.load_from_disk(str(path)) if path.is_dir() else datasets.load_dataset(str(path), config)
    except Exception as error:  # the hub's client and Arrow have errors of their own
        what = "a folder of save_to_disk" if path.is_dir() else "a dataset of the hub, or it cannot be reached"
        way_out = "give another Ingest.path" + ("" if path.is_dir() else ", or its configuration as HuggingFace.config")
        raise UserError(f"{path} is not {what} ({first_line(error)}): {way_out}.") from error
    return {"all": found} if isinstance(found, datasets.Dataset) else dict(found)


def _images(
    part: Any, start: int, name: str, split: str | None, image: str, label: str
) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    """Yield what is known of each image, and its file as it is."""
    import datasets

    part = part.cast_column(image, datasets.Image(decode=False))
    names = getattr(part.features[label], "names", None)
    for number, row in enumerate(part.select_columns([image, label]), start):
        value, found = row[label], row[image]
        if names and value is not None:
            value = names[value] if value >= 0 else None  # -1: nobody knows
        found = found or {"bytes": None, "path": None}  # a row without an image
        content = found["bytes"] or _read(found["path"])
        yield (
            {
                "label": None if value is None else str(value),
                "class_index": names.index(value) if names and value is not None else None,
                "split": split,
                "key": f"{name}/{number:09}",
                "suffix": _suffix(content),
                "source": found["path"] or f"{name}/{number}",
            },
            content,
        )


def _read(path: str | None) -> bytes:
    """Return an image that a dataset knows by its path or URL alone; nothing, which ingest lists, where it is gone.

    Raises:
        UserError: its folder is away, and not this image alone; or its URL cannot be reached.
    """
    if not path:
        return b""
    try:
        with open_image(path) as file:
            return file.read()
    except (FileNotFoundError, DecodeError) as error:
        folder = Path(path).parent
        if find_url(path) is None and not folder.is_dir():
            raise UserError(
                f"The dataset knows its images by their paths alone, and {folder} is not there: bring the folder back, "
                "or save the dataset with its images in it."
            ) from error
        return b""


def _suffix(content: bytes) -> str:
    """Return the suffix of an image's file by its content."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return f".{str(opened.format).lower()}".replace("jpeg", "jpg").replace("mpo", "jpg")
    except OSError:  # ingest says what it is
        return ".jpg"
