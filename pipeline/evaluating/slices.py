"""Slices of an evaluation: on which images the model is worse, as a table, a picture and a sentence."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from graftline.console import counted, print_table, say
from graftline.data.decoding import Decoding
from graftline.data.image_facts import FACTS, find_facts
from graftline.data.version import DatasetVersion, order_by_content
from graftline.evaluation.predictions import Predictions
from graftline.evaluation.slices import Slice, score_slices, sentence
from graftline.files import atomic_file
from graftline.pipeline.evaluating.scoring import FIGURES_FOLDER, SLICES_FILE
from graftline.report.figures import write_slices_figure

COLUMNS = ("group", "stratum", "weight")  # of a version, beside the facts of its images
MOST_LOOKED_AT = 5000  # images whose facts are found: enough to show what is worse, in half a minute
MOST_TOLD = 6  # slices in the terminal


@dataclass(frozen=True)
class SliceReport:
    """What the report of an evaluation shows of slices.

    Attributes:
        slices: the worst first; none where there is nothing to slice by.
        sentence: on which images the model is worse.
        flagged: the slices that are surely worse, as ``result.json`` has them.
    """

    slices: list[Slice]
    sentence: str
    flagged: list[dict[str, Any]]


def write_slices(predictions: Predictions, version: DatasetVersion, directory: Path) -> SliceReport:
    """Score slices of the images that were predicted; print the worst, write all into ``slices.csv`` and a picture."""
    columns = slice_columns(version, predictions.paths, predictions.sha256, predictions.decoding)
    slices = score_slices(predictions, columns)
    if slices:
        rows = [(one.name, f"{one.images:,}", _percent(one), f"{100 * one.rest:.1f} %") for one in slices[:MOST_TOLD]]
        first = "Worse slices, and those" if slices[0].is_worse else "Slices"
        print_table(
            f"{first} with the lowest accuracy, of {len(slices)}",
            ("images with", "number", "accuracy", "others of\nthese classes"),
            rows,
        )
    say(sentence(slices))
    return _write(slices, directory)


def write_known_slices(predictions: Predictions, version: DatasetVersion, directory: Path) -> SliceReport | None:
    """Score and write slices by what the ingest knows, without opening an image; None where that divides nothing."""
    columns = _of_manifest(version, predictions.sha256, (*COLUMNS, "width", "height"))
    width, height = columns.pop("width"), columns.pop("height")
    shape = pd.DataFrame({"aspect": width / height, "megapixels": width * height / 1e6})
    slices = score_slices(predictions, _with_further(pd.concat([columns, shape], axis=1), version, predictions.sha256))
    if not slices:
        return None
    say(sentence(slices))
    return _write(slices, directory)


def _of_manifest(version: DatasetVersion, sha256: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Return what a version knows of images, a row each."""
    table = version.table().drop_duplicates("sha256").set_index("sha256")
    return table.loc[list(sha256), list(columns)].reset_index(drop=True)


def _with_further(columns: pd.DataFrame, version: DatasetVersion, sha256: Sequence[str]) -> pd.DataFrame:
    """Add what the source tells of the images; "as told" marks its own brightness, weight and the like."""
    further = version.further_columns(list(sha256))
    twice = further.columns.intersection(columns.columns)
    return columns.join(further.rename(columns={name: f"{name} as told" for name in twice}))


def _write(slices: list[Slice], directory: Path) -> SliceReport:
    _write_table(slices, directory / SLICES_FILE)
    write_slices_figure(slices, directory / FIGURES_FOLDER / "slices.svg")
    return SliceReport(slices, sentence(slices), [asdict(one) for one in slices if one.is_worse])


def slice_columns(
    version: DatasetVersion, paths: Sequence[str], sha256: Sequence[str], decoding: Decoding
) -> pd.DataFrame:
    """Return what there is to slice images by, a row for each: columns of the version, and facts of the images."""
    columns = pd.concat([_of_manifest(version, sha256, COLUMNS), _facts(paths, sha256, decoding)], axis=1)
    return _with_further(columns, version, sha256)


def _facts(paths: Sequence[str], sha256: Sequence[str], decoding: Decoding) -> pd.DataFrame:
    """Return the facts of the images, NaN for those beyond the first so many, by their contents."""
    rows = np.sort(order_by_content(sha256)[:MOST_LOOKED_AT])
    with counted("Looking at images", len(rows)) as advance:
        found = find_facts([paths[row] for row in rows.tolist()], decoding, on_progress=advance)
    facts = pd.DataFrame(np.nan, range(len(paths)), list(FACTS))
    facts.iloc[rows] = found.table.to_numpy()
    return facts


def _percent(one: Slice) -> str:
    accuracy = one.accuracy
    return f"{100 * accuracy.value:.1f} % [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def _write_table(slices: list[Slice], file: Path) -> None:
    rows = [
        (
            one.column,
            one.value,
            one.images,
            one.accuracy.value,
            one.accuracy.low,
            one.accuracy.high,
            one.rest,
            one.p_value,
        )
        for one in slices
    ]
    columns = ["column", "value", "images", "accuracy", "low", "high", "rest", "p_value"]
    with atomic_file(file) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
