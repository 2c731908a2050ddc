"""Explain: surest mistakes of a bundle, or one's own images → where it saw its answers, training images like them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from graftline.bundle.heat import OCCLUSION
from graftline.bundle.neighbors import nearest
from graftline.bundle.predictor import Predictor, softmax
from graftline.console import counted, print_table, say, warn
from graftline.data.decode import decode_rgb
from graftline.data.decoding import DecodeError
from graftline.data.file_names import to_text
from graftline.data.image_list import find_images
from graftline.errors import UserError
from graftline.evaluation.explanation import Explanation, Neighbor, find_heat
from graftline.execution import Accelerator, Execution
from graftline.features.cache import Features
from graftline.files import atomic_file
from graftline.pipeline.bundles.source import open_bundle
from graftline.pipeline.dataset_versions.bundle_trunk import BundleTrunk
from graftline.pipeline.dataset_versions.trained_on import trained_on
from graftline.pipeline.runs.stage_summaries import EXPLANATIONS_PICTURE
from graftline.pipeline.stage import StageResult
from graftline.report.explanation_figure import explanation_figure
from graftline.report.style import save
from graftline.tracking.tracking import Tracking
from graftline.words import join_names

NEIGHBORS = 3  # training images that are shown beside each image
MOST_IMAGES = 50  # that one picture can hold
TABLE_FILE = "explanations.csv"


@dataclass(frozen=True, kw_only=True)
class ExplainResult(StageResult):
    """What the stage ``explain`` found.

    Attributes:
        explanations: of each image; none where the model made no mistake.
        figure: the picture, a file; None where there is nothing to show.
    """

    explanations: Sequence[Explanation]
    figure: Path | None


@dataclass(frozen=True)
class _Chosen:
    """N images that are explained.

    Attributes:
        paths: of their files.
        logits: (N, K).
        labels: (N,) numbers of classes; None where they are not known.
        embeddings: (N, E); None where they are not known.
        sha256: N digests of images of the data set, which are no examples of themselves; empty for others.
        title: what they are.
        split: whose mistakes they are; None: they are of no split.
    """

    paths: Sequence[str]
    logits: np.ndarray
    labels: np.ndarray | None
    embeddings: np.ndarray | None
    sha256: Sequence[str]
    title: str
    split: str | None = None


@dataclass(frozen=True)
class Explain:
    """The stage ``explain`` (Hydra target of conf/explain.yaml).

    Attributes:
        features: where the activations of the model's data set are cached.
        tracking: where models and runs are looked up.
        bundle: a bundle's directory, a run's id or directory, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        images: an image or a folder of images; None: those that the model got wrong while it was surest.
        split: whose mistakes these are.
        number: of images, at most; 1 to 50.
        directory: of dataset versions, as NAME/DIGEST: has the one that the model was trained on; else MLflow is asked.
        accelerator: where the network is run.
    """

    features: Features
    tracking: Tracking
    bundle: str
    images: str | None = None
    split: Literal["train", "validation", "test"] = "test"
    number: int = 8
    directory: str = "data"
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MOST_IMAGES:
            raise UserError(f"Explain.number is {self.number}, but must be at least 1 and at most {MOST_IMAGES}.")

    def run(self, directory: Path) -> ExplainResult:
        """Explain the images, draw and list that."""
        files = None if self.images is None else find_images(Path(self.images).expanduser())
        execution = Execution.local(self.accelerator)
        predictor, bundle = open_bundle(self.bundle, self.tracking, "onnx", execution)
        if not isinstance(predictor, Predictor):
            raise UserError(f"{self.bundle} is an ensemble: explain one of its members, such as {bundle}/members/1.")
        version = trained_on(predictor.card, self.bundle, self.tracking, Path(self.directory), "Explain.directory")
        model = BundleTrunk.of(predictor, bundle, version, self.features, execution)
        chosen = self._mistakes(model) if files is None else self._own(model, files)
        if len(chosen.paths) == 0:
            say(f"The model made no mistake on the {self.split} images: name some of your own, images=DIR.")
            return ExplainResult(explanations=(), figure=None, facts=_facts(model, (), self.split))
        return _show(_explain(model, chosen, execution), chosen, model, directory)

    def _mistakes(self, model: BundleTrunk) -> _Chosen:
        """Return the images of the split that the model got wrong, the surest first."""
        activations = model.activations(self.split)
        found = model.predictions(self.split, activations)
        rows = found.surest_mistakes[: self.number]
        return _Chosen(
            [found.paths[row] for row in rows],
            found.logits[rows],
            found.labels[rows],
            None if activations is None else activations[rows],
            [found.sha256[row] for row in rows],
            f"{len(rows)} of {len(found.surest_mistakes):,} mistakes on the {self.split} images, the surest first",
            self.split,
        )

    def _own(self, model: BundleTrunk, files: Sequence[Path]) -> _Chosen:
        """Return images of which nobody has said what they are, the first ones of many that can be read."""
        paths, pixels, unreadable = list[str](), list[np.ndarray](), list[str]()
        for path in map(to_text, files):
            if len(paths) == self.number:
                warn(f"Of {len(files):,} files {self.number} are explained: number={MOST_IMAGES} is the most.")
                break
            try:
                pixels.append(decode_rgb(path, model.predictor.decoding))
                paths.append(path)
            except DecodeError as error:
                unreadable.append(f"{path} ({error.reason})")
        if not paths:
            raise UserError(f"Explain.images has none that can be read: {join_names(unreadable)}. Give others.")
        if unreadable:
            warn(f"What cannot be read as an image is left out: {join_names(unreadable)}.")
        logits, embeddings = model.answer(pixels)
        return _Chosen(paths, logits, None, embeddings, [""] * len(paths), f"{len(paths)} images")


def _explain(model: BundleTrunk, chosen: _Chosen, execution: Execution) -> list[Explanation]:
    """Return what is known of each image."""
    preprocessing, names = model.predictor.preprocessing, model.predictor.class_names
    probabilities = softmax(chosen.logits)
    answers = model.predictor.decision.answer(probabilities)
    views = [_view(model, path) for path in chosen.paths]
    images = torch.from_numpy(np.stack([preprocessing.normalize(view) for view in views]))
    device = execution.torch_device
    with counted("Looking where each answer comes from", len(views)) as advance:
        heat = find_heat(
            model.network.to(device),
            images.to(device),
            answers.tolist(),
            model.predictor.calibration.apply,
            advance,
        )
    neighbors = _neighbors(model, chosen) or [list[Neighbor]()] * len(views)
    return [
        Explanation(
            path=path,
            label=None if chosen.labels is None else names[chosen.labels[row]],
            answer=names[answers[row]],
            probability=float(probabilities[row, answers[row]]),
            covered=float(heat.covered[row]),
            elsewhere=float(heat.elsewhere[row]),
            view=views[row],
            heat=heat.maps[row],
            method=heat.methods[row],
            neighbors=neighbors[row],
        )
        for row, path in enumerate(chosen.paths)
    ]


def _neighbors(model: BundleTrunk, chosen: _Chosen) -> list[list[Neighbor]]:
    """Return the training images nearest to each of N, itself left out; none where the network does not tell."""
    embeddings = chosen.embeddings
    references = None if embeddings is None else model.activations("train")
    if embeddings is None or references is None:
        warn(f"No training images are shown, as the network cannot be cut below its head: {model.why}.")
        return []
    samples, names = model.version.samples("train"), model.version.class_names
    counts = Counter(samples.sha256)
    copies = max(counts[sha256] for sha256 in chosen.sha256)
    return [
        [
            Neighbor(samples.paths[row], names[samples.labels[row]], distance, _view(model, samples.paths[row]))
            for row, distance in zip(rows, distances, strict=True)
            if samples.sha256[row] != sha256
        ][:NEIGHBORS]
        for sha256, rows, distances in zip(
            chosen.sha256,
            *(found.tolist() for found in nearest(references, embeddings, NEIGHBORS + copies)),
            strict=True,
        )
    ]


def _view(model: BundleTrunk, path: str) -> np.ndarray:
    return model.predictor.preprocessing.frame(decode_rgb(path, model.predictor.decoding))


def _show(explanations: Sequence[Explanation], chosen: _Chosen, model: BundleTrunk, directory: Path) -> ExplainResult:
    """Draw, list and print explanations."""
    drawn = explanation_figure(explanations, chosen.title, model.predictor.class_names)
    figure = save(drawn, directory / EXPLANATIONS_PICTURE)
    table = directory / TABLE_FILE
    with atomic_file(table) as temporary:
        pd.DataFrame([_row(one) for one in explanations]).to_csv(temporary, index=False)
    print_table(
        chosen.title,
        ("image", "label", "answer", "probability", "nearest training images"),
        [
            (
                Path(one.path).name,
                one.label or "",
                one.answer,
                f"{100 * one.probability:.1f} %",
                _counts(neighbor.label for neighbor in one.neighbors),
            )
            for one in explanations
        ],
    )
    if covered := sum(one.method == OCCLUSION for one in explanations):
        say(
            f"In {covered} of {len(explanations)} images places were covered one after the other (occlusion): the "
            "answer depends on no map that Grad-CAM could use, or is surer without the places that Grad-CAM shows."
        )
    if sentence := _sentence(explanations):
        say(sentence)
    return ExplainResult(
        explanations=explanations,
        figure=figure,
        facts=_facts(model, explanations, chosen.split),
        table=[
            ("images", f"{len(explanations)}"),
            ("picture", os.path.relpath(figure)),
            ("table", os.path.relpath(table)),
        ],
    )


def _counts(names: Iterable[str]) -> str:
    """Return how often there is each name, the most frequent first.

    >>> _counts(["cat", "dog", "dog"])
    '2 dog, 1 cat'
    """
    return ", ".join(f"{count} {name}" for name, count in Counter(names).most_common())


def _sentence(explanations: Sequence[Explanation]) -> str:
    """Return what the nearest training images say of mistakes; empty where there are none."""
    labels = [(one, neighbor.label) for one in explanations if one.label is not None for neighbor in one.neighbors]
    if not labels:
        return ""
    agree = sum(name == one.answer for one, name in labels)
    return (
        f"Of the {len(labels)} nearest training images, {agree} are of the class that was answered and "
        f"{sum(name == one.label for one, name in labels)} of the class of the label: where all are of the answered "
        "one, look at the label first."
    )


def _row(one: Explanation) -> dict[str, object]:
    near = {
        f"{key}_{number}": value
        for number, neighbor in enumerate(one.neighbors, start=1)
        for key, value in (("near", neighbor.path), ("near_label", neighbor.label), ("distance", neighbor.distance))
    }
    return {
        "path": one.path,
        "label": one.label,
        "answer": one.answer,
        "probability": one.probability,
        "method": one.method,
        "probability_warmest_covered": one.covered,
        "probability_coolest_covered": one.elsewhere,
        **near,
    }


def _facts(model: BundleTrunk, explanations: Sequence[Explanation], split: str | None) -> dict[str, object]:
    return {
        "split": split,
        "bundle_digest": model.predictor.digest,
        "dataset_digest": model.version.digest,
        "images": len(explanations),
    }
