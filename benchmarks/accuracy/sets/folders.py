"""Write a set of images as folders of splits and classes."""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SPLITS = ("test", "validation", "train")  # in the order of who keeps an image that occurs twice
DIGEST = "digest.txt"  # beside the splits, once the set is whole

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One image of a set.

    Attributes:
        split: train, validation or test.
        label: its class.
        name: of its file, without extension; unique in the set.
        pixels: (H, W) or (H, W, 3), 0 to 255.
    """

    split: str
    label: str
    name: str
    pixels: Pixels


def without_copies(samples: Iterable[Sample]) -> Iterator[Sample]:
    """Yield the images, each content once: in the test split rather than in validation, there rather than in training.

    A content with two labels is left out of training and validation; the test split keeps its first one.
    """
    ordered = sorted(samples, key=lambda sample: (SPLITS.index(sample.split), sample.label, sample.name))
    contents = [hashlib.sha256(sample.pixels.tobytes()).digest() for sample in ordered]
    labels: dict[bytes, set[str]] = {}
    for sample, content in zip(ordered, contents, strict=True):
        labels.setdefault(content, set()).add(sample.label)
    seen = set()
    for sample, content in zip(ordered, contents, strict=True):
        if content not in seen and (sample.split == "test" or len(labels[content]) == 1):
            yield sample
        seen.add(content)


def digest(samples: Iterable[Sample]) -> str:
    """Return 16 hex digits of names, labels and pixels: the same where the set is the same."""
    whole = hashlib.sha256()
    for sample in samples:
        whole.update(f"{sample.split}/{sample.label}/{sample.name} {sample.pixels.shape}\n".encode())
        whole.update(sample.pixels.tobytes())
    return whole.hexdigest()[:16]


def write(samples: Iterable[Sample], folder: Path) -> str:
    """Write a set into ``folder``, which is made anew; returns a line that says what it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    kept = list(without_copies(samples))
    for sample in kept:
        file = folder / sample.split / sample.label / f"{sample.name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.pixels).save(file, compress_level=1)
    counts = Counter(sample.split for sample in kept)
    (folder / DIGEST).write_text(digest(kept) + "\n", encoding="utf-8")
    images = ", ".join(f"{counts[split]:,} {split}" for split in reversed(SPLITS))
    return f"{folder.name}: {len({sample.label for sample in kept})} classes, {images} images, digest {digest(kept)}"
