"""Comparing runs by what MLflow has of them: which are meant, what is refused, what is computed anew."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run as MlflowRun
from workplace import TINY, Workplace

import graftline
from conftest import paint
from graftline.errors import UserError
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.metrics import score
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.cli import compose
from graftline.pipeline.cli.hydra_conf import session
from graftline.pipeline.cli.validate import validate
from graftline.pipeline.compare import CompareResult
from graftline.pipeline.evaluate import EvaluateResult
from graftline.pipeline.evaluating.scoring import PREDICTIONS_FILE, log_evaluation
from graftline.pipeline.training.result import TrainResult
from graftline.tracking.client import connect
from graftline.tracking.names import TEST_DIGEST, VALIDATION_LOSS
from graftline.tracking.tracking import Tracking
from graftline.tracking.views import METRICS, PARAMETERS

COLORS = {"blue": (90, 100, 130), "red": (130, 95, 90)}  # so alike that a network of two epochs does not know them all


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "dusk"
    for number, (name, color) in enumerate(COLORS.items()):
        (root / name).mkdir(parents=True)
        for index in range(40):
            paint(color, 1000 * number + index).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Iterator[Path]:
    root = make_workplace("compare").root
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def trained(place: Path, images: Path) -> TrainResult:
    """A run called good."""
    typed = [*TINY, "data=folder", f"data.path={images}", "name=good", "trainer.max_epochs=4"]
    result = compose("train", typed).run(place / "outputs" / "good")
    assert isinstance(result, TrainResult)
    return result


@pytest.fixture(scope="module")
def runs(place: Path, trained: TrainResult) -> dict[str, str]:
    """The ids of runs: good, two others on the same images, and between these one on other images."""
    found = {"good": trained.run_id}
    predictions = Predictions.load(trained.directory / "test" / PREDICTIONS_FILE)
    generator = np.random.default_rng(0)
    for name in ("weak", "other", "new"):
        noise = generator.normal(0, 3, predictions.logits.shape)
        digest = "elsewhere" if name == "other" else predictions.split_digest
        mine = replace(predictions, logits=predictions.logits + noise, bundle_digest=name, split_digest=digest)
        directory = place / "outputs" / name
        (directory / "figures").mkdir(parents=True)
        mine.save(directory / PREDICTIONS_FILE)
        tags = {"graftline.stage": "train"}
        with Tracking(system_metrics=False).start(
            run_name=name, experiment="dusk", directory=directory, tags=tags
        ) as run:
            run.log_dataset(trained.version)
            log_evaluation(run, EvaluationResult(mine, score(mine, 100), [], 1.0), directory, step=0)
            run.log_metrics({VALIDATION_LOSS: 0.001 if name == "weak" else 9.0}, step=0)
        found[name] = run.id
    return found


@pytest.fixture(autouse=True)
def _in_place(place: Path, runs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def compared(*overrides: str) -> CompareResult:
    result = compose("compare", [*overrides, "resamples=100"]).run()
    assert isinstance(result, CompareResult)
    return result


def names(result: CompareResult) -> list[str]:
    return [result.comparison.reference.name, *(row.name for row in result.comparison.rows)]


def accuracy(place: Path, name: str) -> float:
    predictions = Predictions.load(place / "outputs" / name / PREDICTIONS_FILE)
    return float((predictions.predicted == predictions.labels).mean())


def test_runs_are_compared_with_the_first(
    trained: TrainResult, runs: dict[str, str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared(f"runs={runs['good']},runs:/{runs['weak']},{place}/outputs/new")
    assert names(result) == ["good", "weak", "new"]
    assert result.comparison.reference.scores["log_loss"].value == trained.scores["log_loss"].value
    assert result.comparison.rows[0].scores["accuracy"].value == accuracy(place, "weak")
    assert result.comparison.split_digest == trained.version.test_digest
    assert result.figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "20 images of dusk (test)" in printed
    assert "reference" in printed
    from_python = graftline.compare(trained.run_id, runs["weak"], place / "outputs" / "new", resamples=100)
    assert from_python.comparison == result.comparison
    written = json.loads((result.figure.parent / "result.json").read_text(encoding="utf-8"))
    assert written["reference"]["name"] == "good"
    row = result.comparison.rows[0]
    assert written["rows"][0]["verdict"] == row.verdict
    assert written["metrics"]["accuracy_difference/weak"] == vars(row.differences["accuracy"])


def test_the_best_of_the_experiment_are_so_on_validation_images_and_tested_on_the_same(
    trained: TrainResult, capsys: pytest.CaptureFixture[str]
) -> None:
    result = compared("runs=best:2", "metric=log_loss")
    assert names(result) == ["weak", "good"], "by validation log loss, whatever the test says"
    printed = " ".join(capsys.readouterr().out.split())
    assert "The 2 best of 3 models of 'dusk' on the newest one's images, by validation log loss: 0.001, " in printed
    assert names(compared("runs=best:9")) == ["weak", "good", "new"], "as many as there are"
    assert "corrected for 2 comparisons (Holm)" in capsys.readouterr().out


def test_latest_is_of_any_experiment_in_a_comparison_and_of_the_data_set_in_an_evaluation(
    trained: TrainResult, runs: dict[str, str], place: Path, images: Path
) -> None:
    directory = place / "outputs" / "weak"
    weak = Predictions.load(directory / PREDICTIONS_FILE)
    tags = {"graftline.stage": "train"}
    with Tracking(system_metrics=False).start(
        run_name="night", experiment="night", directory=directory, tags=tags
    ) as run:
        run.log_dataset(trained.version)
        log_evaluation(run, EvaluationResult(weak, score(weak, 100), [], 1.0), directory, step=0)
    try:
        assert names(compared(f"runs=latest,{runs['good']}")) == ["night", "good"]
        named = compared(f"runs=latest,{runs['good']}", "tracking.experiment=dusk")
        assert names(named) == ["new", "good"]
        with pytest.raises(UserError, match=f"^Run {runs['new']} has no bundle"):
            compose("evaluate", ["runs=latest", "data=folder", f"data.path={images}"]).run()
    finally:
        connect(Tracking().uri).delete_run(run.id)


def test_models_and_directories_are_references(trained: TrainResult, runs: dict[str, str]) -> None:
    result = compared(f"runs={trained.model_uri},{trained.bundle},latest,{runs['weak']}")
    assert names(result) == ["good (dusk/1)", "good", "new", "weak"]
    same = result.comparison.rows[0]
    assert (same.won, same.lost, same.verdict) == (0, 0, "no difference shown")


def test_directories_of_one_name_are_told_apart(trained: TrainResult, runs: dict[str, str], tmp_path: Path) -> None:
    for name in ("a/x", "b/x", "c/y"):
        shutil.copytree(trained.directory, tmp_path / name)
    file = tmp_path / "b" / "x" / "test" / PREDICTIONS_FILE
    predictions = Predictions.load(file)
    replace(predictions, logits=-predictions.logits).save(file)
    directories = [f"{tmp_path}/a/x/bundle", f"{tmp_path}/b/x/bundle", f"{tmp_path}/c/y"]
    result = compared(f"runs={','.join(directories)}")
    assert names(result) == [f"good ({directories[0]})", f"good ({directories[1]})", "good (y)"]
    assert result.comparison.reference.scores["accuracy"].value == trained.scores["accuracy"].value
    assert result.comparison.rows[0].scores["accuracy"].value == pytest.approx(1 - trained.scores["accuracy"].value)


def test_alone_it_is_the_newest_against_the_best_and_then_against_the_champion(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(compared()) == ["weak", "new"]
    assert "dusk has no champion: the newest run is compared with the best other one, by v" in capsys.readouterr().out
    client = connect(Tracking().uri)
    client.set_registered_model_alias("dusk", "champion", "1")
    try:
        assert names(compared()) == ["good (dusk@champion)", "new"]
        client.set_model_version_tag("dusk", "1", "graftline.bundle_digest", "new")  # as if that were the champion
        with pytest.raises(
            UserError, match=r"^good \(dusk@champion\) has no logged predictions, and it cannot be tested"
        ):
            compared()  # the newest other one is that on other images
    finally:
        client.delete_registered_model_alias("dusk", "champion")


@pytest.mark.long
def test_an_evaluation_is_no_model_and_is_compared_where_its_id_is_given(
    trained: TrainResult, runs: dict[str, str], images: Path, place: Path
) -> None:
    def evaluate(*typed: str) -> MlflowRun:
        data = ["data=folder", f"data.path={images}", "evaluation.resamples=100", "tracking.system_metrics=false"]
        result = compose("evaluate", [f"bundle={trained.bundle}", *data, *typed]).run()
        assert isinstance(result, EvaluateResult)
        return connect(Tracking().uri).get_run(result.run_id)

    chosen = evaluate("split=validation", "hydra.run.dir=outputs/validated")
    found = {name.partition("/")[0] for name in chosen.data.metrics}
    assert found == {"validation"}
    assert 0 < chosen.data.metrics["validation/accuracy"] <= 1
    assert chosen.data.tags[TEST_DIGEST] == trained.version.test_digest, "that of its own images is no test digest"
    assert "compare runs=" not in (place / "outputs" / "validated" / "report.html").read_text(encoding="utf-8")
    assert names(compared()) == ["weak", "new"], "the newest model, not the newest run with scores"

    everything = evaluate("split=all", "hydra.run.dir=outputs/everything")
    assert {name.partition("/")[0] for name in everything.data.metrics} == {"all"}
    page = (place / "outputs" / "everything" / "report.html").read_text(encoding="utf-8")
    assert "of 80 images.<br>" in page, "which are no test images"
    assert "80 (all splits), digest " in page
    assert "compare runs=" not in page
    assert names(compared()) == ["weak", "new"]
    for typed in (everything.info.run_id, "outputs/everything"):
        with pytest.raises(UserError, match=r"^good on dusk was evaluated on 60 images that trained its model, or"):
            compared(f"runs={runs['good']},{typed}")

    tested = evaluate("hydra.run.dir=outputs/tested")
    assert tested.data.metrics["test/accuracy"] == trained.scores["accuracy"].value
    assert tested.data.tags[TEST_DIGEST] == trained.version.test_digest
    assert "compare runs=" in (place / "outputs" / "tested" / "report.html").read_text(encoding="utf-8")
    assert names(compared()) == ["weak", "new"]
    assert names(compared("runs=latest,best:9")) == ["new", "weak", "good"]
    (row,) = compared(f"runs={runs['good']},{tested.info.run_id}").comparison.rows
    assert (row.name, row.won, row.lost) == (tested.info.run_name, 0, 0)


def test_a_model_that_was_tested_on_other_images_classifies_these(
    trained: TrainResult, runs: dict[str, str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(trained.directory, elsewhere)
    predictions = Predictions.load(elsewhere / "test" / PREDICTIONS_FILE)
    replace(predictions, split_digest="elsewhere").save(elsewhere / "test" / PREDICTIONS_FILE)
    result = compared(f"runs={runs['good']},{elsewhere}")
    (row,) = result.comparison.rows
    assert (row.won, row.lost) == (0, 0), "they are the same model"
    printed = " ".join(capsys.readouterr().out.split())
    assert "was tested on other images (digest elsewhere) than good (" in printed
    assert f"{elsewhere}/bundle classifies those now." in printed

    typed = [
        "data=folder",
        f"data.path={images}",
        "data.split.seed=1",
        "data.parent=none",
        f"data.directory={tmp_path}",
    ]
    digest = compose("ingest", typed).run().facts["dataset_digest"]
    (elsewhere / "dataset.json").write_text(json.dumps({"directory": str(tmp_path / "dusk" / digest)}))
    with pytest.raises(
        UserError, match=r"cannot be tested on those now: \d+ of them trained it, or chose its epoch\.$"
    ):
        compared(f"runs={runs['good']},{elsewhere}")


def test_a_run_without_predictions(trained: TrainResult, runs: dict[str, str], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(trained.directory, bare)
    shutil.rmtree(bare / "test")
    assert compared(f"runs={runs['good']},{bare}").comparison.rows[0].won == 0, "its bundle gives them"
    with pytest.raises(
        UserError, match=r"has no logged predictions to compare others with: `graftline evaluate bundle=/"
    ):
        compared(f"runs={bare},{runs['good']}")
    shutil.rmtree(bare / "bundle")
    with pytest.raises(UserError, match=r"has no logged predictions, and it cannot be tested on those now: .*bare"):
        compared(f"runs={runs['good']},{bare}")


def test_a_model_of_other_classes_is_refused_before_it_classifies(
    trained: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, other = (shutil.copytree(trained.directory, tmp_path / name) for name in ("bare", "other"))
    shutil.rmtree(bare / "test")
    predictions = Predictions.load(other / "test" / PREDICTIONS_FILE)
    replace(predictions, class_names=("blue", "scarlet")).save(other / "test" / PREDICTIONS_FILE)
    told = r"good \(bare\) and good \(other\) do not know the same classes \(red, scarlet only one of them does\)"
    with pytest.raises(UserError, match=told):
        compared(f"runs={other},{bare}")
    assert "classifies those now" not in capsys.readouterr().out


def test_a_training_logs_what_runs_are_compared_by(trained: TrainResult) -> None:
    run = connect(Tracking().uri).get_run(trained.run_id)
    assert list(run.data.params)[: len(PARAMETERS)] == ["network", "trained", "image_size", "epochs", "optimizer"]
    assert {name: run.data.params[name] for name in PARAMETERS} == {
        "network": "test_efficientnet",
        "trained": "all",
        "image_size": "32",
        "epochs": "4",
        "seed": "0",
    }
    assert not [name for name in run.data.params if "_target_" in name]
    assert set(METRICS) <= run.data.metrics.keys()
    assert run.info.run_name == "good", "as the user says"
    note = run.data.tags["mlflow.note.content"]
    assert "- **Again**: `graftline train backbone=test_efficientnet " in note
    assert f"(get-artifact?path=figures%2Fconfusion_matrix.svg&run_uuid={trained.run_id})" in note


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("runs=" + "0" * 32 + ",latest", r"^There is no run 0{32} in the tracking database .*; the newest are "),
        ("runs=latest", r"^A comparison needs two models, and runs leads to [0-9a-f]{32} alone: name another one\.$"),
        ("runs=best:1", r"^A comparison needs two models, and runs leads to [0-9a-f]{32} alone: name another one\.$"),
        ("runs=best:0", r"^best:0 does not say how many models: write best:3, for instance\.$"),
        (
            "runs=latest,nowhere",
            r"^nowhere is no model to compare: give a run's id or output directory, models:/NAME@A",
        ),
        ("runs=latest,models:/dusk/77", r"^The registered model 'dusk' has no version 77"),
        ("resamples=10", r"^resamples is 10, too few for a 95 % interval: use at least 100, or leave it at 1000\.$"),
        ("seed=-1", r"^seed is -1, it must be at least 0\.$"),
        ("tracking.experiment=dawn", r"^There is no experiment 'dawn' in the tracking database .*: there are .*dusk"),
        ("metric=precision", "metric=precision: must be accuracy or accuracy_weighted or balanced_accuracy or "),
        ("metric=accuracy_weighted", r"^These 20 images define no accuracy, weighted: compare another score\.$"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(typed: str, said: str) -> None:
    overrides = [] if typed.startswith("resamples") else ["resamples=100"]
    with pytest.raises(UserError, match=said):
        compose("compare", [*overrides, *(["runs=best:3"] if "runs=" not in typed else []), typed]).run()


def test_a_comma_in_a_key_that_takes_a_list_is_not_several_runs() -> None:
    with session("compare"):
        for typed, expected in {
            "runs=a,b": ["a", "b"],
            "runs=models:/a@b,best:10": ["models:/a@b", "best:10"],
            "runs=[a,b]": ["a", "b"],
            "runs='my run/x'": ["my run/x"],
            "runs=00000000000000000000000000000012,1e5": ["00000000000000000000000000000012", "1e5"],
        }.items():
            checked = validate("compare", [typed])
            assert len(checked.jobs) == 1
            assert list(checked.config.runs) == expected
    with session("train"):
        assert len(validate("train", ["seed=0,1"]).jobs) == 2
