"""Several runs and crops in one evaluation: which models they are, and what is said, drawn and logged of them."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bundles import change_description
from workplace import TINY, Workplace

from graftline.bundle.decision import Decision
from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import Refusal, unit
from graftline.bundle.save import change_answers
from graftline.errors import UserError
from graftline.evaluation.slices import sentence as slices_in_words
from graftline.pipeline.bundles.source import find_bundle
from graftline.pipeline.cli import compose, compose_all
from graftline.pipeline.compare import CompareResult
from graftline.pipeline.ensembles.result import EnsembleResult
from graftline.pipeline.evaluate import EvaluateResult
from graftline.pipeline.runs.choice import A_BUNDLE, choose_runs
from graftline.pipeline.training.result import MOST_PROBABLE_ANSWER, TrainResult
from graftline.tracking.names import TEST_DIGEST
from graftline.tracking.tracking import Tracking

FEW = ("evaluation.resamples=100", "tracking.system_metrics=false")


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    return make_workplace("grid")


@pytest.fixture(scope="module")
def trained(place: Workplace, color_folder: Path) -> list[TrainResult]:
    """Two models of different image sizes."""
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        for number, size in enumerate((32, 48)):
            own = [*TINY, "trainer.max_epochs=1", f"seed={number}", f"backbone.image_size={size}"]
            stage = compose("train", [*own, "data=folder", f"data.path={color_folder}", "tracking.register=false"])
            result = stage.run(place.root / f"run{number}")
            assert isinstance(result, TrainResult)
            results.append(result)
    return results


@pytest.fixture
def evaluate(
    place: Workplace, trained: list[TrainResult], color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., EvaluateResult]:
    monkeypatch.chdir(place.root)

    def run(*overrides: str) -> EvaluateResult:
        result = compose("evaluate", [*FEW, "data=folder", f"data.path={color_folder}", *overrides]).run()
        assert isinstance(result, EvaluateResult)
        return result

    return run


@pytest.mark.long
def test_runs_and_crops_are_compared_on_the_same_images(
    evaluate: Callable[..., EvaluateResult],
    trained: list[TrainResult],
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = [one.run_id for one in trained]
    result = evaluate(f"runs={','.join(ids)}", "crops=1,10", "hydra.run.dir=outputs/grid")
    predictions = result.evaluation.predictions
    assert predictions.split_digest == trained[0].version.test_digest
    directory = place.root / "outputs" / "grid"
    table = pd.read_csv(directory / "grid.csv")
    assert table["members"].tolist() == ["1", "1", "2", "2", "1+2", "1+2"]
    assert table["accuracy"][0] == pytest.approx(trained[0].scores["accuracy"].value)
    assert table["accuracy"][2] == pytest.approx(trained[1].scores["accuracy"].value)
    assert table["accuracy"].iloc[-1] == pytest.approx(result.metrics["accuracy"]["value"])
    assert (table["ms_per_image"] > 0).all()
    told = " ".join(capsys.readouterr().out.split())
    assert "2 members x 10 crops: " in told
    assert "points for" in told
    assert "Crops 10 take up to 10 passes of the network, and do harm where left and right differ" in told
    assert re.search(r"\d+ images show (no difference|differences) in accuracy .* corrected for 5 comparisons", told)
    assert "test_efficientnet 48 px" in told
    run = place.mlflow.get_run(result.run_id)
    assert run.data.metrics["test/accuracy"] == pytest.approx(table["accuracy"].iloc[-1])
    assert run.data.metrics["gain/accuracy"] == pytest.approx(table["accuracy_gain"].iloc[-1])
    files = {item.path for item in place.mlflow.list_artifacts(result.run_id)}
    assert {"grid.csv", "report.html", "figures", "test"} <= files
    assert json.loads((directory / "result.json").read_text())["members"] == ids
    name = trained[0].version.name
    assert run.info.run_name == f"test_efficientnet 32 px + test_efficientnet 48 px, crops 1, 10 on {name}"
    for text in (
        "right** (",
        f"\n    - test_efficientnet 48 px, {ids[1]}",
        "2 members x 10 crops: ",
        "graftline evaluate ",
    ):
        assert text in run.data.tags["mlflow.note.content"]
    page = unescape((directory / "report.html").read_text())
    for text in ("What members and crops bring, and cost", MOST_PROBABLE_ANSWER, slices_in_words([])):
        assert text in page
    (command,) = re.findall("<code>graftline (ensemble .*)</code>", page)
    made = compose("ensemble", shlex.split(command)[1:]).run()
    assert isinstance(made, EnsembleResult)
    assert made.rows[-1].accuracy.value == pytest.approx(table["accuracy"].iloc[-1])


@pytest.mark.long
def test_the_latest_and_the_best_are_the_same_in_every_stage(
    evaluate: Callable[..., EvaluateResult],
    trained: list[TrainResult],
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = evaluate("runs=latest", "crops=mirror")
    assert alone.facts["members"] == [trained[1].run_id]
    losses = [Predictor.from_directory(one.bundle).card["validation"]["val/loss"] for one in trained]
    best = evaluate("runs=best:2")
    order = sorted((0, 1), key=lambda number: losses[number])
    assert best.facts["members"] == [trained[number].run_id for number in order]
    assert evaluate("runs=best:3").facts["members"] == best.facts["members"], "as many as there are"
    printed = " ".join(capsys.readouterr().out.split())
    assert "All 2 models of 'colors0' on the newest one's images, by validation log loss: " in printed
    compared = compose("compare", ["runs=best:2,latest", "resamples=100"]).run()
    assert isinstance(compared, CompareResult)
    names = [place.mlflow.get_run(run_id).info.run_name for run_id in best.facts["members"]]
    assert [compared.comparison.reference.name, compared.comparison.rows[0].name] == names
    bundle = trained[1].bundle
    bundle.rename(bundle.with_name("moved"))
    try:
        assert evaluate("runs=best:2").facts["members"] == [trained[0].run_id]
        printed = " ".join(capsys.readouterr().out.split())
        assert "Models of the experiment 'colors0' that have no bundle on this machine are left out: 1." in printed
    finally:
        bundle.with_name("moved").rename(bundle)


def test_a_run_leads_to_no_model_that_a_later_training_has_left_in_its_directory(
    trained: list[TrainResult], place: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.root)
    first, tracking = trained[0].bundle, Tracking()
    assert find_bundle(trained[0].run_id, tracking) == first
    first.rename(place.root / "replaced")
    shutil.copytree(trained[1].bundle, first)
    note = first.parent / "outbox" / "run.json"
    of_first = note.read_text()
    try:
        with pytest.raises(UserError, match=f"has logged, .* train.resume={trained[0].run_id} goes on with it"):
            find_bundle(trained[0].run_id, tracking)
        note.write_text((trained[1].bundle.parent / "outbox" / "run.json").read_text())
        with pytest.raises(UserError, match=f"^{first} is no longer the model of run {trained[0].run_id}, as a later"):
            find_bundle(trained[0].run_id, tracking)
        chosen = choose_runs(["best:2"], tracking, A_BUNDLE, trained[0].version.name)
        assert chosen.references == [trained[1].run_id]
        told = " ".join(capsys.readouterr().out.split())
        assert "that have no bundle on this machine are left out: 1." in told
    finally:
        shutil.rmtree(first)
        (place.root / "replaced").rename(first)
        note.write_text(of_first)


@pytest.mark.long
def test_an_evaluation_of_several_runs_is_no_model_that_others_are_compared_with(
    evaluate: Callable[..., EvaluateResult], trained: list[TrainResult], place: Workplace
) -> None:
    def compared() -> list[str]:
        result = compose("compare", ["resamples=100"]).run()
        assert isinstance(result, CompareResult)
        return [result.comparison.reference.name, *(row.name for row in result.comparison.rows)]

    runs, before = f"runs={','.join(one.run_id for one in trained)}", compared()
    for number, typed in enumerate((["crops=1,mirror"], ["split=validation"])):
        result = evaluate(runs, *typed, f"hydra.run.dir=outputs/several{number}")
        run, is_test = place.mlflow.get_run(result.run_id), number == 0
        assert ("test/accuracy" in run.data.metrics) == is_test
        assert ("validation/accuracy" in run.data.metrics) != is_test
        assert run.data.tags[TEST_DIGEST] == trained[0].version.test_digest
        page = (place.root / "outputs" / f"several{number}" / "report.html").read_text(encoding="utf-8")
        assert ("compare runs=" in page) == is_test
        assert run.info.run_name not in before
        assert compared() == before
    everything = place.mlflow.get_run(evaluate(runs, "split=all").run_id)
    scored = {name.partition("/")[0] for name in everything.data.metrics}
    assert scored == {"all", "gain", "cost"}, "images that trained a model test none"
    assert compared() == before
    assert evaluate("runs=latest").facts["members"] == [trained[1].run_id]


def test_logits_are_averaged_where_that_is_asked(
    evaluate: Callable[..., EvaluateResult], trained: list[TrainResult], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = f"runs={','.join(one.run_id for one in trained)}"
    found = evaluate(runs, "average=logits").evaluation.predictions
    alone = [evaluate(f"runs={one.run_id}").evaluation.predictions.probabilities for one in trained]
    mean = np.sqrt(alone[0] * alone[1])
    np.testing.assert_allclose(found.probabilities, mean / mean.sum(axis=1, keepdims=True), atol=1e-5)
    evaluate(f"bundle={trained[0].run_id}", "average=logits")
    assert "average is left alone: one bundle with one crop" in " ".join(capsys.readouterr().out.split())


def test_shares_say_how_much_each_run_counts(
    evaluate: Callable[..., EvaluateResult], trained: list[TrainResult], place: Workplace
) -> None:
    runs = f"runs={','.join(one.run_id for one in trained)}"
    alone = [evaluate(f"runs={one.run_id}").evaluation.predictions.probabilities for one in trained]
    for average, expected in {
        "probabilities": (3 * alone[0] + alone[1]) / 4,
        "logits": alone[0] ** 0.75 * alone[1] ** 0.25,
    }.items():
        found = evaluate(runs, "shares=6,2", f"average={average}", "hydra.run.dir=outputs/shares")
        predictions = found.evaluation.predictions
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
        row = pd.read_csv(place.root / "outputs" / "shares" / "grid.csv").iloc[-1]
        assert row["accuracy"] == pytest.approx((expected.argmax(axis=1) == predictions.labels).mean())
        assert row["log_loss"] == pytest.approx(found.metrics["log_loss"]["value"], rel=1e-5)
    assert ", mean of logits, shares 75 %, 25 % on " in str(place.mlflow.get_run(found.run_id).info.run_name)
    page = unescape((place.root / "outputs" / "shares" / "report.html").read_text())
    assert "of logits, shares 75 %, 25 %" in page
    (command,) = re.findall("<code>graftline (ensemble .*)</code>", page)
    assert "choose=weighted" in command


def test_one_crop_of_one_run_is_the_usual_evaluation_and_trains_nothing(
    evaluate: Callable[..., EvaluateResult], trained: list[TrainResult], place: Workplace
) -> None:
    result = evaluate(f"runs={trained[0].run_id}", "hydra.run.dir=outputs/alone")
    page = unescape((place.root / "outputs" / "alone" / "report.html").read_text())
    assert Predictor.from_directory(trained[0].bundle).card["calibration"]["sentence"] in page
    assert f"evaluate bundle={trained[0].run_id} crops=1,5,10" in page
    for name, interval in trained[0].scores.items():
        assert result.metrics[name]["value"] == pytest.approx(interval.value, abs=1e-5)
    with pytest.raises(
        UserError, match=f"Run {result.run_id} has no bundle in .*: take a run that has trained a model"
    ):
        evaluate(f"runs={result.run_id},{trained[0].run_id}")


def test_a_decision_is_kept_by_its_own_model_and_said_to_be_left_alone_in_an_average(
    evaluate: Callable[..., EvaluateResult],
    trained: list[TrainResult],
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    decided = place.root / "decided"
    shutil.copytree(trained[0].bundle, decided)
    change_answers(decided, decision=Decision(thresholds=(1e-6, 1.0, 1.0)))  # nearly always the first class
    expected = evaluate("bundle=decided").metrics
    assert expected["accuracy"]["value"] < 0.7
    for runs in ("runs=decided", f"runs=decided,{trained[1].run_id}"):
        result = evaluate(runs, f"hydra.run.dir=outputs/{runs.count(',')}")
        table = pd.read_csv(place.root / "outputs" / str(runs.count(",")) / "grid.csv")
        assert table["accuracy"][0] == pytest.approx(expected["accuracy"]["value"])
        assert table["accuracy"].iloc[-1] == pytest.approx(result.metrics["accuracy"]["value"])
        warned = "The members' own decisions are left alone" in " ".join(capsys.readouterr().out.split())
        assert warned == ("," in runs)
        if not warned:
            assert result.metrics.keys() == expected.keys()
            assert all(result.metrics[name] == pytest.approx(expected[name], abs=1e-5) for name in expected)


def test_that_an_average_of_crops_refuses_nothing_is_told(
    evaluate: Callable[..., EvaluateResult],
    trained: list[TrainResult],
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusing = shutil.copytree(trained[0].bundle, place.root / "refusing")
    size = Predictor.from_directory(refusing).embedding_size
    assert size is not None
    change_answers(refusing, refusal=Refusal(unit(np.ones((1, size), np.float32)), 1, 0.0, 0.5))
    for typed, is_told in {("crops=1,mirror",): True, (): False}.items():
        evaluate("bundle=refusing", *typed)
        told = "an average over members or crops marks none" in " ".join(capsys.readouterr().out.split())
        assert told == is_told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["runs={0},{0}"], "runs names the same twice"),
        (["runs={0},run0"], "run0 is the same model as"),
        (["runs=stranger,{0}"], "does not know the same classes as .*stranger"),
        (["runs={0},nowhere"], "nowhere is not a bundle"),
        (["runs={0},lost"], r"is not a bundle: bundle\.json cannot be read"),
        (["runs={0}", "crops=12"], "crops has 12: take some of 1, mirror"),
        (["runs={0},run1", "shares=2,1,1"], "shares has 3 numbers, and runs leads to 2 models: give one for each"),
        (["runs={0},run1", "shares=2,-1"], "shares has -1: each share is above 0 and finite"),
        (["runs={0},run1", "shares=1,0"], "shares has 0: each share is above 0 and finite"),
        (["bundle={0}", "shares=1"], "shares is of runs that are averaged: name these, or leave it out"),
        (["runs={0}", "bundle={0}"], "bundle or runs is needed, and not both"),
        ([], "bundle or runs is needed, and not both"),
        (["bundle=tiny", "crops=10"], "lie in the corners of a larger image, for which 4 x 4 px are too few"),
    ],
)
def test_what_cannot_be_is_said_before_images_are_read(
    evaluate: Callable[..., EvaluateResult],
    trained: list[TrainResult],
    place: Workplace,
    overrides: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    stranger, tiny, lost = (place.root / name for name in ("stranger", "tiny", "lost"))
    for copy in (stranger, tiny):
        if not copy.exists():
            shutil.copytree(trained[0].bundle, copy)
            (copy / "golden").rename(copy / "no-golden")
    content = json.loads((stranger / "bundle.json").read_text())
    change_description(stranger, format=1, class_names=["blue", "green", "violet"])
    change_description(tiny, format=1, preprocessing={**content["preprocessing"], "image_size": [4, 4]})
    lost.mkdir(exist_ok=True)
    typed = [one.format(trained[0].run_id) for one in overrides]
    with pytest.raises(UserError, match=message) as error:
        evaluate(*typed, f"data.directory={tmp_path}")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_commas_make_a_list_and_no_sweep(trained: list[TrainResult], place: Workplace) -> None:
    (one,) = compose_all("evaluate", ["runs=models:/a@champion,models:/a/2,best:3", "crops=1,d4"])
    assert list(one.config.runs) == ["models:/a@champion", "models:/a/2", "best:3"]
    assert list(one.config.crops) == ["1", "d4"]
