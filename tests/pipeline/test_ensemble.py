"""Trained models become one: chosen on validation, tested once, registered, and used like any other."""

import base64
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import timm
from ensembled import MODEL, shifted
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sklearn.metrics import log_loss
from workplace import Workplace

from graftline.bundle.calibration import UNCALIBRATED
from graftline.bundle.ensemble import Ensemble, read_digest
from graftline.bundle.grid import Grid
from graftline.bundle.layout import FREEZE_CHECKS
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.refusal import Refusal, unit
from graftline.bundle.save import add_to_card, change_answers
from graftline.errors import UserError
from graftline.evaluation.predictions import Predictions
from graftline.features.store import ActivationStore
from graftline.pipeline.bundles.reference import load_reference
from graftline.pipeline.cli import compose
from graftline.pipeline.ensembles.result import EnsembleResult
from graftline.pipeline.promotion.examination import _frozen
from graftline.pipeline.training.calibration import Wanted, learn
from graftline.pipeline.training.result import MOST_PROBABLE_ANSWER, NOT_TESTED
from graftline.report.grid_tables import sentence
from graftline.tracking.names import BUNDLE_DIGEST
from graftline.tracking.tracking import Tracking

pytestmark = pytest.mark.long


@pytest.fixture
def place(ensemble_place: Workplace) -> Workplace:
    return ensemble_place


def test_members_differ_by_network_then_seed_and_are_averaged(made: EnsembleResult, place: Workplace) -> None:
    ensemble = made.predictor
    assert isinstance(ensemble, Ensemble)
    assert [member.preprocessing.image_size[0] for member in ensemble.members] == [32, 48, 32]
    assert len({member.digest for member in ensemble.members}) == 3
    assert made.selection.shares == pytest.approx([1 / 3] * 3)
    samples = made.version.samples("test")
    alone = [
        load.predict(samples.paths)
        for load in (Predictor.from_directory(made.directory / f"members/{n}/bundle") for n in (1, 2, 3))
    ]
    assert not np.allclose(alone[0], alone[2])  # another seed
    found = (ensemble.predict(samples.paths).argmax(axis=1) == samples.labels).mean()
    assert made.metrics["accuracy"]["value"] == pytest.approx(found)
    assert dict(made.table)["test accuracy"].startswith(f"{100 * found:.1f} % (")
    assert [row.crops for row in made.rows] == ["1", "mirror"]


def test_it_holds_what_later_images_are_compared_with(made: EnsembleResult) -> None:
    reference, samples = load_reference(made.bundle, "it"), made.version.samples("validation")
    probabilities = made.predictor.predict(samples.paths)
    np.testing.assert_allclose(reference.observed.confidences, probabilities.max(axis=1), atol=1e-5)
    np.testing.assert_array_equal(reference.observed.answers, probabilities.argmax(axis=1))
    np.testing.assert_array_equal(reference.labels, samples.labels)


def test_it_is_registered_as_one_model_and_its_members_are_not(made: EnsembleResult, place: Workplace) -> None:
    assert made.model_uri is not None
    name = made.model_uri.split("/")[1]
    versions = place.mlflow.search_model_versions(f"name = '{name}'")  # those of soups may be among them
    (version,) = (one for one in versions if one.run_id == made.run_id)
    assert str(version.description).startswith("# Ensemble of 3 on ")
    assert "- 33 %: test_efficientnet at 32 x 32 px" in str(version.description)
    experiment = place.mlflow.get_run(made.run_id).info.experiment_id
    runs = place.mlflow.search_runs([experiment])
    children = [one for one in runs if one.data.tags.get("mlflow.parentRunId") == made.run_id]
    assert len(children) == 3
    assert not {one.run_id for one in versions} & {one.info.run_id for one in children}
    assert {one.data.tags["graftline.stage"] for one in children} == {"train"}
    assert place.mlflow.get_run(made.run_id).data.tags["graftline.stage"] == "ensemble"


def test_the_gate_looks_at_the_freeze_check_of_each_member(made: EnsembleResult) -> None:
    ensemble = made.predictor
    assert isinstance(ensemble, Ensemble)
    assert _frozen(ensemble) == "0 frozen in 3 trainings"
    first, second, third = ensemble.members
    without = {key: value for key, value in second.card.items() if key != FREEZE_CHECKS}
    assert _frozen(replace(ensemble, members=(first, replace(second, card=without), third))) is None


def test_its_run_says_what_it_is_and_its_report_how_it_answers(made: EnsembleResult, place: Workplace) -> None:
    run = place.mlflow.get_run(made.run_id)
    assert run.info.run_name == "ensemble of 2 x test_efficientnet 32 px + test_efficientnet 48 px, mirror"
    assert run.data.tags[BUNDLE_DIGEST] == made.predictor.digest
    gain = f"Over its best member with one crop: {sentence(made.rows[-1], made.rows[0])}"
    for text in ("right** (", "\n    - 33 %: test_efficientnet 48 px, ", gain, "**Again**: `graftline ensemble "):
        assert text in run.data.tags["mlflow.note.content"]
    verdict = r"(better|worse|no difference shown) \(p [=<] [\d.]+\)\. \d+ images show (no difference|differences) in"
    assert re.search(verdict, run.data.tags["mlflow.note.content"])
    page = unescape(made.report.read_text())
    for text in (gain, MOST_PROBABLE_ANSWER, "On which images the model is worse", " sets=0.95 "):
        assert text in page


def test_without_test_images_it_is_reported_and_registered_all_the_same(
    run: Callable[..., EnsembleResult], place: Workplace
) -> None:
    apart = ["data.directory=untested", "tracking.experiment=untested"]
    made = run(*MODEL, "members=2", "choose=soup", "data.split.test=0", *apart)
    page = unescape(made.report.read_text())
    for text in (
        NOT_TESTED,
        "Soup of 2 x test_efficientnet 32 px, 1 crop on colors0",
        f", {made.directory}/members/1; test_efficientnet 32 px, {made.directory}/members/2<",
    ):
        assert text in page
    assert "compare runs=" not in page
    found = place.mlflow.get_run(made.run_id)
    assert found.data.tags[BUNDLE_DIGEST] == made.predictor.digest
    assert found.data.tags["mlflow.note.content"].startswith("Not tested")
    assert "report.html" in {item.path for item in place.mlflow.list_artifacts(made.run_id)}
    card = (made.bundle / "README.md").read_text()
    assert "# Soup of 2 on colors0" in card
    assert "- One network, whose weights are the mean of those of 2 networks (a soup), on 1 crop of each image:" in card


def test_every_stage_takes_it_as_one_model(
    made: EnsembleResult, run: Callable[..., EnsembleResult], color_folder: Path, place: Workplace
) -> None:
    assert made.model_uri is not None
    verified = compose("verify", [f"bundle={made.model_uri}"]).run()
    assert verified.facts["largest_probability_change"] == 0
    data = ["data=folder", f"data.path={color_folder}", "evaluation.resamples=100", "tracking.system_metrics=false"]
    evaluated = compose("evaluate", [f"bundle={made.run_id}", *data]).run(place.root / "evaluated")
    assert evaluated.metrics["accuracy"] == made.metrics["accuracy"]
    page = unescape((place.root / "evaluated" / "report.html").read_text(encoding="utf-8"))
    assert " images per second, mirror" in page
    assert MOST_PROBABLE_ANSWER in page
    commands = re.findall("<code>graftline (.*?)</code>", page)
    assert {command.partition(" ")[0] for command in commands} >= {"explain", "compare", "audit"}
    for stage, *overrides in map(shlex.split, commands):
        compose(stage, overrides)
        assert not any("crops=" in one for one in overrides), "an ensemble has its own"
    images = [f"images={color_folder / 'red'}", f"model={made.directory}"]
    assert compose("predict", images).run().facts["images"] == 20
    source = place.mlflow.get_model_version(*made.model_uri.removeprefix("models:/").split("/")).source
    assert source is not None
    image = color_folder / "red" / "00.png"
    served = mlflow.pyfunc.load_model(source).predict(
        pd.DataFrame({"image": [base64.b64encode(image.read_bytes()).decode()]})
    )
    expected = made.predictor.predict([image])[0]
    np.testing.assert_allclose(served.iloc[0, 2:5].to_numpy(float), expected, atol=1e-6)
    with pytest.raises(UserError, match="is an ensemble already: give its members, or evaluate it alone"):
        run(f"runs={made.run_id}")


def test_greedy_takes_what_helps_and_keeps_to_its_time(
    run: Callable[..., EnsembleResult], made: EnsembleResult, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = run("runs=best:3", "crops=5", "tracking.register=false")
    told = " ".join(capsys.readouterr().out.split())
    assert "Members are chosen by 9 validation images, which tell little: choose=all averages all members." in told
    samples, saved = made.version.samples("validation"), chosen.predictor
    assert isinstance(saved, Ensemble)
    together = replace(saved, calibration=UNCALIBRATED).predict(samples.paths)
    alone = [
        Ensemble((one,), ("",), (1.0,), "5", {}, saved.decoding).predict(samples.paths)
        for one in (Predictor.from_directory(made.directory / f"members/{n}/bundle") for n in (1, 2, 3))
    ]
    losses = [log_loss(samples.labels, one.astype(float)) for one in alone]
    assert sorted(chosen.selection.alone) == pytest.approx(sorted(losses), abs=1e-5)
    loss = log_loss(samples.labels, together.astype(float))
    assert loss == pytest.approx(chosen.selection.loss, abs=1e-5)
    assert loss <= min(losses) + 1e-5
    with pytest.raises(UserError, match=r"An ensemble of 0\.001 ms per image cannot be: the fastest member alone"):
        run("runs=best:2", "ms_per_image=0.001")


def test_shares_that_were_chosen_on_validation_are_those_that_are_tested(
    run: Callable[..., EnsembleResult], place: Workplace
) -> None:
    made = run("runs=best:3", "choose=weighted", "tracking.register=false")
    saved = made.predictor
    assert isinstance(saved, Ensemble)
    assert saved.shares == pytest.approx([share for share in made.selection.shares if share > 0])
    assert str(place.mlflow.get_run(made.run_id).info.run_name).startswith("weighted ensemble of ")
    for split in ("validation", "test"):
        samples = made.version.samples(split)
        members = [Predictor.from_directory(made.bundle / "members" / str(n + 1)) for n in range(len(saved.shares))]
        mean = np.tensordot(saved.shares, [one.predict(samples.paths) for one in members], axes=1)
        if split == "validation":
            assert log_loss(samples.labels, mean) == pytest.approx(made.selection.loss, abs=1e-5)
            assert made.selection.loss <= min(made.selection.alone) + 1e-6
        else:
            expected = softmax(saved.calibration.apply(np.log(mean).astype(np.float32)))
            np.testing.assert_allclose(saved.predict(samples.paths), expected, atol=1e-5)
            right = (expected.argmax(axis=1) == samples.labels).mean()
            assert made.metrics["accuracy"]["value"] == pytest.approx(right)


def test_logits_are_averaged_calibrated_and_served_alike(
    run: Callable[..., EnsembleResult], color_folder: Path, place: Workplace
) -> None:
    made = run("runs=best:3", "choose=all", "average=logits", "crops=mirror")
    assert json.loads((made.bundle / "bundle.json").read_text())["average"] == "logits"
    samples = made.version.samples("test")
    members = [Predictor.from_directory(made.bundle / "members" / str(n)) for n in (1, 2, 3)]
    grid = Grid(tuple(members), ("mirror",), made.version.decoding, ("1", "2", "3"), "logits")
    mean = grid.logits(samples.paths)[:, 0].mean(axis=0)
    expected = softmax(made.predictor.calibration.apply(mean))
    np.testing.assert_allclose(made.predictor.predict(samples.paths), expected, atol=1e-6)
    assert made.metrics["accuracy"]["value"] == (expected.argmax(axis=1) == samples.labels).mean()
    assert made.model_uri is not None
    assert compose("verify", [f"bundle={made.model_uri}"]).run().facts["largest_probability_change"] == 0
    source = place.mlflow.get_model_version(*made.model_uri.removeprefix("models:/").split("/")).source
    images = [{"image": base64.b64encode(Path(path).read_bytes()).decode()} for path in samples.paths[:3]]
    served = mlflow.pyfunc.load_model(str(source)).predict(pd.DataFrame(images))
    np.testing.assert_allclose(served.iloc[:, 2:5].to_numpy(float), expected[:3], atol=1e-6)


def test_the_decision_of_the_average_is_what_its_row_and_its_metrics_have(
    run: Callable[..., EnsembleResult], place: Workplace
) -> None:
    own = ["decision=recall", "decision.class_name=blue", "decision.recall=0.75", "tracking.register=false"]
    made = run("runs=best:2", "choose=all", *own)
    decision, samples = made.predictor.decision, made.version.samples("test")
    probabilities = made.predictor.predict(samples.paths)
    found = decision.answer(probabilities)
    assert (found != probabilities.argmax(axis=1)).any(), "the decision changes answers"
    accuracy = made.metrics["accuracy"]["value"]
    assert accuracy == pytest.approx((found == samples.labels).mean())
    assert made.rows[-1].accuracy.value == pytest.approx(accuracy)
    logged = place.mlflow.get_run(made.run_id).data.metrics
    assert logged["gain/accuracy"] == pytest.approx(accuracy - made.rows[0].accuracy.value)
    assert made.predictor.card["decision"]["sentence"] in unescape(made.report.read_text())


def test_that_an_ensemble_refuses_nothing_is_told_where_a_member_does(
    run: Callable[..., EnsembleResult], made: EnsembleResult, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = (made.directory / "members" / number / "bundle" for number in ("1", "3"))
    refusing, paths = shutil.copytree(first, place.root / "refusing"), made.version.samples("test").paths
    embeddings = Predictor.from_directory(first).logits_and_embeddings(paths)[1]
    change_answers(refusing, refusal=Refusal(unit(embeddings[:1]), 1, 0.0, 0.5))
    refused = Predictor.from_directory(refusing).predict_refusing(paths).refused
    assert refused is not None
    assert refused.any()
    chosen = ["decision=recall", "decision.class_name=red", "decision.recall=0.75"]  # no warning of decisions, then
    for bundle, typed in ((first, []), (refusing, []), (refusing, chosen)):
        joined = run(f"runs={other},{bundle}", "choose=all", "tracking.register=false", *typed)
        told = " ".join(capsys.readouterr().out.split())
        assert ("an average over members or crops marks none" in told) == (bundle == refusing)
        assert joined.predictor.predict_refusing(paths).refused is None


def test_what_a_member_weighed_the_mean_does_not_take_back(
    run: Callable[..., EnsembleResult], made: EnsembleResult, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()

    def noted(raw: Predictions, wanted: Wanted, seed: int) -> Any:
        asked.append(wanted.weighed)
        return learn(raw, wanted, seed)

    monkeypatch.setattr("graftline.pipeline.ensemble.learn", noted)
    first, other = (made.directory / "members" / number / "bundle" for number in ("1", "3"))
    weighed = shutil.copytree(first, place.root / "weighed")
    add_to_card(weighed, weighed=True)
    for bundle in (first, weighed):
        run(f"runs={other},{bundle}", "choose=all", "tracking.register=false")
    assert asked == [False, True]


def test_members_leave_other_folds_out_and_share_one_cache(
    place: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.root)
    weights = place.root / "weights.safetensors"
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), weights)
    given = ["freeze=all_but_head", "features=cached", "backbone.weights=file", f"backbone.file={weights}"]
    keys = {one.partition("=")[0] for one in given}
    own = [*(one for one in MODEL if one.partition("=")[0] not in keys), *given, "members=2", "folds=true"]
    made = compose("ensemble", [*own, "data=folder", f"data.path={color_folder}", "tracking.register=false"]).run()
    assert isinstance(made, EnsembleResult)
    told = " ".join(capsys.readouterr().out.split())
    assert "Member 2 of 2: test_efficientnet, seed 1, without part 2/2 of the training images." in told
    folders = [made.directory / "members" / str(number) for number in (1, 2)]
    assert [Predictor.from_directory(one / "bundle").card["fold"] for one in folders] == ["1/2", "2/2"]
    assert [OmegaConf.load(one / ".hydra" / "config.yaml").train.fold for one in folders] == ["1/2", "2/2"]
    (entry,) = ActivationStore(place.root / "cache" / "activations", 1e9).entries()
    seen = sum(made.version.num_images(split) for split in ("train", "validation"))
    assert sum(header.images for header in entry.headers) == seen, "each image went through the trunk once"


def test_one_that_was_interrupted_goes_on_with_the_members_that_it_has(
    place: Workplace, color_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    own = ["members=2", "choose=all", "tracking.register=false", "tracking.experiment=begun"]
    where = ["data=folder", f"data.path={color_folder}", "hydra.run.dir=outputs/begun"]
    place.interrupt("outputs/begun/members/1/result.json", "ensemble", *MODEL, *own, *where)
    directory = place.root / "outputs" / "begun"
    before = read_digest(directory / "members" / "1" / "bundle")
    (run_id,) = Tracking().find_runs(directory)
    with pytest.raises(UserError, match=r"trainer\.max_epochs=2 would change them"):
        compose("ensemble", [f"train.resume={run_id}", "trainer.max_epochs=2"])

    made = compose("ensemble", [f"train.resume={run_id}"]).run()
    assert isinstance(made, EnsembleResult)
    assert (made.run_id, made.directory) == (run_id, directory)
    members = [read_digest(made.bundle / "members" / number) for number in ("1", "2")]
    assert members == [before, read_digest(directory / "members" / "2" / "bundle")]
    runs = [Tracking(parent_run_id=run_id).find_runs(directory / "members" / number) for number in ("1", "2")]
    assert [len(one) for one in runs] == [1, 1], "each was trained in one run"
    assert "train.resume" not in place.mlflow.get_run(run_id).data.tags["mlflow.note.content"]
    with pytest.raises(UserError, match=f"^The ensemble is finished: start a new one, .* runs={directory}/members/1,"):
        compose("ensemble", [f"train.resume={run_id}"])


def test_an_average_is_calibrated_and_decides_in_the_order_of_classes_of_its_first_member(
    run: Callable[..., EnsembleResult], made: EnsembleResult, place: Workplace
) -> None:
    """A bad member, which is left out, names the classes in reverse: answers are those without it."""
    source = made.directory / "members" / "1" / "bundle"
    good = shifted(source, place.root / "good", np.array([-2.0, 0.0, 1.0]), 1)
    bad = shifted(source, place.root / "bad", np.array([30.0, -30.0, 0.0]), 1, is_reversed=True)
    own = ["decision=recall", "decision.class_name=blue", "decision.recall=0.75", "tracking.register=false"]
    alone, both = run(f"runs={good}", "choose=all", *own), run(f"runs={bad},{good}", "choose=greedy", *own)
    assert both.selection.shares == (0.0, 1.0)
    predictor, samples = both.predictor, both.version.samples("test")
    assert predictor.class_names == Predictor.from_directory(good).class_names
    probabilities = predictor.predict(samples.paths)
    found = predictor.decision.answer(probabilities)
    assert (found != probabilities.argmax(axis=1)).any(), "the decision changes answers"
    assert both.metrics["accuracy"]["value"] == pytest.approx((found == samples.labels).mean())
    assert both.metrics == alone.metrics
    assert [row.accuracy.value for row in both.rows] == [row.accuracy.value for row in alone.rows]
    assert (predictor.decision, predictor.digest) == (alone.predictor.decision, alone.predictor.digest)


def test_validation_images_that_do_not_suffice_are_told_before_a_network_runs(
    run: Callable[..., EnsembleResult], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"recall=0\.99 needs 99 validation images of “red”, and there"):
        run("runs=best:2", "decision=recall", "decision.class_name=red", "decision.recall=0.99")
    told = " ".join(capsys.readouterr().out.split())
    assert "validation images, which tell little: choose=all averages all members." not in told
    assert "Classifying" not in told


def test_members_of_other_images_are_refused(
    run: Callable[..., EnsembleResult], made: EnsembleResult, color_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"was trained on dataset version .*, but the images are now version"):
        run("runs=best:2", "data.split.seed=5", f"data.directory={tmp_path}")
