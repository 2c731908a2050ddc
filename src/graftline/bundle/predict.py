"""Classify a folder of images into a table."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.bundle.ensemble import AnyPredictor, class_sets
from graftline.data.file_names import to_text
from graftline.data.walk import walk_files
from graftline.errors import UserError


def find_images(images: Path) -> list[Path]:
    """Return all files below a folder, sorted, as an ingest walks it: links are followed, leftovers passed over.

    Args:
        images: a folder, or one file.

    Raises:
        UserError: there is no such folder, or nothing in it, or a folder below it cannot be read.
    """
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
        One row per file: path; class and probability, of the class that the bundle's decision answers;
        ``probability/CLASS`` for each class; and error: why the file could not be read, with class and probabilities
        missing, else None.
        Where the bundle refuses images as none of its classes: refused, before error;
        where it gives sets of classes: set, a JSON list of their names.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    return predict_files(predictor, find_images(images), on_progress)


def predict_files(
    predictor: AnyPredictor, paths: Sequence[Path], on_progress: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """Classify files as `predict_directory` does."""
    probabilities, refused, reasons = predictor.predict_refusing(paths, on_progress=on_progress)  # (N, K), (N,)
    table = pd.DataFrame(probabilities, columns=[f"probability/{name}" for name in predictor.class_names])
    best = predictor.decision.answer(np.nan_to_num(probabilities))
    table.insert(0, "path", [to_text(path) for path in paths])
    table.insert(
        1, "class", [None if row in reasons else predictor.class_names[best[row]] for row in range(len(paths))]
    )
    table.insert(2, "probability", probabilities[np.arange(len(paths)), best])
    if predictor.decision.set_threshold is not None:
        sets = class_sets(predictor, np.nan_to_num(probabilities))
        table["set"] = [None if row in reasons else sets[row] for row in range(len(paths))]
    if refused is not None:
        table["refused"] = [None if row in reasons else bool(refused[row]) for row in range(len(paths))]
    table["error"] = [reasons.get(row) for row in range(len(paths))]
    return table
