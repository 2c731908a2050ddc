"""Bundles: a small one, and one that somebody has changed."""

import json
from pathlib import Path
from typing import Any

import timm

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.save import save_bundle


def change_description(bundle: Path, **entries: Any) -> None:
    """Put entries into ``bundle.json`` as an editor would; None removes one."""
    file = bundle / "bundle.json"
    content = {**json.loads(file.read_text(encoding="utf-8")), **entries}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


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
