"""Scores are told by the further columns of a data set, in a training's report, an evaluation and the gate alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of

from conftest import COLORS, paint
from graftline.data.ingest import Ingest
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.evaluating.slices import slice_columns, write_known_slices, write_slices


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    """Images of two colors from two cameras; the table has a brightness of its own."""
    rows = []
    for number in range(120):
        color = list(COLORS)[number % 2]
        paint(COLORS[color], number).save(tmp_path / f"{number:03}.png")
        camera = "new" if number % 6 < 2 else "old"
        split, brightness = "train" if number < 40 else "test", "dark" if number % 5 else "light"
        rows.append((f"{number:03}.png", color, split, camera, brightness))
    file = tmp_path / "colors.csv"
    pd.DataFrame(rows, columns=["path", "label", "split", "camera", "brightness"]).to_csv(file, index=False)
    return Ingest("colors", str(file), Table(), Split(), directory=str(tmp_path / "data")).run().version


def predictions(version: DatasetVersion) -> tuple[Predictions, np.ndarray]:
    """Return those of a model that has half of the new camera's images wrong and all others right; which are new."""
    samples = version.samples("test")
    numbers = np.array([int(Path(path).stem) for path in samples.paths])
    is_new = numbers % 6 < 2
    given = np.where(is_new & (numbers % 12 < 6), 1 - samples.labels, samples.labels)
    made = predictions_of(np.where(np.eye(2)[given] == 1, 0.9, 0.1), samples.labels, paths=samples.paths)
    return replace(made, sha256=samples.sha256), is_new


def test_the_worst_value_of_a_column_is_flagged_in_each_report(version: DatasetVersion, tmp_path: Path) -> None:
    made, is_new = predictions(version)
    accuracy = float((made.predicted == made.labels)[is_new].mean())
    for name, write in {"training": write_known_slices, "evaluation": write_slices}.items():
        report = write(made, version, tmp_path / name)
        assert report is not None
        worst = next(one for one in report.slices if one.column == "camera")
        assert (worst.value, worst.images, worst.is_worse) == ("new", is_new.sum(), True)
        assert worst.accuracy.value == accuracy == pytest.approx(0.5, abs=0.05)
        assert worst.accuracy.low < accuracy < worst.accuracy.high
        assert "camera new" in report.sentence
        assert ("camera", "new") in {(one["column"], one["value"]) for one in report.flagged}
        table = pd.read_csv(tmp_path / name / "slices.csv")
        assert table.loc[table["column"] == "camera", "value"].tolist() == ["new", "old"]


def test_the_gate_slices_by_them_too_and_a_name_twice_is_told_apart(version: DatasetVersion) -> None:
    made, is_new = predictions(version)
    columns = slice_columns(version, made.paths, made.sha256, made.decoding)
    assert columns["camera"].tolist() == np.where(is_new, "new", "old").tolist()
    assert pd.api.types.is_float_dtype(columns["brightness"])
    assert set(columns["brightness as told"]) == {"dark", "light"}
