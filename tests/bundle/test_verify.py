"""Golden images: which are kept, and that a change is found at the step where it happens."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import change_description, redescribe
from onnx import numpy_helper
from PIL import Image

from graftline.bundle.golden import BundleOptions, choose_golden
from graftline.bundle.layout import read_description
from graftline.bundle.odd_images import make_odd_images
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.verify import StepDifference, Verification, find_problem, verify_bundle
from graftline.data.decode import decode
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution

EXACT = (("decode", 0, 0.0), ("resize", 0, 0.0), ("normalize", 0, 0.0), ("network", 0, 0.0))


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def steps(verification: Verification) -> dict[str, StepDifference]:
    return {step.step: step for step in verification.steps}


def test_a_bundle_gives_the_same_where_it_was_written(bundle: Path) -> None:
    verification = verify_bundle(bundle)
    assert verification.num_images == 3 + len(make_odd_images())
    assert tuple((step.step, step.num_differing, step.largest) for step in verification.steps) == EXACT
    assert verification.largest_probability_change == 0
    assert (verification.damaged, verification.unreadable, verification.problem) == ((), {}, None)
    assert verification.here == verification.writer
    assert set(verification.here) == {"pillow", "jpeg", "numpy", "onnxruntime", "processor", "device"}


def test_torch_gives_the_same_but_for_rounding(bundle: Path) -> None:
    verification = verify_bundle(bundle, engine="torch", execution=Execution(threads=1))
    assert steps(verification)["normalize"].num_differing == 0
    with np.load(bundle / "golden" / "values.npz") as values:
        assert 0 < steps(verification)["network"].largest < 1e-5 * np.abs(values["logits"]).max()
    assert verification.problem is None


def test_the_kept_logits_are_those_of_the_predictor(bundle: Path) -> None:
    files = [entry["file"] for entry in json.loads((bundle / "golden" / "golden.json").read_text())["images"]]
    assert files[:3] == ["real_00.png", "real_01.png", "real_02.png"]
    with np.load(bundle / "golden" / "values.npz") as values:
        expected = softmax(values["logits"])
    actual = Predictor.from_directory(bundle).predict(bundle / "golden" / "images" / file for file in files)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.02  # the images are told apart


def test_another_resize_is_found_at_the_resize(changed: Path) -> None:
    preprocessing = read_description(changed)["preprocessing"]
    change_description(changed, preprocessing={**preprocessing, "interpolation": "bilinear"})
    verification = verify_bundle(changed)
    found = steps(verification)
    assert found["decode"].num_differing == 0
    assert found["resize"].num_differing > 30
    assert found["resize"].largest > 5
    assert found["network"].largest > 1e-3
    assert verification.damaged == ("bundle.json",)
    assert verification.problem is not None
    assert verification.problem.startswith("bundle.json of this bundle is not what was saved")


def test_another_mean_is_found_at_the_normalization(changed: Path) -> None:
    preprocessing = read_description(changed)["preprocessing"]
    mean = [value + 0.1 * std for value, std in zip(preprocessing["mean"], preprocessing["std"], strict=True)]
    change_description(changed, preprocessing={**preprocessing, "mean": mean})
    found = steps(verify_bundle(changed))
    assert (found["decode"].num_differing, found["resize"].num_differing) == (0, 0)
    assert found["normalize"].num_differing == 3 + len(make_odd_images())
    assert found["normalize"].largest == pytest.approx(0.1, abs=1e-5)


def test_another_image_size_cannot_run_and_says_so(changed: Path) -> None:
    change_description(changed, preprocessing={**read_description(changed)["preprocessing"], "image_size": [32, 32]})
    verification = verify_bundle(changed)
    assert steps(verification)["decode"].num_differing == 0
    assert steps(verification)["network"].largest == float("inf")
    assert verification.failure is not None
    assert verification.largest_probability_change == float("inf")


def test_other_weights_are_found_at_the_network(changed: Path) -> None:
    file = changed / "model.onnx"
    model = onnx.load(file)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.weight"))
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, file)
    with pytest.raises(UserError, match=r"model\.onnx is not what was saved"):
        Predictor.from_directory(changed)
    redescribe(changed)
    verification = verify_bundle(changed)
    found = steps(verification)
    assert [found[step].num_differing for step in ("decode", "resize", "normalize")] == [0, 0, 0]
    assert found["network"].num_differing == verification.num_images
    with np.load(changed / "golden" / "values.npz") as values:
        assert found["network"].largest == pytest.approx(2 * np.abs(values["logits"]).max(), rel=1e-3)
    assert verification.largest_probability_change > 0.05
    assert verification.damaged == ()
    assert verification.problem is not None
    assert "differs from the step 'network' on" in verification.problem


def test_another_pixel_is_found_at_the_decoding(changed: Path) -> None:
    file = changed / "golden" / "images" / "real_01.png"
    pixels = np.array(Image.open(file))
    pixels += 1
    Image.fromarray(pixels).save(file)
    verification = verify_bundle(changed)
    assert steps(verification)["decode"].num_differing == 1
    assert steps(verification)["network"].num_differing == 1
    assert verification.damaged == ("golden/images/real_01.png",)


def test_a_machine_that_decodes_otherwise_is_named_by_its_versions(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Pillow would that gave colors in another order: no file is changed, the versions are others."""
    predictor = Predictor.from_directory(bundle)
    assert find_problem(predictor, bundle, Execution()) is None
    monkeypatch.setattr(
        "graftline.bundle.golden.decode_rgb", lambda file, _: decode(file.open("rb")).pixels[:, :, ::-1]
    )
    assert find_problem(predictor, bundle, Execution()) is None  # same versions: it is not even looked at
    monkeypatch.setattr("PIL.__version__", "11.0.0")
    problem = find_problem(predictor, bundle, Execution())
    assert problem is not None
    assert "more than 0.001, and differs from the step 'decode' on: pillow 11.0.0 (saved with 1" in problem
    verification = verify_bundle(bundle)
    assert steps(verification)["decode"].largest > 100
    assert problem == verification.problem


def test_a_format_that_cannot_be_read_here_is_named(changed: Path) -> None:
    (changed / "golden" / "images" / "color.webp").write_bytes(b"RIFF")
    change_description(changed, files={**read_description(changed)["files"], "golden/images/color.webp": "?"})
    verification = verify_bundle(changed)
    assert list(verification.unreadable) == ["color.webp"]
    assert steps(verification)["decode"].num_differing == 1
    assert verification.largest_probability_change == 0
    assert verification.problem is not None


def test_a_bundle_of_format_1_has_nothing_to_replay(old_bundle: Path) -> None:
    assert find_problem(Predictor.from_directory(old_bundle), old_bundle, Execution()) is None
    with pytest.raises(UserError, match="has no golden images, it was saved in format 1 or has lost them: train again"):
        verify_bundle(old_bundle)


def test_a_damaged_bundle_that_cannot_be_loaded_is_named_by_its_damage(changed: Path) -> None:
    change_description(changed, preprocessing={**read_description(changed)["preprocessing"], "mean": "no number"})
    with pytest.raises(UserError, match=r"bundle\.json is not what was saved \(.+\): copy or save the bundle again"):
        verify_bundle(changed)


def test_each_damaged_file_is_named_where_the_network_is_one(changed: Path) -> None:
    for name in ("model.onnx", "golden/values.npz"):
        (changed / name).write_bytes((changed / name).read_bytes()[:5000])
    named = r"golden/values\.npz, model\.onnx of this bundle is not what was saved: copy or save the bundle again"
    with pytest.raises(UserError, match=named):
        verify_bundle(changed)


@pytest.mark.parametrize("file", ["golden.json", "values.npz"])
def test_damaged_golden_values_are_a_sentence(changed: Path, file: str) -> None:
    damaged = changed / "golden" / file
    damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UserError, match=r"The golden images in .* are damaged"):
        verify_bundle(changed)


def test_every_mode_and_orientation_is_among_the_made_up_images() -> None:
    images = make_odd_images()
    modes = {name: Image.open(io.BytesIO(content)).mode for name, content in images.items()}
    assert {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "I;16B", "F"} == set(modes.values())
    assert modes["gray_16_bit.png"] == "I;16"
    pixels = {name: decode(io.BytesIO(content)).pixels for name, content in images.items()}
    upright = pixels["color.png"]
    for name in ("color.bmp", "color.ppm", "color.tif", "color.jp2", "color_16_bit.png", "cmyk.tif"):
        np.testing.assert_array_equal(pixels[name], upright, err_msg=name)
    turned = [pixels[f"orientation_{number}.jpg"] for number in range(1, 9)]
    assert len({image.tobytes() for image in turned}) == 8
    np.testing.assert_array_equal(turned[2], turned[0][::-1, ::-1])  # 3: upside down
    np.testing.assert_array_equal(turned[5], np.rot90(turned[0], k=-1))  # 6: a camera held upright
    assert sum(map(len, images.values())) < 300_000


def test_real_images_are_chosen_by_content_and_spread_over_classes(tmp_path: Path) -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 2])
    sha256 = [f"{number:02}" for number in (9, 1, 2, 3, 4, 4, 5, 6, 7, 0, 8)]  # one of them twice
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    paths[9].write_bytes(paths[9].read_bytes() + bytes(2_000_000))  # too large
    paths[10].unlink()  # since the ingest
    samples = Samples([str(path) for path in paths], labels, None, sha256)
    chosen = choose_golden(samples, 4)
    assert [path.name for path in chosen] == ["1.png", "6.png", "2.png", "7.png"]
    order = np.random.default_rng(0).permutation(11)
    shuffled = Samples([samples.paths[i] for i in order], labels[order], None, [sha256[i] for i in order])
    assert choose_golden(shuffled, 4) == chosen
    assert len(choose_golden(samples, 100)) == 8  # neither the copy nor the large one nor the one that has gone
    assert choose_golden(samples, 0) == []


def test_fewer_than_no_golden_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"BundleOptions\.golden is -1, it must be at least 0"):
        BundleOptions(golden=-1)
