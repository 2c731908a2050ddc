"""What a training leaves in its bundle, if asked: training images in small, which a server shows beside an image."""

from pathlib import Path

import numpy as np

from graftline.bundle.neighbors import Neighbors
from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import unit
from graftline.bundle.save import keep_neighbors
from graftline.console import counted, warn
from graftline.data.version import DatasetVersion, order_by_content
from graftline.pipeline.training.calibration import are_embeddings
from graftline.report.thumbnails import thumbnails
from graftline.training.training_source import TrainingSource

SIDE = 112  # px, of the longer side: 3 to 4 kB


def leave_neighbors(
    predictor: Predictor, bundle: Path, version: DatasetVersion, source: TrainingSource | None, count: int
) -> None:
    """Put training images into a bundle.

    Args:
        predictor: the bundle's.
        bundle: its directory.
        version: has the training images.
        source: what it was trained on last; where that knows what its head was given, no image is classified.
        count: how many images, at most.
    """
    if predictor.embedding_size is None:
        warn("bundle.neighbors is left alone: this network gives no embedding, by which images could be compared.")
        return
    samples = version.samples("train")
    rows = np.sort(order_by_content(samples.sha256)[:count])
    paths = [samples.paths[row] for row in rows]
    with counted("Keeping training images in small", len(paths)) as advance:
        known = None if source is None else source.head_inputs()
        if known is not None and source is not None and are_embeddings(known[1], predictor, source.setup.version):
            embeddings = known[0][rows]
        else:
            embeddings = predictor.logits_and_embeddings(paths, on_progress=advance)[1]
        pictures = [one.source for one in thumbnails(paths, version.decoding, SIDE)]
    labels = version.renumber(samples.labels[rows], predictor.class_names)
    keep_neighbors(bundle, Neighbors(unit(embeddings).astype(np.float16), labels.astype(np.int32), pictures))
