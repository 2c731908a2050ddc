"""What a training leaves in its bundle for later images to be compared with: what the model gave for validation images.

Training images would not do: a network is surer of those that it was fitted on, and their embeddings lie farther apart
by class than those of any new image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.reference import MOST_IMAGES, Observations, Projection, Reference
from graftline.bundle.save import keep_reference
from graftline.console import progress
from graftline.data.image_facts import find_facts
from graftline.data.version import DatasetVersion, Samples
from graftline.pipeline.training.calibration import are_embeddings
from graftline.training.training_source import TrainingSource


def leave_reference(
    predictor: Predictor, bundle: Path, version: DatasetVersion, source: TrainingSource | None, workers: int = 0
) -> Reference:
    """Put the reference into a bundle.

    Args:
        predictor: the bundle's, calibrated.
        bundle: its directory.
        version: has the validation images.
        source: what it was trained on last; where that knows what its head was given, no image is classified.
        workers: threads that look at the images; 0: one per core.
    """
    samples = version.samples("validation")
    rows = np.sort(np.argsort(samples.sha256, kind="stable")[:MOST_IMAGES])  # contents decide, in no order of their own
    paths = [samples.paths[row] for row in rows]
    logits, embeddings = _known(predictor, source, samples, rows) or _run(predictor, paths)
    numbers = {name: number for number, name in enumerate(predictor.class_names)}
    labels = np.array([numbers[name] for name in version.class_names])[samples.labels[rows]]
    groups = np.unique(np.array(version.groups("validation"), dtype=object)[rows].astype(str), return_inverse=True)[1]
    facts = find_facts(paths, version.decoding, workers).table.to_numpy(np.float32)
    projection = Projection.fit(embeddings)
    observed = Observations.of(predictor.decision, softmax(logits), projection(embeddings), facts)
    reference = Reference(observed, labels.astype(np.int32), groups.astype(np.int32), projection)
    keep_reference(bundle, reference)
    return reference


def _known(
    predictor: Predictor, source: TrainingSource | None, samples: Samples, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return calibrated logits (N, K) and embeddings (N, E) of some validation images, where a training knows them."""
    if source is None or predictor.embedding_size is None:
        return None
    if source.setup.version.samples("validation").sha256 != samples.sha256:  # it may have been judged by a part of them
        return None
    logits, inputs = source.validation_logits(), source.validation_inputs()
    if logits is None or inputs is None or not are_embeddings(inputs, predictor, source.setup.version):
        return None
    return predictor.calibration.apply(logits[rows]), inputs[rows]


def _run(predictor: Predictor, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated logits (N, K) and embeddings (N, E), of which E is 0 where the network gives none."""
    with progress("Classifying validation images", total=len(paths)) as bar:

        def on_progress(done: int) -> None:
            bar.advance(bar.task_ids[0], done)

        if predictor.embedding_size is not None:
            return predictor.logits_and_embeddings(paths, on_progress=on_progress)
        return predictor.logits(paths, on_progress=on_progress), np.empty((len(paths), 0), np.float32)
