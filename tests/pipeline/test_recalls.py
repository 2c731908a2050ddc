"""Several classes that are to be found, from a training to what its model answers."""

import json
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from factory import NAME, Factory
from workplace import Workplace

from conftest import paint_mislabeled
from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor
from graftline.data.version import DatasetVersion
from graftline.evaluation.predictions import Predictions


@pytest.fixture(scope="module")
def factory(make_workplace: Callable[[str], Workplace]) -> Factory:
    factory = Factory(make_workplace("recalls"))
    paint_mislabeled(factory.images)
    return factory


@pytest.mark.long
def test_what_cannot_be_met_ends_the_run_and_lower_targets_resume_it(factory: Factory) -> None:
    place, split = factory.place, ["data.split.test=0.4", "data.split.validation=0.35"]
    asked = ["decision=recall", "decision.recalls={red:0.9,blue:0.9,green:0.9}"]
    ran = place.run("train", *factory.settings, *split, *asked)
    assert (ran.code, "Traceback" in ran.output) == (1, False), ran.output
    told = ran.output.splitlines()[-1]
    assert re.search(
        r"decision\.recalls asks for 0\.9 .* which cannot be met together on the \d+ validation images:", told
    )
    found = re.search(r"train\.resume=([0-9a-f]{32})", ran.output)
    assert found is not None
    assert not list(place.root.glob("outputs/train/*/test")), "no test image was looked at"
    assert factory.registry.names() == []

    ran = place.run("train", f"train.resume={found[1]}", "decision.recalls={red:0.9,blue:0.4}")
    assert ran.code == 0, ran.output
    assert "its bundle was saved before the run was interrupted" in ran.output
    assert [version.version for version in factory.versions] == [1]
    described = read_description(ran.directory / "bundle")
    sentence = described["card"]["decision"]["sentence"]
    assert sentence in " ".join(ran.output.split())
    assert "“blue” is found in" in sentence
    assert "“red” is found in" in sentence

    predictor = Predictor.from_directory(ran.directory / "bundle")
    version = DatasetVersion.load(place.root / "data" / NAME / ran.result["dataset_digest"])
    samples = version.samples("validation")
    found_of = {
        name: (predictor.decision.answer(predictor.predict(samples.paths)) == number)[samples.labels == number]
        for number, name in enumerate(predictor.class_names)
    }
    for name, recall in (("red", 0.9), ("blue", 0.4)):
        assert found_of[name].sum() > len(found_of[name]) - np.floor((len(found_of[name]) + 1) * (1 - recall))
    tested = Predictions.load(ran.directory / "test" / "predictions.parquet")
    scores = json.loads((ran.directory / "result.json").read_text())["metrics"]
    for number, name in enumerate(tested.class_names):
        recall = (tested.predicted == number)[tested.labels == number].mean()
        assert scores[f"recall/{name}"]["low"] <= scores[f"recall/{name}"]["value"] == recall
    assert tested.decision == predictor.decision

    answered = place.run("predict", f"model=models:/{NAME}/1", "images=images/red")
    assert answered.code == 0, answered.output
    table = pd.concat(map(pd.read_csv, sorted((place.root / answered.result["predictions"]).glob("*.csv"))))
    probabilities = table[[f"probability/{name}" for name in predictor.class_names]].to_numpy()
    expected = np.array(predictor.class_names)[predictor.decision.answer(probabilities)]
    assert (table["class"] == expected).mean() > 0.98, "rounded in the table"
    assert (table["class"] != np.array(predictor.class_names)[probabilities.argmax(axis=1)]).any()
