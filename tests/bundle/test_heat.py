"""The heat that a bundle gives without torch is Grad-CAM's, and its training images are the nearest ones."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.heat import class_activation_map, read_tensor
from graftline.bundle.layout import EMBEDDING, FEATURES, LOGITS, read_description
from graftline.bundle.neighbors import Neighbors
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import keep_neighbors, save_bundle
from graftline.bundle.verify import verify_bundle
from graftline.errors import UserError
from graftline.evaluation.explanation import grad_cam

CLASSES = ("a", "b", "c")
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)


def save(folder: Path, name: str) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=len(CLASSES)).eval()
    preprocessing = Preprocessing(image_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    directory = save_bundle(
        folder / "bundle", network, timm_name=name, class_names=CLASSES, preprocessing=preprocessing, card={}
    )
    return directory, network


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_it_is_grad_cam(name: str, tmp_path: Path) -> None:
    directory, network = save(tmp_path, name)
    weights = read_tensor(directory / "model.safetensors", read_description(directory)["class_weights"])
    (features,) = Predictor.from_directory(directory).engine(IMAGES, [FEATURES])
    for number, (image, one) in enumerate(zip(IMAGES, features, strict=True)):
        expected = grad_cam(network, torch.from_numpy(image[None]), [number])[0]
        np.testing.assert_allclose(class_activation_map(one, weights[number]), expected, atol=1e-4)


def test_another_head_has_none(tmp_path: Path) -> None:
    """One that normalizes and mixes what was pooled; a class token, see ``test_the_card_says_what_it_is``."""
    directory, _ = save(tmp_path, "test_mambaout")
    assert read_description(directory)["class_weights"] is None
    assert Predictor.from_directory(directory).engine(IMAGES, [LOGITS])[0].shape == (3, 3)


def test_tensors_are_those_of_safetensors(bundle: Path) -> None:
    for name, tensor in load_file(bundle / "model.safetensors").items():
        if tensor.dtype == np.float32:
            np.testing.assert_array_equal(read_tensor(bundle / "model.safetensors", name), tensor)


def test_training_images_are_kept(tmp_path: Path) -> None:
    directory, _ = save(tmp_path, "test_resnet")
    predictor = Predictor.from_directory(directory)
    (embeddings,) = predictor.engine(IMAGES, [EMBEDDING])
    pictures = ["data:image/webp;base64,AAAA", "data:,", "data:image/webp;base64,/+8="]
    keep_neighbors(directory, Neighbors(embeddings.astype(np.float16), np.arange(3, dtype=np.int32), pictures))
    content = read_description(directory)
    kept = Neighbors.load(directory / "neighbors.npz", content["neighbors"])
    assert kept is not None
    assert list(kept.pictures) == pictures
    np.testing.assert_array_equal(kept.embeddings, embeddings.astype(np.float16))
    assert content["digest"] == predictor.digest, "they are no part of what it computes"
    assert verify_bundle(directory).problem is None
    (directory / "neighbors.npz").write_bytes(b"PK")
    assert verify_bundle(directory).damaged == ("neighbors.npz",)
    with pytest.raises(UserError, match="cannot be read"):
        Neighbors.load(directory / "neighbors.npz", content["neighbors"])
