"""What a training leaves in its bundle for later images to be compared with: what the model gave for validation images.

Training images would not do: a network is surer of those that it was fitted on, and their embeddings lie farther apart
by class than those of any new image.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from graftline.bundle.answers import join_answers, report_progress
from graftline.bundle.ensemble import AnyPredictor, Ensemble
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.reference import MOST_IMAGES, Observations, Projection, Reference
from graftline.bundle.save import keep_reference
from graftline.console import counted
from graftline.data.image_facts import find_facts
from graftline.data.version import DatasetVersion, Samples, order_by_content
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
    samples, rows, paths = _draw(version)
    logits, embeddings = _known(predictor, source, samples, rows) or _run(predictor, paths)
    return _leave(predictor, bundle, version, logits, embeddings, workers)


def leave_ensemble_reference(
    ensemble: Ensemble, bundle: Path, version: DatasetVersion, logits: np.ndarray, workers: int = 0
) -> Reference:
    """As ``leave_reference``, for an ensemble, of which the first member alone is run, for its embeddings.

    Args:
        ensemble: the bundle's.
        bundle: its directory.
        version: has the validation images.
        logits: (N, K) of all of them, calibrated, in the ensemble's order of classes.
        workers: as for ``leave_reference``.
    """
    _, rows, paths = _draw(version)
    embeddings = _embed(ensemble, paths)
    none = np.empty((len(paths), 0), np.float32)
    return _leave(ensemble, bundle, version, logits[rows], none if embeddings is None else embeddings, workers)


def _embed(ensemble: Ensemble, paths: Sequence[str]) -> np.ndarray | None:
    """Return the first member's embeddings (N, E) of the images' first crops; None where its network gives none."""
    if ensemble.members[0].embedding_size is None:
        return None
    crops = ensemble.crops if ensemble.crops == "144" else "1"  # of all other sets the first crop is the center
    first = replace(ensemble, members=ensemble.members[:1], names=ensemble.names[:1], shares=(1.0,), crops=crops)
    with counted("Embedding validation images", len(paths)) as advance:
        return join_answers(list(report_progress(first.stream(paths, embed=True), advance))).embeddings


def _draw(version: DatasetVersion) -> tuple[Samples, np.ndarray, list[str]]:
    """Return the validation images, and numbers and paths of those that the reference is of."""
    samples = version.samples("validation")
    rows = np.sort(order_by_content(samples.sha256)[:MOST_IMAGES])
    return samples, rows, [samples.paths[row] for row in rows]


def _leave(
    predictor: AnyPredictor,
    bundle: Path,
    version: DatasetVersion,
    logits: np.ndarray,
    embeddings: np.ndarray,
    workers: int,
) -> Reference:
    """Put the reference into a bundle, given calibrated logits (N, K) and embeddings (N, E) of the images drawn."""
    samples, rows, paths = _draw(version)
    labels = version.renumber(samples.labels[rows], predictor.class_names)
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
    with counted("Classifying validation images", len(paths)) as advance:
        if predictor.embedding_size is not None:
            return predictor.logits_and_embeddings(paths, on_progress=advance)
        return predictor.logits(paths, on_progress=advance), np.empty((len(paths), 0), np.float32)
