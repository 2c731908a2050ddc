"""The page of a drift check: what has changed in a window, by how much, and which images moved it.

Letters: N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.bundle.reference import Observations, Reference
from graftline.monitoring.accuracy import EstimatedAccuracy
from graftline.monitoring.drift import ANSWERS, CONFIDENCE, EMBEDDING, Change, Drift, numbers_of
from graftline.monitoring.window import Window
from graftline.report.chart import Axis, Chart, Numbers, Series
from graftline.report.page import write_page
from graftline.report.thumbnails import Thumbnail

MOST_CLASSES = 12  # in the chart of answers: those whose shares differ most
MOST_MAPPED = 150  # images of each side in the map
NAMES = {
    EMBEDDING: "what the network sees",
    ANSWERS: "answered classes",
    CONFIDENCE: "confidence",
    "brightness": "brightness",
    "contrast": "contrast",
    "sharpness": "sharpness",
    "aspect": "width to height",
    "megapixels": "megapixels",
}
MEANINGS = {
    EMBEDDING: "energy distance of embeddings, as a share of the usual distance of two images",
    ANSWERS: "share of images, if all that moved went from one class to one other",
    CONFIDENCE: "largest gap between the two distributions",
}
GAP = "largest gap between the two distributions"


@dataclass(frozen=True)
class DriftReport:
    """What a page shows.

    Attributes:
        model: as it was asked for, with its version.
        class_names: K names.
        reference: of the model.
        window: that was looked at.
        drift: what was found.
        accuracy: what can be said of it.
        moved: numbers of the images of the window that moved it most, with their pictures, where there are some.
        moved_by: name of the statistic that they moved.
        proposal: what to do.
        facts: name and text, for the end of the page.
        when: of the check.
    """

    model: str
    class_names: Sequence[str]
    reference: Reference
    window: Window
    drift: Drift
    accuracy: EstimatedAccuracy
    moved: Sequence[tuple[int, Thumbnail | None]]
    moved_by: str
    proposal: str
    facts: Sequence[tuple[str, str]]
    when: datetime


def write_drift_page(report: DriftReport, file: Path) -> Path:
    """Write the page."""
    return write_page(file, "drift.html.j2", _content(report))


def _content(report: DriftReport) -> Mapping[str, Any]:
    known, new = report.reference.observed, report.window.observed
    shown = [change.name for change in report.drift.changes if change.name not in (EMBEDDING, ANSWERS)]
    varied = [name for name in shown if np.ptp(np.concatenate([numbers_of(known, name), numbers_of(new, name)])) > 0]
    charts = [_answers_chart(report), *(_numbers_chart(name, known, new) for name in varied)]
    if known.embeddings.shape[1] > 0:
        charts.insert(0, _map(known, new))
    return {
        "title": report.model,
        "report": report,
        "date": f"{report.when:%Y-%m-%d %H:%M} UTC",
        "period": _period(report.window),
        "rows": [_row(change, report) for change in report.drift.changes],
        "charts": charts,
        "moved": [_moved(number, picture, report) for number, picture in report.moved],
        "moved_by": NAMES[report.moved_by],
        "ringing": [NAMES[change.name] for change in report.drift.changes if change.rings],
    }


@dataclass(frozen=True)
class _Row:
    """A line of the table: where the distance, its usual value and its limit lie on a bar, in % of its length."""

    name: str
    meaning: str
    before: str
    now: str
    change: Change
    place: float
    limit: float
    usual: float
    chance: str


def _row(change: Change, report: DriftReport) -> _Row:
    before, now = _before_and_now(change.name, report)
    end = 1.15 * max(change.distance, change.limit, 1e-9)
    return _Row(
        NAMES[change.name],
        MEANINGS.get(change.name, GAP),
        before,
        now,
        change,
        100 * change.distance / end,
        100 * change.limit / end,
        100 * change.usual / end,
        describe_chance(change.p_value),
    )


def describe_chance(p_value: float) -> str:
    """Say how rare something is.

    >>> describe_chance(0.5), describe_chance(0.004), describe_chance(0.0001)
    ('1 in 2', '1 in 250', 'fewer than 1 in 10,000')
    """
    if p_value <= 1.0001e-4:
        return "fewer than 1 in 10,000"
    return f"1 in {round(1 / p_value):,}" if p_value < 0.67 else "usual"


def _before_and_now(name: str, report: DriftReport) -> tuple[str, str]:
    known, new = report.reference.observed, report.window.observed
    if name == EMBEDDING:
        return "", ""
    if name == ANSWERS:
        shares = _shares(report)
        number = int(np.argmax(np.abs(shares[1] - shares[0])))
        return f"{100 * shares[0][number]:.0f} % “{report.class_names[number]}”", f"{100 * shares[1][number]:.0f} %"
    before, now = (float(np.median(numbers_of(one, name))) for one in (known, new))
    return f"{before:.3g}", f"{now:.3g}"


def _shares(report: DriftReport) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the share of each class among the answers, in the reference and in the window."""
    classes = len(report.class_names)
    first, second = (
        np.bincount(one.answers, minlength=classes) / len(one)
        for one in (report.reference.observed, report.window.observed)
    )
    return first, second


def _answers_chart(report: DriftReport) -> Chart:
    before, now = _shares(report)
    chosen = np.sort(np.argsort(-np.abs(now - before), kind="stable")[:MOST_CLASSES])
    places = np.arange(len(chosen), dtype=float)
    names = ", ".join(f"{index + 1} {report.class_names[number]}" for index, number in enumerate(chosen))
    which = "" if len(chosen) == len(before) else f" The {len(chosen)} classes that changed most."
    top = float(max(before[chosen].max(), now[chosen].max()))
    return Chart(
        "Answered classes",
        f"{names}.{which}",
        f"Shares of the answered classes, {names}.",
        Axis("class", 0.5, len(chosen) + 0.5, tuple((places + 1).tolist())),
        Axis.around("answers, %", [0.0, top], "%"),
        [
            Series("reference", places + 0.6, before[chosen], 0, "bars", width=0.4),
            Series("window", places + 1.0, now[chosen], 1, "bars", width=0.4),
        ],
    )


def _numbers_chart(name: str, known: Observations, new: Observations) -> Chart:
    """Return how a number is distributed on both sides, as shares of images in equal bins."""
    before, now = numbers_of(known, name), numbers_of(new, name)
    low, high = np.quantile(np.concatenate([before, now]), (0.002, 0.998))
    edges = np.linspace(low, high if high > low else low + 1, 25)
    middles = (edges[:-1] + edges[1:]) / 2
    shares = [np.histogram(np.clip(one, edges[0], edges[-1]), edges)[0] / len(one) for one in (before, now)]
    medians = tuple(float(np.median(one)) for one in (before, now))
    unit = "%" if name == CONFIDENCE else ""
    return Chart(
        NAMES[name][0].upper() + NAMES[name][1:],
        f"Median {medians[0]:.3g} in the reference, {medians[1]:.3g} in the window.",
        f"{NAMES[name]}: median {medians[0]:.3g} in the reference, {medians[1]:.3g} in the window.",
        Axis.around(NAMES[name] + (", %" if unit else ""), [float(edges[0]), float(edges[-1])], "%" if unit else ""),
        Axis.around("images, %", [0.0, float(max(one.max() for one in shares))], "%"),
        [Series("reference", middles, shares[0], 0, "area"), Series("window", middles, shares[1], 1, "area")],
    )


def _map(known: Observations, new: Observations) -> Chart:
    """Return the images on the plane on which the reference is widest (principal components)."""
    mine, theirs = (one.embeddings.astype(np.float64) for one in (known, new))
    middle = mine.mean(axis=0)
    plane = np.linalg.svd(mine - middle, full_matrices=False)[2][:2].T
    places = [_some((one - middle) @ plane) for one in (mine, theirs)]
    everything = np.concatenate(places)
    return Chart(
        "What the network sees",
        "Each mark is an image. The plane is the one on which the reference is widest; images that left it in another "
        "direction look close here.",
        "Map of embeddings of reference and window.",
        Axis.around("first direction", everything[:, 0]),
        Axis.around("second direction", everything[:, 1]),
        [
            Series(label, *_columns(one), style, "points")
            for label, one, style in zip(("reference", "window"), places, (0, 1), strict=True)
        ],
    )


def _columns(places: npt.NDArray[np.float64]) -> tuple[Numbers, Numbers]:
    return places[:, 0], places[:, 1]


def _some(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return at most ``MOST_MAPPED`` of N places, evenly taken."""
    rows = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_MAPPED)).round().astype(int))
    some: npt.NDArray[np.float64] = places[rows]
    return some


@dataclass(frozen=True)
class _Moved:
    name: str
    answer: str
    confidence: float
    picture: Thumbnail | None


def _moved(number: int, picture: Thumbnail | None, report: DriftReport) -> _Moved:
    observed = report.window.observed
    answer = report.class_names[int(observed.answers[number])]
    return _Moved(Path(report.window.names[number]).name, answer, float(observed.confidences[number]), picture)


def _period(window: Window) -> str:
    if window.begin is None or window.end is None:
        return "images in files"
    return f"{window.begin:%Y-%m-%d %H:%M} to {window.end:%Y-%m-%d %H:%M} UTC"
