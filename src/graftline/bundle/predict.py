"""Classify a folder of images into a table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.bundle.predictor import Predictor
from graftline.errors import UserError


def find_images(images: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and those in hidden folders.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    if not images.is_dir():
        raise UserError(f"{images} is not a folder: give one that holds images.")
    files = (path for path in images.rglob("*") if path.is_file())
    visible = sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(images).parts))
    if not visible:
        raise UserError(f"{images} holds no files: give a folder that holds images.")
    return visible


def predict_directory(
    predictor: Predictor, images: Path, on_progress: Callable[[int], None] | None = None
) -> pd.DataFrame:
    """Classify each file below a folder.

    Args:
        predictor: a bundle's.
        images: a folder; see ``find_images``.
        on_progress: is given the number of images just done, now and then.

    Returns:
        One row per file: path, class and probability of the most probable class, ``probability/CLASS`` for each class,
        and error: why the file could not be read, with class and probabilities missing; else None.

    Raises:
        UserError: there is no such folder, or nothing in it.
    """
    paths = find_images(images)
    probabilities, reasons = predictor.predict_readable(paths, on_progress=on_progress)  # (N, K)
    table = pd.DataFrame(probabilities, columns=[f"probability/{name}" for name in predictor.class_names])
    best = np.nan_to_num(probabilities).argmax(axis=1)
    table.insert(0, "path", [str(path) for path in paths])
    table.insert(
        1, "class", [None if row in reasons else predictor.class_names[best[row]] for row in range(len(paths))]
    )
    table.insert(2, "probability", probabilities.max(axis=1))
    table["error"] = [reasons.get(row) for row in range(len(paths))]
    return table
