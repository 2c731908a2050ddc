"""Classify images into a table with a row for each of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.bundle.answers import Answers
from graftline.bundle.ensemble import AnyPredictor, class_sets
from graftline.data.file_names import to_text
from graftline.data.walk import walk_files
from graftline.errors import UserError


def find_images(images: Path) -> list[Path]:
    """Return all files below a folder, sorted, as an ingest walks it: links are followed, leftovers passed over.

    Args:
        images: a folder, or one file; of shards the references of the images in them are returned.

    Raises:
        UserError: there is no such folder, or nothing in it, or a folder below it cannot be read.
    """
    from graftline.data.sources.shards import holds_shards, list_references  # not at the top: a container lacks Arrow

    if holds_shards(images):
        return list(map(Path, list_references(images)))
    if images.is_file():
        return [images]
    if not images.is_dir():
        raise UserError(f"There is nothing at {images}: give an image, or a folder that holds images.")
    files = map(Path, walk_files(images))
    found = sorted(file for file in files if file.is_file() or not file.exists())  # no pipes: they might never end
    if not found:
        raise UserError(f"{images} holds no files: give a folder that holds images.")
    return found


def predict_directory(
    predictor: AnyPredictor, images: Path, on_progress: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """Classify a file, or each file below a folder.

    Args:
        predictor: a bundle's.
        images: a folder or a file; see ``find_images``.
        on_progress: is given the number of images just done, now and then.

    Returns:
        One row per file; see ``to_table``.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    paths = find_images(images)
    answers = predictor.predict_refusing(paths, on_progress=on_progress)
    return to_table(predictor, [to_text(path) for path in paths], answers)


def to_table(predictor: AnyPredictor, names: Sequence[str], answers: Answers) -> pd.DataFrame:
    """Return what a predictor gave for images as a table, whose columns have the same types whatever is in them.

    Args:
        predictor: a bundle's.
        names: of the images.
        answers: what it gave for them.

    Returns:
        One row per image: path, its name; class and probability, of the class that the bundle's decision answers;
        ``probability/CLASS`` for each class; and error: why the file could not be read or answered, with class and
        probabilities missing, else missing.
        Where the bundle refuses images as none of its classes: refused, before error;
        where it gives sets of classes: set, a JSON list of their names.
    """
    probabilities, refused, reasons = answers.probabilities, answers.refused, answers.reasons
    readable = np.array([row not in reasons for row in range(len(names))])
    best = predictor.decision.answer(np.nan_to_num(probabilities))  # (N,)
    columns: dict[str, object] = {
        "path": pd.array(list(names), dtype="str"),
        "class": pd.array(np.array(predictor.class_names, dtype=object)[best], dtype="str"),
        "probability": probabilities[np.arange(len(names)), best],
        **{f"probability/{name}": probabilities[:, number] for number, name in enumerate(predictor.class_names)},
    }
    if predictor.decision.set_threshold is not None:
        columns["set"] = pd.array(class_sets(predictor, np.nan_to_num(probabilities)), dtype="str")
    if refused is not None:
        columns["refused"] = pd.array(refused, dtype="boolean")
    columns["error"] = pd.array([reasons.get(row) for row in range(len(names))], dtype="str")
    table = pd.DataFrame(columns)
    table.loc[~readable, table.columns.intersection(["class", "set", "refused"])] = None
    return table
