"""Bundles: a small one, one that somebody has changed, and one whose network fails."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.ensemble import AnyPredictor
from graftline.bundle.layout import bundle_digest, hash_files, read_description
from graftline.bundle.predict import to_table
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.file_names import to_text


def change_description(bundle: Path, **entries: Any) -> None:
    """Put entries into ``bundle.json`` as an editor would; None removes one."""
    file = bundle / "bundle.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **entries}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def redescribe(bundle: Path) -> None:
    """Write the digests that the files of a bundle have now."""
    content, files = read_description(bundle), hash_files(bundle)
    change_description(bundle, files=files, digest=bundle_digest(content, files))


def spoil_golden(bundle: Path, step: str) -> None:
    """Let the writer of a bundle have seen something else from a step on."""
    record, values = bundle / "golden" / "golden.json", bundle / "golden" / "values.npz"
    content = json.loads(record.read_text())
    if step != "network":
        content["images"][3][step] = "0" * 16
    record.write_text(json.dumps(content))
    with np.load(values) as arrays:
        changed = dict(arrays)
    changed["logits"] = changed["logits"] + np.array([1, 0, 0], np.float32)
    np.savez_compressed(values, **changed)


def tiny_bundle(directory: Path) -> Path:
    """Save a random network of two classes."""
    half = (0.5, 0.5, 0.5)
    return save_bundle(
        directory,
        timm.create_model("test_efficientnet", num_classes=2),
        timm_name="test_efficientnet",
        class_names=("cat", "dog"),
        preprocessing=Preprocessing(image_size=(32, 32), mean=half, std=half),
        card={},
    )


def tabulate(predictor: AnyPredictor, files: Iterable[Path]) -> pd.DataFrame:
    """Classify files into a table, sorted by their names."""
    files = sorted(files)
    return to_table(predictor, [to_text(file) for file in files], predictor.predict_refusing(files))


def without_numbers_for_blank(predictor: Predictor, number: float = np.nan) -> Predictor:
    """Return a predictor whose network gives NaN, or another number, for each image of a single color."""

    def engine(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        is_blank = np.ptp(images, axis=(2, 3)).max(axis=1) < 1e-6  # (B,) of (B, C, H, W)
        found = [np.array(one) for one in predictor.engine(images, outputs)]
        for one in found:
            one[is_blank] = number
        return found

    return replace(predictor, engine=engine)
