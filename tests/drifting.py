"""A small model with a reference to compare with, and images that are like it or not."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter

from conftest import COLORS, paint
from graftline.backbones.backbone import Backbone
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.files import sha256_file
from graftline.pipeline.training.calibration import Wanted, adjust
from graftline.pipeline.training.drift_reference import leave_reference


def paint_all(folder: Path, numbers: range, size: int = 24) -> list[Path]:
    """Write noisy squares, whose noise and color depend on their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.png" for number in numbers]
    for number, file in zip(numbers, files, strict=True):
        paint(list(COLORS.values())[number % 3], number, size).save(file)
    return files


def blur(files: list[Path], folder: Path) -> Path:
    """Write blurred versions of images."""
    folder.mkdir()
    for file in files:
        Image.open(file).filter(ImageFilter.GaussianBlur(1.0)).save(folder / file.name)
    return folder


def make_version(folder: Path, validation: int) -> DatasetVersion:
    files = paint_all(folder / "images", range(validation + 3))
    rows = [
        (
            str(file),
            list(COLORS)[number % 3],
            "validation" if number < validation else "train",
            None,
            None,
            None,
            sha256_file(file),
            24,
            24,
        )
        for number, file in enumerate(files)
    ]
    columns = ["path", "label", "split", "group", "weight", "stratum", "sha256", "width", "height"]
    version, _ = write_version(folder, "squares", pd.DataFrame(rows, columns=columns), tuple(sorted(COLORS)))
    return version


def make_model(folder: Path, validation: int = 120) -> Path:
    """Return a bundle of a network with random weights, with a reference."""
    torch.manual_seed(0)
    graft = Backbone("test_efficientnet", weights="none", image_size=32).build(3)
    with torch.no_grad():
        graft.network.get_classifier().weight.mul_(100)  # type: ignore[operator]
    bundle = save_bundle(
        folder / "bundle",
        graft.network,
        timm_name="test_efficientnet",
        class_names=sorted(COLORS),
        preprocessing=graft.preprocessing,
        card={"dataset": "squares"},
    )
    version = make_version(folder, validation)
    adjusted = adjust(Predictor.from_directory(bundle), bundle, version, None, Wanted(), seed=0)
    leave_reference(adjusted.predictor, bundle, version, None)
    return bundle


def colors_of(image: Image.Image) -> np.ndarray:
    """Return the mean color."""
    mean: np.ndarray = np.asarray(image).mean(axis=(0, 1))
    return mean
