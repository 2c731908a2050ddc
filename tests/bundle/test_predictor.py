"""A bundle on images: the right probabilities, in the right order, from every kind of input."""

import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from bundles import change_description
from PIL import Image

from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor, softmax
from graftline.bundle.save import add_to_card
from graftline.errors import UserError
from graftline.execution import Execution

HEAVY = ("torch", "timm", "mlflow", "pytorch_lightning", "albumentations", "pandas", "cv2", "scipy", "sklearn")


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """11 images of different sizes and colors."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(40, 120, (11, 2))
    return [
        (generator.random((height, width, 3)) * generator.integers(50, 256, 3)).astype(np.uint8)
        for height, width in sizes
    ]


@pytest.fixture
def predictor(bundle: Path) -> Predictor:
    return Predictor.from_directory(bundle, execution=Execution(threads=2))


def test_importing_it_is_light() -> None:
    modules = "graftline.bundle.predictor, graftline.bundle.verify"
    code = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_running_it_is_light(bundle: Path) -> None:
    code = f"""
import sys, numpy
from pathlib import Path
from graftline.bundle.predictor import Predictor
from graftline.bundle.verify import verify_bundle
Predictor.from_directory(sys.argv[1]).predict([numpy.zeros((50, 60, 3), numpy.uint8)])
assert verify_bundle(Path(sys.argv[1])).problem is None
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, bundle], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_knows_what_it_is(predictor: Predictor) -> None:
    assert predictor.class_names == ("ant", "bee/wasp", "cat")
    assert predictor.preprocessing.image_size == (64, 64)
    assert predictor.card == {"dataset_digest": "0123456789abcdef"}


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_probabilities_are_those_of_timm_and_torch(bundle: Path, pictures: list[np.ndarray], engine: str) -> None:
    network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.no_grad():
        images = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        expected = network(images).softmax(1).numpy()
    assert np.ptp(expected, axis=0).max() > 0.02  # the images are told apart
    predictor = Predictor.from_directory(bundle, engine=engine)  # type: ignore[arg-type]
    probabilities = predictor.predict(pictures, batch_size=4)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_files_bytes_and_arrays_are_the_same_images(
    predictor: Predictor, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    expected = predictor.predict(pictures)
    encoded = [encode(picture) for picture in pictures]
    for number, content in enumerate(encoded):
        (tmp_path / f"{number}.png").write_bytes(content)
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for images in (encoded, paths, [str(path) for path in paths]):
        np.testing.assert_array_equal(predictor.predict(images), expected)


def test_gray_arrays_are_as_gray_files(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    gray = pictures[0][:, :, 0]
    np.testing.assert_array_equal(predictor.predict([gray]), predictor.predict([encode(gray)]))


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (3, 2), (64, 4)])
def test_rows_keep_their_order(bundle: Path, pictures: list[np.ndarray], batch_size: int, threads: int) -> None:
    predictor = Predictor.from_directory(bundle, execution=Execution(threads=threads))
    one_by_one = np.concatenate([predictor.predict([picture]) for picture in pictures])
    done: list[int] = []
    together = predictor.predict(iter(pictures), batch_size=batch_size, on_progress=done.append)
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)
    assert sum(done) == len(pictures)
    assert max(done) <= batch_size


def test_few_images_are_in_memory_at_a_time(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    taken = done = most = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken, most
        for number in range(60):
            taken += 1
            most = max(most, taken - done)
            yield pictures[number % len(pictures)]

    def progress(count: int) -> None:
        nonlocal done
        done += count

    assert predictor.predict(images(), batch_size=4, on_progress=progress).shape == (60, 3)
    assert 4 < most <= 3 * 4 + 1  # a batch, and two ahead of it


def test_no_images_are_no_rows(predictor: Predictor) -> None:
    assert predictor.predict([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Path("missing.png"), "missing.png cannot be read .there is no such file"),
        (b"no image", "Image number 2, from 0, cannot be read .it is text"),
        (np.zeros((9, 9, 3)), r"Image number 2, from 0, cannot be read .an array of float64 \(9, 9, 3\)"),
        (np.zeros((3, 9, 9), np.uint8), r"an array of uint8 \(3, 9, 9\) is neither"),
        (np.zeros((0, 9), np.uint8), r"an array of uint8 \(0, 9\) is neither"),
    ],
)
def test_an_unreadable_image_is_named(
    predictor: Predictor, pictures: list[np.ndarray], image: Path | bytes | np.ndarray, name: str
) -> None:
    with pytest.raises(UserError, match=name):
        predictor.predict([*pictures[:2], image, *pictures[2:]], batch_size=2)


def test_unreadable_images_can_be_gone_over(predictor: Predictor, pictures: list[np.ndarray]) -> None:
    images: list[np.ndarray | bytes] = [pictures[0], b"", pictures[1], encode(pictures[2])[:200], b"", b"", pictures[3]]
    done: list[int] = []
    probabilities, reasons = predictor.predict_readable(images, batch_size=2, on_progress=done.append)
    assert sorted(reasons) == [1, 3, 4, 5]
    assert reasons[1] == "the file has no content"
    assert np.isnan(probabilities[[1, 3, 4, 5]]).all()
    np.testing.assert_allclose(probabilities[[0, 2, 6]], predictor.predict([*pictures[:2], pictures[3]]), atol=1e-5)
    assert sum(done) == len(images)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_embeddings_are_what_timms_classifier_is_given(bundle: Path, pictures: list[np.ndarray], engine: str) -> None:
    network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    predictor = Predictor.from_directory(bundle, engine=engine)  # type: ignore[arg-type]  # a parameter of the test
    with torch.no_grad():
        images = torch.from_numpy(np.stack([predictor.preprocessing(picture) for picture in pictures]))
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        weights, bias = network.get_classifier().weight.numpy(), network.get_classifier().bias.numpy()
    logits, embeddings = predictor.logits_and_embeddings(pictures, batch_size=4)
    assert predictor.embedding_size == network.head_hidden_size
    assert logits.dtype == embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=1e-4 * expected.abs().max().item())
    np.testing.assert_allclose(logits, embeddings @ weights.T + bias, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_array_equal(logits, predictor.logits(pictures, batch_size=4))
    np.testing.assert_array_equal(softmax(logits), predictor.predict(pictures, batch_size=4))


def test_the_digest_names_what_is_computed_and_not_what_is_noted(bundle: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    digest = Predictor.from_directory(bundle).digest
    add_to_card(copied, metrics={"accuracy": 0.9})
    assert Predictor.from_directory(copied).digest == digest
    change_description(copied, preprocessing={**read_description(copied)["preprocessing"], "crop_pct": 0.5})
    with pytest.raises(UserError, match=r"bundle\.json is not what was saved"):
        Predictor.from_directory(copied)
    Predictor.from_directory(copied, check=False)


def test_a_bundle_of_format_1_still_predicts(bundle: Path, old_bundle: Path, pictures: list[np.ndarray]) -> None:
    new, old = Predictor.from_directory(bundle), Predictor.from_directory(old_bundle)
    np.testing.assert_array_equal(new.predict(pictures), old.predict(pictures))
    assert old.digest == Predictor.from_directory(old_bundle, engine="torch").digest
    assert len(old.digest) == len(new.digest)
    with pytest.raises(UserError, match="gives no embedding"):
        old.logits_and_embeddings(pictures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("format", "has format 5, but this version of graftline reads up to format 4: update graftline"),
        ("no card", r"is not a bundle: bundle\.json cannot be read \(No such file or directory\)"),
        ("damaged card", r"bundle\.json is damaged"),
        ("no files", r"bundle\.json is damaged \(it has no 'files'\): save the bundle again"),
        ("damaged network", r"model\.onnx is not what was saved: copy or save the bundle again"),
        ("no network", r"model\.onnx is not what was saved"),
    ],
)
def test_what_is_no_bundle_is_refused(bundle: Path, tmp_path: Path, change: str, message: str) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    card, network = copy / "bundle.json", copy / "model.onnx"
    if change == "format":
        change_description(copy, format=5)
    elif change == "no card":
        card.unlink()
    elif change == "damaged card":
        card.write_text(card.read_text()[:100])
    elif change == "no files":
        change_description(copy, files=None)
    elif change == "damaged network":
        network.write_bytes(network.read_bytes()[:5000])
    else:
        network.unlink()
    with pytest.raises(UserError, match=message) as error:
        Predictor.from_directory(copy)
    assert "\n" not in str(error.value)


def test_a_damaged_network_of_format_1_is_refused(old_bundle: Path) -> None:
    network = old_bundle / "model.onnx"
    network.write_bytes(network.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.onnx cannot be loaded"):
        Predictor.from_directory(old_bundle)
