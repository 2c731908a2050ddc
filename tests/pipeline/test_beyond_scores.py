"""What a training tells of its test beyond the scores: where it is worse, and whether it beats an earlier one."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from workplace import TINY, Workplace

from conftest import COLORS, paint
from graftline.bundle.decision import Decision
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.cli import compose
from graftline.pipeline.evaluating.earlier_model import compare_with_earlier
from graftline.pipeline.evaluating.scoring import PREDICTIONS_FILE
from graftline.pipeline.training.result import TrainResult
from graftline.tracking.tracking import Tracking

SAID = (
    "The model is significantly less accurate on 2 of 4 slices than on other images of the same classes: aspect 1.5 ("
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colors; every third image is wide and as gray as those of the other color."""
    root = tmp_path_factory.mktemp("images") / "mixed"
    generator = np.random.default_rng(0)
    for number, (name, color) in enumerate(list(COLORS.items())[:2]):
        (root / name).mkdir(parents=True)
        for index in range(75):
            picture = paint(color, 1000 * number + index)
            if index % 3 == 0:
                picture = Image.fromarray(generator.integers(80, 170, (40, 60, 3), dtype=np.uint8))
            picture.save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    return make_workplace("beyond")


@pytest.fixture
def train(place: Workplace, images: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainResult]:
    monkeypatch.chdir(place.root)

    def run(*overrides: str) -> TrainResult:
        data = ["data=folder", f"data.path={images}", "data.split.train=0.3", "data.split.test=0.6"]
        result = compose("train", [*TINY, *data, "data.split.validation=0.1", "train.batch_size=8", *overrides]).run()
        assert isinstance(result, TrainResult)
        return result

    return run


def written(result: TrainResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((result.directory / "result.json").read_text(encoding="utf-8"))
    return content


def test_the_slices_and_the_earlier_model_are_told_after_the_scores(
    train: Callable[..., TrainResult], place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train("name=first", "trainer.max_epochs=6")
    said = " ".join(capsys.readouterr().out.split())
    assert SAID in said
    assert "Against" not in said, "there is nothing to compare the first model with"
    found = written(first)
    assert {(one["column"], one["value"]) for one in found["worse_slices"]} == {
        ("aspect", "1.5"),
        ("megapixels", "0.0024"),
    }
    assert found["worse_slices"][0]["accuracy"]["value"] < found["worse_slices"][0]["rest"]
    assert "compared_with" not in found
    table = pd.read_csv(first.directory / "test" / "slices.csv")
    assert table["value"].tolist() == [1.5, 0.0024, 1.0, 0.0016]
    assert table["images"].sum() == 2 * 90
    assert "slices" in first.figures
    page = first.report.read_text(encoding="utf-8")
    assert said.count("Images for the report: ") == 1
    assert "On which images it is worse" in page
    assert "▼ worse</span> aspect <b>1.5</b>" in page
    assert "figures/slices.svg" in {item.path for item in place.mlflow.list_artifacts(first.run_id, "figures")}
    assert "test/slices.csv" in {item.path for item in place.mlflow.list_artifacts(first.run_id, "test")}
    card = (first.bundle / "README.md").read_text(encoding="utf-8")
    assert SAID in card
    assert re.search(r"\| aspect 1\.5 \| \d+ \| .* % \| .* to .* % \|", card)
    assert 'id="comparison"' not in page
    assert "compare runs=" in page
    assert "explain bundle=" in page

    second = train("name=second", "seed=1", "trainer.max_epochs=1", "optim.lr=1e-9")
    said = " ".join(capsys.readouterr().out.split())
    compared = written(second)["compared_with"]
    assert (compared["reference"], compared["verdict"]) == (first.run_id, "worse")
    sentence = "Against the best earlier model, first: accuracy -"
    assert sentence in said
    page = second.report.read_text(encoding="utf-8")
    assert 'id="comparison"' in page
    assert "each model against the best earlier model, first." in page
    assert re.search(r'<th scope="row">this model</th>.*<td>worse</td></tr>', page)
    assert "compare runs=" not in page, "it was compared"
    again = compose("compare", [f"runs={first.run_id},{second.run_id}", "resamples=100"]).run()
    assert again.metrics["accuracy_difference/second"] == pytest.approx(compared["difference"]), "as make compare"

    _other_earlier_models(first, second, place, capsys)


def _other_earlier_models(
    first: TrainResult, second: TrainResult, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Go on with a champion, and where there is nothing to compare with."""
    version, tracking = second.version, Tracking(system_metrics=False)
    of_first, of_second = (Predictions.load(one.directory / "test" / PREDICTIONS_FILE) for one in (first, second))
    place.mlflow.set_registered_model_alias("mixed", "champion", "1")
    earlier = compare_with_earlier(of_second, version, tracking, 100, 0)
    assert earlier is not None
    assert earlier.sentence.startswith("Against the champion mixed/1: accuracy -")
    assert earlier.sentence.endswith(": worse.")
    assert earlier.to_json()["reference"] == "models:/mixed/1"
    by_thresholds = replace(of_second, decision=Decision(thresholds=(0.9, 0.1)))
    of_other_kind = compare_with_earlier(by_thresholds, version, tracking, 100, 0)
    assert of_other_kind is not None
    assert "this model answers by thresholds of its own" in of_other_kind.sentence
    assert compare_with_earlier(of_first, version, tracking, 100, 0) is None, "that is the champion itself"
    assert compare_with_earlier(replace(of_second, split_digest="elsewhere"), version, tracking, 100, 0) is None
    with pytest.raises(IndexError):  # a fault of the program is not hushed up
        compare_with_earlier(of_second, version, tracking, 0, 0)
    broken = Tracking(uri=f"sqlite:///{place.root}/nothing.db")
    assert compare_with_earlier(of_second, version, broken, 100, 0) is None, "a training does not fail by that"
    told = " ".join(capsys.readouterr().out.split())
    assert "There is no comparison with the champion mixed/1, which was tested on other images" in told
    assert "The model is not compared with an earlier one: There is no tracking database" in told


def test_a_model_that_is_not_registered_is_compared_with_none(
    train: Callable[..., TrainResult], place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search or an ensemble trains many such, none of which is to replace another."""
    assert place.mlflow.search_model_versions(), "there is one to compare with"
    result = train("seed=2", "trainer.max_epochs=1", "tracking.register=false")
    assert "compared_with" not in written(result)
    assert "Against" not in capsys.readouterr().out
