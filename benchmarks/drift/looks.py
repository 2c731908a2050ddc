"""What a frozen network and a look at the pixels give for the images of a set, as they are and shifted; kept in files.

Letters: N images, E numbers of an embedding.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.accuracy.sets.catalog import SETS
from benchmarks.accuracy.sets.folders import Sample, without_copies
from benchmarks.drift.shifts import SHIFTS, to_image
from graftline.backbones.backbone import Backbone
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.data.image_facts import look_at
from graftline.execution import Execution

BACKBONE = "tf_efficientnet_lite0"
SHIFTED = 4


class Looks(NamedTuple):
    """N images of a set.

    Attributes:
        embeddings: (N, E) float32.
        facts: (N, facts) float32.
        labels: (N,) numbers of classes.
    """

    embeddings: np.ndarray
    facts: np.ndarray
    labels: np.ndarray


def look(name: str, shift: str, folder: Path) -> Looks:
    """Return what the set's images give under a shift; computed once, and kept in a folder.

    Only every ``SHIFTED``-th image is shifted: the others are there to be trained on.
    """
    file = folder / f"{name} {shift}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        samples = sorted(without_copies(SETS[name]()), key=lambda sample: sample.name)[
            :: 1 if shift == "none" else SHIFTED
        ]
        classes = sorted({sample.label for sample in samples})
        facts: list[tuple[float, ...]] = []
        np.savez(
            file,
            embeddings=_predictor().logits_and_embeddings(_shifted(samples, shift, facts))[1],
            facts=np.array(facts, np.float32),
            labels=np.array([classes.index(sample.label) for sample in samples]),
        )
    with np.load(file) as kept:
        return Looks(kept["embeddings"], kept["facts"], kept["labels"])


def _shifted(samples: Sequence[Sample], shift: str, facts: list[tuple[float, ...]]) -> Iterator[np.ndarray]:
    """Yield the images one by one, and note their facts."""
    for sample in samples:
        image = np.asarray(SHIFTS[shift](to_image(sample.pixels)))
        facts.append(look_at(image)[0])
        yield image


@cache
def _predictor() -> Predictor:
    """Return the pretrained network as a bundle, with a head that nobody asks."""
    graft = Backbone(BACKBONE).build(2)
    with tempfile.TemporaryDirectory() as folder:
        bundle = save_bundle(
            Path(folder) / "bundle",
            graft.network,
            timm_name=BACKBONE,
            class_names=("a", "b"),
            preprocessing=graft.preprocessing,
            card={},
        )
        return Predictor.from_directory(bundle, execution=Execution())
