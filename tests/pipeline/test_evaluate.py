"""Which images a bundle is evaluated on: none that it was trained on, all others, matched by the names of classes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from workplace import TINY, Workplace

from conftest import COLORS, paint
from graftline.bundle.decision import Decision
from graftline.bundle.save import add_to_card, change_answers
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.evaluate import EvaluateResult
from graftline.pipeline.training.result import TrainResult

TRAIN = (*TINY, "trainer.max_epochs=1", "tracking.register=false")


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Path:
    return make_workplace("evaluate").root


@pytest.fixture(scope="module")
def trained(place: Path, color_folder: Path) -> TrainResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = compose("train", [*TRAIN, "data=folder", f"data.path={color_folder}"]).run(place / "run")
    assert isinstance(result, TrainResult)
    return result


@pytest.fixture
def evaluate(place: Path, trained: TrainResult, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EvaluateResult]:
    monkeypatch.chdir(place)

    def run(path: Path, *overrides: str, bundle: object = trained.bundle) -> EvaluateResult:
        data = [f"bundle={bundle}", "data=folder", f"data.path={path}", "evaluation.resamples=100"]
        result = compose("evaluate", [*data, *overrides]).run()
        assert isinstance(result, EvaluateResult)
        return result

    return run


def new_images(root: Path, *classes: str, number: int = 6) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(number):
            paint(COLORS.get(name, (200, 200, 0)), 9000 + index).save(root / name / f"{index}.png")
    return root


def test_of_the_data_set_that_was_trained_on_it_takes_the_test_images(
    evaluate: Callable[..., EvaluateResult],
    trained: TrainResult,
    color_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert evaluate(color_folder).metrics == {
        name: {"value": one.value, "low": one.low, "high": one.high} for name, one in trained.scores.items()
    }
    elsewhere = evaluate(color_folder, f"data.directory={tmp_path}")  # as on a machine that has trained nothing
    assert elsewhere.evaluation.predictions.split_digest == trained.version.test_digest
    with_split = evaluate(color_folder, "split=validation", "name=night")
    assert with_split.facts["run_name"] == "night", "a script need not ask MLflow"
    validated = sum(trained.version.counts()["validation"].values())
    assert len(with_split.evaluation.predictions.paths) == with_split.facts["seen_in_training"] == validated
    assert len(evaluate(color_folder, "split=all").evaluation.predictions.paths) == 60
    tested = sum(trained.version.counts()["test"].values())
    assert f"{60 - tested} of these images trained the bundle" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("below", ["", "test"])
def test_of_another_data_set_it_takes_all_images_and_matches_classes_by_name(
    evaluate: Callable[..., EvaluateResult], tmp_path: Path, below: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new_images(tmp_path / "new" / below, "red", "green")
    result = evaluate(tmp_path / "new", "data.name=new")
    predictions = result.evaluation.predictions
    assert len(predictions.paths) == 12
    assert predictions.class_names == ("blue", "green", "red")
    assert {Path(path).parent.name for path in predictions.paths} == {"red", "green"}
    assert [predictions.class_names[label] for label in predictions.labels] == [
        Path(path).parent.name for path in predictions.paths
    ]
    output = " ".join(capsys.readouterr().out.split())
    assert "there are no images of 1 of them" in output
    assert "trained the bundle" not in output, "none of them did, which is known"
    assert "make sure" not in output


@pytest.mark.long
def test_images_of_another_folder_that_trained_the_bundle_are_told(
    evaluate: Callable[..., EvaluateResult],
    trained: TrainResult,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = new_images(tmp_path / "more-photos", *COLORS)
    for path in trained.version.samples("train").paths[:10]:
        shutil.copy(path, more / Path(path).parent.name / f"again-{Path(path).name}")
    told = "10 of these images trained the bundle, or chose its epoch: it will classify others worse."
    mlflow = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    for crops in ("1", "1,mirror"):  # members are looked at, too
        directory = f"outputs/more-{crops[-1]}"
        found = evaluate(more, f"crops={crops}", f"hydra.run.dir={directory}")
        assert len(found.evaluation.predictions.paths) == 28
        assert told in " ".join(capsys.readouterr().out.split())
        page = (place / directory / "report.html").read_text(encoding="utf-8")
        assert told in page
        assert "compare runs=" not in page
        assert told in mlflow.get_run(found.run_id).data.tags["mlflow.note.content"]
        assert found.facts["seen_in_training"] == 10
        with pytest.raises(UserError, match="was evaluated on 10 images that trained its model, or chose its epoch"):
            compose("compare", [f"runs={trained.run_id},{found.run_id}"]).run()
    elsewhere = f"data.directory={tmp_path / 'elsewhere'}"
    for bundle in (trained.bundle, trained.run_id):  # the output directory knows the version, and so does MLflow
        evaluate(more, elsewhere, bundle=bundle)
        assert told in " ".join(capsys.readouterr().out.split())

    alone = shutil.copytree(trained.bundle, tmp_path / "alone")  # as on a machine that has the bundle and no more
    found = evaluate(more, elsewhere, bundle=alone)
    assert mlflow.get_run(found.run_id).info.run_name == "test_efficientnet 32 px on more-photos"
    output = " ".join(capsys.readouterr().out.split())
    assert f"What {alone} was trained on is not known: make sure that it was none of these images" in output
    assert "trained the bundle" not in output


@pytest.mark.long
def test_images_that_trained_one_of_several_are_told(
    evaluate: Callable[..., EvaluateResult], trained: TrainResult, color_folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(trained.bundle, tmp_path / "other")  # of a version that nobody knows here
    add_to_card(other, dataset_digest="other", test_digest="other")
    change_answers(other, decision=Decision(thresholds=(0.5, 0.5, 0.4)))
    found = evaluate(color_folder, f"runs={other},{trained.bundle}", "split=validation", bundle="null")
    assert found.facts["seen_in_training"] == len(found.evaluation.predictions.paths)


def test_one_class_is_enough(evaluate: Callable[..., EvaluateResult], tmp_path: Path) -> None:
    result = evaluate(new_images(tmp_path / "one", "red"))
    assert len(result.evaluation.predictions.paths) == 6
    assert "auroc" not in result.metrics


def test_no_later_version_grows_from_a_test_set(
    evaluate: Callable[..., EvaluateResult], tmp_path: Path, place: Path
) -> None:
    images = new_images(tmp_path / "grows", "red", "green", number=20)
    evaluate(images)
    facts = compose("ingest", ["data=folder", f"data.path={images}"]).run().facts
    assert facts["parent_digest"] is None
    assert facts["images"]["train"] == 24
    assert (place / "data" / "grows" / str(facts["dataset_digest"])).is_dir()


def test_a_split_of_the_source_can_be_asked_for(evaluate: Callable[..., EvaluateResult], tmp_path: Path) -> None:
    new_images(tmp_path / "parts" / "train", "red", "green")
    shutil.copytree(new_images(tmp_path / "other", "blue", number=4), tmp_path / "parts" / "test")
    assert len(evaluate(tmp_path / "parts").evaluation.predictions.paths) == 16
    assert len(evaluate(tmp_path / "parts", "split=test").evaluation.predictions.paths) == 4


def test_a_class_that_the_model_does_not_know_is_told_before_images_are_read(
    evaluate: Callable[..., EvaluateResult], tmp_path: Path, place: Path
) -> None:
    with pytest.raises(UserError, match=r"does not know the class yellow, only blue, green, red: rename"):
        evaluate(new_images(tmp_path / "unknown", "red", "yellow"))
    assert not (place / "data" / "unknown").exists()
