"""What a run has logged of a model's answers is not computed again, where it is the same model's."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss
from workplace import TINY, Workplace

from conftest import paint_mislabeled
from graftline.bundle.calibration import Calibration
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import change_answers
from graftline.evaluation.predictions import Predictions
from graftline.pipeline.cli import compose
from graftline.pipeline.ensembles.result import EnsembleResult
from graftline.pipeline.evaluate import EvaluateResult
from graftline.pipeline.evaluating.scoring import PREDICTIONS_FILE
from graftline.pipeline.training.result import TrainResult

pytestmark = pytest.mark.long

FEW = ("evaluation.resamples=100", "tracking.system_metrics=false", "data=folder")
TAKEN, CLASSIFIED = "has logged of this bundle; for 15 of 15 test images the", "Classifying the test images"


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    return make_workplace("logged")


@pytest.fixture(scope="module")
def trained(place: Workplace, color_folder: Path) -> list[TrainResult]:
    """Two models."""
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        for seed in (0, 1):
            own = [*TINY, "trainer.max_epochs=1", f"seed={seed}", "tracking.register=false"]
            result = compose("train", [*own, "data=folder", f"data.path={color_folder}"]).run(place.root / f"run{seed}")
            assert isinstance(result, TrainResult)
            results.append(result)
    return results


@pytest.fixture
def evaluate(
    place: Workplace,
    trained: list[TrainResult],
    color_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[EvaluateResult, str]]:
    monkeypatch.chdir(place.root)

    def run(*overrides: str) -> tuple[EvaluateResult, str]:
        capsys.readouterr()
        result = compose("evaluate", [*FEW, f"data.path={color_folder}", *overrides]).run()
        assert isinstance(result, EvaluateResult)
        return result, " ".join(capsys.readouterr().out.split())

    return run


def test_an_evaluation_scores_what_the_training_has_logged(
    evaluate: Callable[..., tuple[EvaluateResult, str]], trained: list[TrainResult]
) -> None:
    first = trained[0]
    bundle, before = f"bundle={first.bundle}", Predictions.load(first.directory / "test" / PREDICTIONS_FILE)
    for reference in (bundle, f"bundle={first.run_id}"):
        found, told = evaluate(reference)
        assert TAKEN in told
        assert CLASSIFIED not in told
        np.testing.assert_array_equal(found.evaluation.predictions.logits, before.logits)
        assert found.evaluation.predictions.sha256 == before.sha256
        assert {name: one.value for name, one in found.evaluation.scores.items()} == {
            name: one.value for name, one in first.scores.items()
        }
    anew, told = evaluate(bundle, "reuse=false")
    assert CLASSIFIED in told
    assert TAKEN not in told
    np.testing.assert_allclose(anew.evaluation.predictions.logits, before.logits, atol=1e-5)
    assert evaluate(bundle, "split=validation")[1].count("Classifying the validation images") == 1, (
        "nobody has logged it"
    )
    assert "Classifying the validation images" not in evaluate(bundle, "split=validation")[1]


def test_a_changed_bundle_classifies_by_itself(
    evaluate: Callable[..., tuple[EvaluateResult, str]], trained: list[TrainResult], place: Workplace
) -> None:
    changed = shutil.copytree(trained[0].bundle, place.root / "changed")
    change_answers(changed, calibration=Calibration(temperature=2.0))
    expected = Predictor.from_directory(changed).logits(trained[0].version.samples("test").paths)
    found, told = evaluate("bundle=changed")
    assert CLASSIFIED in told
    np.testing.assert_allclose(found.evaluation.predictions.logits, expected, atol=1e-6)
    other = Predictions.load(trained[0].directory / "test" / PREDICTIONS_FILE)
    assert np.abs(expected - other.logits).max() > 1e-3
    assert found.evaluation.predictions.bundle_digest != other.bundle_digest


def test_logits_that_the_bundle_does_not_confirm_are_not_taken(
    evaluate: Callable[..., tuple[EvaluateResult, str]], trained: list[TrainResult], place: Workplace
) -> None:
    (file,) = (place.root / "mlartifacts").rglob(f"{trained[1].run_id}/artifacts/test/{PREDICTIONS_FILE}")
    kept, right = file.read_bytes(), Predictions.load(file)
    replace(right, logits=right.logits + np.float32(0.01)).save(file)
    try:
        found, told = evaluate(f"bundle={trained[1].bundle}")
        both, told_of_both = evaluate(f"runs={trained[1].run_id},{trained[0].run_id}")
    finally:
        file.write_bytes(kept)
    assert "What was computed ahead is not used, for 15 of 15 test images the bundle's logits differ by 1.0e-02" in told
    assert CLASSIFIED in told
    np.testing.assert_allclose(found.evaluation.predictions.logits, right.logits, atol=1e-5)
    assert both.metrics["accuracy"]["value"] > 0
    assert "models are scored by what runs have logged" in told_of_both, "the newest run has the right ones by now"


def test_members_on_one_crop_are_averaged_from_what_their_runs_have_logged(
    evaluate: Callable[..., tuple[EvaluateResult, str]],
    trained: list[TrainResult],
    color_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = f"runs={trained[0].run_id},{trained[1].run_id}"
    found, told = evaluate(runs)
    assert "All models are scored by what runs have logged (" in told
    assert CLASSIFIED not in told
    anew, told = evaluate(runs, "reuse=false")
    assert "Classifying the test images with 2 models" in told
    np.testing.assert_allclose(found.evaluation.predictions.logits, anew.evaluation.predictions.logits, atol=1e-5)
    assert found.metrics["accuracy"] == anew.metrics["accuracy"]
    assert 0 < found.evaluation.images_per_second < 1e5, "as measured, not as quickly as a file is read"
    assert "Classifying the test images with 2 models" in evaluate(runs, "crops=1,mirror")[1]

    evaluate(f"bundle={trained[0].bundle}", "split=validation")
    capsys.readouterr()
    made = compose("ensemble", [*FEW, f"data.path={color_folder}", runs, "choose=all", "tracking.register=false"]).run()
    assert isinstance(made, EnsembleResult)
    told = " ".join(capsys.readouterr().out.split())
    assert CLASSIFIED not in told
    assert "Classifying the validation images with 1 model:" in told, "an evaluation has logged those of the other"
    expected = made.predictor.predict(made.version.samples("test").paths)
    right = (expected.argmax(axis=1) == made.version.samples("test").labels).mean()
    assert made.metrics["accuracy"]["value"] == pytest.approx(right)


def test_an_ensemble_classifies_no_image_that_its_members_trainings_have_classified(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.root)
    data = [f"data.path={paint_mislabeled(tmp_path / 'mislabeled')}", "data.split.validation=0.4", *FEW]
    own = ["members=2", "choose=weighted", "tracking.register=false", "trainer.max_epochs=1"]
    keys = {one.partition("=")[0] for one in (*data, *own)}
    tiny = [one for one in TINY if one.partition("=")[0] not in keys]
    made = compose("ensemble", [*tiny, *own, *data]).run()
    assert isinstance(made, EnsembleResult)
    told = " ".join(capsys.readouterr().out.split())
    assert "Classifying the validation images with" not in told
    assert CLASSIFIED + " with" not in told
    assert told.count("scored by what runs have logged (") == 2, "of both splits"
    samples = made.version.samples("validation")
    bundles = [Predictor.from_directory(made.directory / "members" / number / "bundle") for number in ("1", "2")]
    losses = [log_loss(samples.labels, one.predict(samples.paths).astype(float)) for one in bundles]
    assert made.selection.alone == pytest.approx(losses, abs=1e-5)
