"""What a notebook's user types and sees."""

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from workplace import Workplace

import graftline
from graftline.errors import UserError
from graftline.pipeline import api
from graftline.pipeline.api import override
from graftline.pipeline.cli import compose
from graftline.pipeline.training.result import TrainResult

PHOTOS = "photos, of mine"  # a comma asks the command line for several runs

DOTTED: dict[str, Any] = {
    "data.name": "2024",
    "train.workers": 0,
    "train.batch_size": 16,
    "optim.lr": np.float64(0.003),
    "evaluation.resamples": 100,
}


@pytest.fixture(scope="module")
def place(color_folder: Path, make_workplace: Any) -> Workplace:
    workplace: Workplace = make_workplace("api")
    (workplace.root / PHOTOS).symlink_to(color_folder)
    return workplace


@pytest.fixture(autouse=True)
def _in_place(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)


@pytest.fixture(scope="module")
def model(place: Workplace) -> TrainResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        return graftline.train(
            Path(PHOTOS),
            backbone="lenet5",
            max_epochs=1,
            patience=None,
            trainer="cpu",
            debug=None,
            system_metrics=False,
            **DOTTED,
        )


def test_a_training_has_all_that_one_looks_at(model: TrainResult) -> None:
    assert model.version.name == "2024"
    assert model.model_uri == "models:/2024/1"
    assert {"accuracy", "log_loss", "recall/red"} <= set(model.scores)
    assert model.report.is_file()
    assert repr(model).splitlines()[0].startswith("test accuracy")
    assert model.scores.to_frame().loc["accuracy", "value"] == model.scores["accuracy"].value


def test_a_notebook_shows_scores_and_figures(model: TrainResult) -> None:
    assert f"<td>{model.scores['log_loss'].value:.3f}</td>" in model.scores._repr_html_()
    assert model.scores._repr_html_() in model._repr_html_()
    assert {"confusion_matrix", "reliability_diagram"} <= set(model.figures)
    assert model.figures._repr_html_().count("<img src=") == len(model.figures)


def test_a_model_is_loaded_from_wherever_it_lies(
    model: TrainResult, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sorted(model.version.samples("test").paths)[:3]
    expected = model.predictor.predict(images)
    for reference in (model.bundle, model.directory, model.run_id, f"runs:/{model.run_id}", "models:/2024/1"):
        predictor = graftline.load(reference)
        assert predictor.class_names == ("blue", "green", "red")
        np.testing.assert_array_equal(predictor.predict(images), expected)
    monkeypatch.setenv("HOME", str(place.root))
    for uri in (f"sqlite:///{Path('mlflow.db').resolve()}", "sqlite:///~/mlflow.db"):
        assert graftline.load("models:/2024/1", tracking_uri=uri).digest == model.predictor.digest


@pytest.mark.parametrize("reference", ["nowhere", "models:/nobody/1", "0" * 32])
def test_what_cannot_be_loaded_is_a_sentence(reference: str) -> None:
    with pytest.raises(UserError):
        graftline.load(reference)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PHOTOS, ("folder", PHOTOS)),
        (Path("labels.csv"), ("table", "labels.csv")),
        ("labels.tsv", ("table", "labels.tsv")),
        ("photos.tar.gz", ("archive", "photos.tar.gz")),
        ("elpv", ("elpv", None)),
        ("folder", ("folder", "given")),
    ],
)
def test_data_is_what_lies_there(data: str | Path, expected: tuple[str, str | None], place: Workplace) -> None:
    for name in ("labels.csv", "labels.tsv", "photos.tar.gz"):
        (place.root / name).touch()
    (place.root / "elpv").mkdir(exist_ok=True)  # an option's name is the option
    chosen = api._choose(data, ["elpv", "folder"])
    texts = [override(key, value) for key, value in {"data.path": "given", **chosen}.items()]
    config = compose("ingest", texts[1:] if data == "elpv" else texts).config
    assert Path(config.data.source._target_).suffix[1:].lower() == expected[0]
    assert config.data.path == expected[1]


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UserError) as caught:
        graftline.train("elvp", backbone="resnet5O", freeze="nothing", max_epoch=3, batch_size="16")
    lines = str(caught.value).splitlines()
    assert "data=elvp: no such data; did you mean elpv?" in str(caught.value)
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a, b"),
        ("data.name", "2024"),
        ("name", "it's \\' 'quoted'"),
        ("name", "C:\\photos\\"),
        ("name", "null"),
        ("data.name", None),
        ("name", "[x] {y: ~} ü"),
        ("train.class_weights", True),
        ("optim.lr", 1e-5),
        ("freeze.frozen", ["stem.*", "a,b", "1"]),
        ("backbone.options", {"groups": 2, "act": "it's"}),
        ("decision.recalls", {"Löß": 0.9, "true": 0.8, "a, b": 0.7, "1e3": 0.6, 'the "it\'s": {x}': 0.5}),
        ("decision.costs", {"null": {"Löß": 10.0, "1_000": 0.5}, "a": {"01": 1.0}}),
    ],
)
def test_a_value_means_what_it_is_in_python(key: str, value: Any) -> None:
    group = {"freeze.frozen": "freeze=names", "decision.recalls": "decision=recall", "decision.costs": "decision=cost"}
    composed = compose("train", [*([group[key]] if key in group else []), override(key, value)])
    again = compose("train", composed.overrides)
    config: Any = again.config
    assert config == composed.config
    for part in key.split("."):
        config = config[part]
    assert config == value
    assert not isinstance(value, dict) or OmegaConf.create(OmegaConf.to_yaml(config)) == value, "as a run keeps it"
    assert type(config) is type(value) or isinstance(value, list | dict)


def test_a_mapping_by_classes_may_be_of_any_kind() -> None:
    value = MappingProxyType({"a": MappingProxyType({"b": np.float32(0.5)})})
    assert override("costs", value) == """costs='{"a": {"b": 0.5}}'"""


def test_the_package_is_imported_at_once_and_knows_no_more() -> None:
    code = (
        "import sys, graftline; print([name for name in ('torch', 'hydra', 'numpy', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert not hasattr(graftline, "trian")
    assert {"load", "train"} <= set(graftline.__all__)
