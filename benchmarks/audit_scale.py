"""Measure time and memory of an audit of 70,000 made-up images, with copies among them that are known.

    python benchmarks/audit_scale.py [IMAGES] [NUMBERS]

NUMBERS is the length of an embedding. Images of a class lie around a few directions, as photographs' do; a copy is its
original and a little noise. No image is read and no network run: it is what the audit adds to a frozen pass.
"""

import resource
import sys
import time

import numpy as np
import pandas as pd

from graftline.data.image_facts import FACTS, THUMBNAIL, ImageFacts
from graftline.evaluation.audit import audit
from graftline.evaluation.near_duplicates import Likeness, unit

CLASSES, DIRECTIONS, COPIES, SHARE_WRONG = 10, 40, 54, 0.01
NOISE = 0.02  # of a copy, of the length of its original


def peak() -> float:
    """Return the most memory that the process has had, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def made(
    generator: np.random.Generator, labels: np.ndarray, width: int, originals: np.ndarray, copies: np.ndarray
) -> np.ndarray:
    """Return vectors (N, width) float32 of images of the labels, some of them copies of others."""
    vectors = np.empty((len(labels), width), np.float32)
    for number in range(CLASSES):
        rows = np.flatnonzero(labels == number)
        directions = generator.standard_normal((DIRECTIONS, width), np.float32)
        center = 4 * generator.standard_normal(width, np.float32)
        vectors[rows] = center + generator.standard_normal((len(rows), DIRECTIONS), np.float32) @ directions
    vectors += generator.standard_normal(vectors.shape, np.float32)
    lengths = np.linalg.norm(vectors[originals], axis=1, keepdims=True)
    noise = generator.standard_normal((len(copies), width), np.float32) / np.sqrt(width)
    vectors[copies] = vectors[originals] + NOISE * lengths * noise
    return vectors


def main(num_images: int = 70_000, width: int = 1_280) -> None:
    """Make up, audit, and print what it took and found."""
    generator = np.random.default_rng(0)
    drawn = generator.permutation(num_images)
    originals, copies, wrong = np.split(drawn[: 2 * COPIES + int(SHARE_WRONG * num_images)], [COPIES, 2 * COPIES])
    labels = generator.integers(0, CLASSES, num_images)
    labels[copies] = labels[originals]
    activations = made(generator, labels, width, originals, copies)
    thumbnails = unit(made(generator, labels, 3 * THUMBNAIL**2, originals, copies))
    labels[wrong] = (labels[wrong] + 1) % CLASSES
    names = [f"{number:06}" for number in range(num_images)]
    images = pd.DataFrame({"sha256": names, "path": names, "label": labels.astype(str), "split": "train"})
    table = pd.DataFrame(generator.standard_normal((num_images, len(FACTS))), columns=list(FACTS))
    before, start = peak(), time.perf_counter()
    classes = [str(number) for number in range(CLASSES)]
    facts = ImageFacts(table, thumbnails)
    found = audit(images, activations, labels, classes, names, facts, Likeness(0.99, 0.99))
    seconds = time.perf_counter() - start
    pairs = set(zip(found.pairs["first"], found.pairs["second"], strict=True))
    planted = {tuple(sorted(pair)) for pair in zip(originals.tolist(), copies.tolist(), strict=True)}
    listed = set(found.likely_errors.tolist())
    print(
        f"{num_images:,} x {width}: {seconds:.0f} s, at most {peak():.1f} GB ({before:.1f} GB before it); "
        f"{len(pairs & planted)} of {len(planted)} copies found and {len(pairs - planted)} other pairs; "
        f"{len(listed & set(wrong.tolist()))} of {len(wrong)} wrong labels found among {len(listed)} listed"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
