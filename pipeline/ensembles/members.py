"""The members of an ensemble, or of a comparison: what ``runs=`` leads to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from graftline.bundle.calibration import UNCALIBRATED
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.engines import EngineName
from graftline.bundle.ensemble import Ensemble, common_decoding, is_ensemble, read_ensemble
from graftline.bundle.grid import Average
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor
from graftline.console import warn
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.pipeline.bundles.source import find_bundle, open_bundle
from graftline.pipeline.runs.choice import A_BUNDLE, choose_runs
from graftline.tracking.tracking import Tracking

MOST_NAMED = 3  # kinds of models in the name of a run


@dataclass(frozen=True)
class Members:
    """Loaded bundles that are compared or averaged.

    Attributes:
        references: where each came from, as one would type it.
        directories: of the bundles.
        labels: a few words on each: its network and image size.
        predictors: loaded.
    """

    references: tuple[str, ...]
    directories: tuple[Path, ...]
    labels: tuple[str, ...]
    predictors: tuple[Predictor, ...]

    def ensemble(self, shares: Sequence[float], crops: str, card: dict[str, Any], average: Average) -> Ensemble:
        """Return the members as one predictor."""
        decoding = common_decoding(self.predictors, self.references)
        return Ensemble(self.predictors, self.references, tuple(shares), crops, card, decoding, average=average)

    def everyone(self, crops: str, average: Average) -> Ensemble:
        """Return the plain average of all members, with what the first one's card says.

        A single member answers as its own decision says, an average of several its most probable class.
        """
        count, first = len(self.predictors), self.predictors[0]
        whole = self.ensemble([1 / count] * count, crops, first.card, average)
        return replace(whole, decision=first.decision) if count == 1 else whole

    def joined_by(self, other: "Members") -> "Members":
        """Return the members and, behind them, others."""
        return Members(
            self.references + other.references,
            self.directories + other.directories,
            self.labels + other.labels,
            self.predictors + other.predictors,
        )

    def only(self, numbers: Sequence[int]) -> "Members":
        """Return those of some numbers, in that order."""
        return Members(
            tuple(self.references[number] for number in numbers),
            tuple(self.directories[number] for number in numbers),
            tuple(self.labels[number] for number in numbers),
            tuple(self.predictors[number] for number in numbers),
        )

    def uncalibrated(self) -> "Members":
        """Return the members as they were before each was calibrated by itself; no digest names them, then."""
        plain = tuple(replace(one, calibration=UNCALIBRATED, digest="") for one in self.predictors)
        return replace(self, predictors=plain)

    def label_numbers(self, version: DatasetVersion) -> np.ndarray:
        """Return the labels (N,) of the validation images, in the order of classes of the first member."""
        return version.renumber(version.samples("validation").labels, self.predictors[0].class_names)

    def require_version(self, version: DatasetVersion) -> None:
        """Make sure that no member has been trained on the images that choose among them, or test them.

        Raises:
            UserError: a member was trained on a version with other validation or test images.
        """
        held_out = {"validation_digest": version.split_digests["validation"], "test_digest": version.test_digest}
        for reference, predictor in zip(self.references, self.predictors, strict=True):
            trained = predictor.card.get("dataset_digest")
            if trained != version.digest and any(predictor.card.get(key) != held_out[key] for key in held_out):
                raise UserError(
                    f"{reference} was trained on dataset version {trained}, but the images are now version "
                    f"{version.digest}, of which it may have seen those that test it: leave it out, or train it anew."
                )

    @property
    def described(self) -> list[str]:
        """What each member is and where it came from."""
        return [f"{label}, {reference}" for label, reference in zip(self.labels, self.references, strict=True)]

    def warn_of_decisions(self) -> None:
        """Say that the members' own decisions are left alone, where they are averaged and have some."""
        if len(self.predictors) > 1 and any(one.decision != MOST_PROBABLE for one in self.predictors):
            warn(
                "The members' own decisions are left alone: an average answers its most probable class, unless the "
                "stage ensemble is given a decision."
            )

    def warn_of_refusals(self) -> None:
        """Say that an average over members or crops refuses no image, where some of the members do."""
        if any(one.refusal is not None for one in self.predictors):
            warn(
                "Images that are none of the classes are not marked: a model that was trained with refuse marks them "
                "alone and on one crop, and an average over members or crops marks none."
            )


def open_members(
    references: Sequence[str], tracking: Tracking, experiment: str, engine: EngineName, execution: Execution
) -> Members:
    """Load the bundles that references lead to.

    Args:
        references: as `find_bundle` takes them, or ``latest``, or ``best:N``.
        tracking: knows the runs and the names.
        experiment: that has the latest and best runs, where ``tracking`` names none.
        engine: what runs the networks.
        execution: on what device.

    Raises:
        UserError: one of them leads to no bundle, to that of an ensemble, or to one that another has led to.
    """
    chosen = choose_runs(references, tracking, A_BUNDLE, experiment).references
    places = [(reference, find_bundle(reference, tracking)) for reference in chosen]
    known: dict[str, str] = {}
    for reference, directory in places:
        if is_ensemble(directory):
            raise UserError(f"{reference} is an ensemble already: give its members, or evaluate it alone as a bundle.")
        digest = read_description(directory)["digest"]
        if digest in known:
            raise UserError(f"{reference} is the same model as {known[digest]}: leave one of them out.")
        known[digest] = reference
    predictors = [open_bundle(str(directory), tracking, engine, execution)[0] for _, directory in places]
    return Members(
        references=tuple(reference for reference, _ in places),
        directories=tuple(directory for _, directory in places),
        labels=tuple(label_of(directory) for _, directory in places),
        predictors=tuple(one for one in predictors if isinstance(one, Predictor)),
    )


def counted(labels: Sequence[str]) -> str:
    """Return a few words on models: how many there are of each kind, or in all where there are many kinds.

    >>> counted(["lenet5 28 px"]), counted(["lenet5 28 px", "alexnet 224 px", "lenet5 28 px"])
    ('lenet5 28 px', '2 x lenet5 28 px + alexnet 224 px')
    >>> counted([f"lenet5 {size} px" for size in (28, 32, 48, 64)])
    '4 models'
    """
    counts = Counter(labels)
    if len(counts) > MOST_NAMED:
        return f"{len(labels)} models"
    return " + ".join(label if count == 1 else f"{count} x {label}" for label, count in counts.items())


def shared_backbone(directories: Iterable[Path]) -> str:
    """Return the name of the network of bundles, members of ensembles among them; empty where they have several."""
    names = set()
    for directory in directories:
        if is_ensemble(directory):
            members = [directory / entry["folder"] for entry in read_ensemble(directory)["members"]]
            names.add(shared_backbone(members))
        else:
            names.add(str(read_description(directory)["timm_name"]))
    return names.pop() if len(names) == 1 else ""


def label_of(directory: Path) -> str:
    """Return a few words on a bundle: its network and image size, of an ensemble those of its members."""
    if is_ensemble(directory):
        members = [label_of(directory / entry["folder"]) for entry in read_ensemble(directory)["members"]]
        return f"ensemble of {counted(members)}"
    content = read_description(directory)
    height, width = content["preprocessing"]["image_size"]
    return f"{content['timm_name']} {height if height == width else f'{height} x {width}'} px"
