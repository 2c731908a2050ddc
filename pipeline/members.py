"""The members of an ensemble, or of a comparison: what ``runs=`` leads to."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.bundle.ensemble import Ensemble, common_decoding, is_ensemble
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import EngineName, Predictor
from graftline.console import say
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.pipeline.bundle_source import find_bundle, open_bundle
from graftline.pipeline.run_directory import RunDirectory
from graftline.tracking.registry import TrainedRun
from graftline.tracking.tracking import Tracking

_BEST = re.compile(r"best:(\d+)")


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

    def ensemble(self, shares: Sequence[float], crops: str, card: dict[str, Any]) -> Ensemble:
        """Return the members as one predictor."""
        decoding = common_decoding(self.predictors, self.references)
        return Ensemble(self.predictors, self.references, tuple(shares), crops, card, decoding)

    def everyone(self, crops: str) -> Ensemble:
        """Return the plain average of all members, with what the first one's card says."""
        count = len(self.predictors)
        return self.ensemble([1 / count] * count, crops, self.predictors[0].card)


def open_members(
    references: Sequence[str], tracking: Tracking, experiment: str, engine: EngineName, execution: Execution
) -> Members:
    """Load the bundles that references lead to.

    Args:
        references: as `find_bundle` takes them, or ``latest``, or ``best:N``.
        tracking: knows the runs and the names.
        experiment: that has the latest and best runs.
        engine: what runs the networks.
        execution: on what device.

    Raises:
        UserError: one of them leads to no bundle, to that of an ensemble, or to one that another has led to.
    """
    places = list(_find(references, tracking, experiment))
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
        labels=tuple(_label(directory) for _, directory in places),
        predictors=tuple(one for one in predictors if isinstance(one, Predictor)),
    )


def _find(references: Sequence[str], tracking: Tracking, experiment: str) -> Iterator[tuple[str, Path]]:
    """Yield what each reference stands for: another one that always means the same, and the bundle's directory."""
    for reference in references:
        best = _BEST.fullmatch(reference)
        if reference != "latest" and best is None:
            yield reference, find_bundle(reference, tracking)
            continue
        runs = tracking.registry().trained_runs(experiment)
        chosen = runs[:1] if best is None else _best(runs, int(best[1]))
        yield from ((run.id, find_bundle(run.id, tracking)) for run in chosen)


def _best(runs: Sequence[TrainedRun], count: int) -> list[TrainedRun]:
    """Return the best runs by validation log loss, of those on the newest run's dataset version; each model once.

    Raises:
        UserError: there are not so many.
    """
    comparable = [run for run in runs if run.dataset_digest == runs[0].dataset_digest]
    losses: dict[str, tuple[float, int, TrainedRun]] = {}
    for order, run in enumerate(comparable):
        content = _read(run)
        if (loss := content.get("card", {}).get("validation", {}).get("val/loss")) is not None:
            losses.setdefault(content["digest"], (loss, order, run))
    if len(losses) < count:
        raise UserError(
            f"There are {len(losses)} different models with a bundle on this machine, of dataset version "
            f"{runs[0].dataset_digest}: ask for no more than those, or train more."
        )
    ranked = sorted(losses.values())[:count]
    say(f"Best of {len(losses)} by validation log loss: {', '.join(f'{loss:.3f}' for loss, _, _ in ranked)}.")
    return [run for _, _, run in ranked]


def _read(run: TrainedRun) -> dict[str, Any]:
    """Return what the bundle of a run says; empty where it is not on this machine."""
    if run.directory is None:
        return {}
    try:
        return read_description(RunDirectory(Path(run.directory)).bundle)
    except UserError:
        return {}


def _label(directory: Path) -> str:
    content = read_description(directory)
    height, width = content["preprocessing"]["image_size"]
    return f"{content['timm_name']} {height if height == width else f'{height} x {width}'} px"
