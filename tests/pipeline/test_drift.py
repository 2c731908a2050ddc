"""A window of images beside what a model was judged on, as a user asks for it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles import without_numbers_for_blank
from drifting import blur, make_model, make_version, paint_all
from PIL import Image
from workplace import Workplace

from graftline.bundle.ensemble import Ensemble, save_ensemble
from graftline.bundle.predictor import Predictor
from graftline.bundle.verify import verify_bundle
from graftline.errors import UserError
from graftline.monitoring.drift import find_drift
from graftline.monitoring.window import look_at_files
from graftline.pipeline.bundles.reference import load_reference
from graftline.pipeline.cli import compose
from graftline.pipeline.drift import DriftResult
from graftline.pipeline.training.drift_reference import leave_ensemble_reference

RETRAIN = "label some of them, add them to "  # the proposal


def read_gauges(file: Path) -> dict[str, float]:
    """Return the values by their names and labels."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """With a model, images like those that judged it, and blurred ones."""
    place = make_workplace("drift")
    make_model(place.root)
    blur(paint_all(place.root / "same", range(1000, 1100)), place.root / "blurred")
    return place


def test_images_like_those_of_the_training_are_no_drift(place: Workplace) -> None:
    ran = place.run("drift", "model=./bundle", "images=same")
    assert ran.code == 0, ran.output
    assert ran.result["outcome"] == "no drift", ran.output
    for text in (ran.output, (ran.directory / "drift.html").read_text(encoding="utf-8")):
        assert RETRAIN not in text
    shares = Predictor.from_directory(place.root / "bundle").predict((place.root / "same").iterdir()).mean(axis=0)
    assert list(ran.result["class_shares"].values()) == pytest.approx(shares.tolist(), rel=1e-5)
    assert f" {shares.max():.1%}" in (ran.directory / "drift.html").read_text(encoding="utf-8")
    gauges, estimate = read_gauges(ran.directory / "drift.prom"), ran.result["metrics"]["estimated_accuracy"]
    model = f'{{model="{place.root.name}"}}'
    for gauge, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert gauges[f"graftline_estimated_accuracy{gauge}{model}"] == pytest.approx(estimate[key])
    assert 0 < estimate["low"] <= estimate["value"] <= estimate["high"] <= 1


def test_blurred_images_are(place: Workplace) -> None:
    ran = place.run("drift", "model=./bundle", "images=blurred", "prometheus=gauges.prom")
    assert ran.code == 0, ran.output
    assert ran.result["outcome"] == "drift"
    run = place.mlflow.get_run(ran.result["run_id"])
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("**Drift**, 100 images beside the reference\n\n")
    assert ran.result["accuracy_sentence"] in note
    assert re.search(r"\| sharpness \| [\d.]+ \| [\d.]+ \| [\d.]+ \| .* \| rings \|", note)
    assert (run.data.metrics["drift/rings"], run.data.metrics["drift/images"]) == (1, 100)
    assert {"drift.html", "drift.prom"} <= {item.path for item in place.mlflow.list_artifacts(run.info.run_id)}
    for text in (ran.output, (ran.directory / "drift.html").read_text(encoding="utf-8")):
        assert RETRAIN in text
    assert (place.root / "gauges.prom").read_bytes() == (ran.directory / "drift.prom").read_bytes()
    values = read_gauges(place.root / "gauges.prom")
    model = f'model="{place.root.name}"'
    assert values[f"graftline_drift{{{model}}}"] == 1
    sharpness = values[f'graftline_drift_distance{{{model},statistic="sharpness"}}']
    assert sharpness == pytest.approx(run.data.metrics["drift/sharpness"])
    assert sharpness > values[f'graftline_drift_limit{{{model},statistic="sharpness"}}']


def test_a_damaged_reference_is_refused(place: Workplace) -> None:
    file = shutil.copytree(place.root / "bundle", place.root / "damaged") / "drift.npz"
    file.write_bytes(file.read_bytes()[:2000])
    ran = place.run("drift", "model=./damaged", "images=same")
    assert (ran.code, "drift.npz is not what was saved: copy or save the bundle again." in ran.output) == (1, True)


def test_an_ensemble_is_watched_as_one_model_is(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    version, member = make_version(place.root, 120), place.root / "bundle"
    bundle = save_ensemble(place.root / "together", [member, member], (0.5, 0.5), "mirror", {"dataset": "squares"})
    with pytest.raises(UserError, match="is an ensemble of an earlier graftline, without a reference"):
        load_reference(bundle, "models:/squares/1")
    ensemble = Ensemble.from_directory(bundle)
    logits = ensemble.logits(version.samples("validation").paths)
    reference = leave_ensemble_reference(ensemble, bundle, version, logits)
    alone = load_reference(member, "").observed
    np.testing.assert_array_equal(reference.observed.embeddings, alone.embeddings, "those of the first member")
    np.testing.assert_array_equal(reference.observed.facts, alone.facts)
    assert verify_bundle(bundle).problem is None

    def rings(name: str, *overrides: str) -> bool:
        found = compose("drift", ["model=./together", *overrides]).run(place.root / name)
        assert isinstance(found, DriftResult)
        return found.drift.rings

    assert [rings(f"of-{name}", f"images={name}") for name in ("same", "blurred")] == [False, True]
    compose("predict", ["model=./together", "images=blurred", "monitor=seen"]).run(place.root / "predicted")
    assert rings("of-monitor", "monitor=seen")
    (bundle / "drift.npz").write_bytes(b"")
    assert verify_bundle(bundle).damaged == ("drift.npz",)


def test_gauges_that_cannot_be_written_are_told_before_images_are_read(place: Workplace) -> None:
    for given, told in (("/proc/x/y.prom", "cannot be written"), (".", "is a directory")):
        ran = place.run("drift", "model=./bundle", "images=same", f"prometheus={given}")
        assert ran.code == 1
        assert f"prometheus={given} {told}" in ran.output
        assert "Looking at" not in ran.output


def test_too_few_images_are_refused_before_the_model_is_loaded(place: Workplace) -> None:
    one = next((place.root / "same").iterdir())
    with pytest.raises(UserError, match=r"^images=.* is 1 file, and 20 images are the fewest .*: give more images\.$"):
        compose("drift", ["model=./no-such-bundle", f"images={one}"]).run(place.root / "refused")


def test_a_window_of_no_time_is_refused(place: Workplace) -> None:
    ran = place.run("drift", "model=./bundle", "window=0d")
    assert (ran.code, "window is '0d': give a time" in ran.output) == (1, True)


def test_an_image_without_finite_numbers_is_left_out(place: Workplace, tmp_path: Path) -> None:
    """One of NaN would be farther away than all others, and ring."""
    bundle, files = place.root / "bundle", paint_all(tmp_path / "same", range(1000, 1100))
    Image.new("RGB", (24, 24), "white").save(files[50])
    predictor, reference = without_numbers_for_blank(Predictor.from_directory(bundle)), load_reference(bundle, "")
    window = look_at_files(predictor, reference, [str(file) for file in files], lambda _: None)
    assert (window.num_seen, window.num_unreadable, len(window.observed)) == (100, 1, 99)
    assert not find_drift(reference, window.observed).rings


def test_a_window_of_unreadable_images_says_so(place: Workplace) -> None:
    broken = [place.root / "broken" / f"{number}.png" for number in range(30)]
    broken[0].parent.mkdir()
    for file in broken:
        file.touch()
    ran = place.run("predict", "model=./bundle", "images=broken", "monitor=kept", "accelerator=cpu")
    assert ran.code == 0, ran.output
    ran = place.run("drift", "model=./bundle", "monitor=kept")
    assert ran.code == 1
    assert "30 of 30 images could not be read or answered, and are left out." in ran.output
    assert "The window has 0 images to compare" in ran.output
