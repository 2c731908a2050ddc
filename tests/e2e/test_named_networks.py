"""Each network of the notes goes the whole way: images, training, a bundle that timm and ONNX Runtime agree with."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from workplace import TINY, Workplace

import graftline.backbones.zoo  # noqa: F401 - timm is to know lenet5 and its kin
from graftline.augment.draw import Draw
from graftline.augment.policy import Evaluate
from graftline.bundle.predictor import Predictor
from graftline.data.decode import decode_rgb

# side of the images, px → networks that take them; plain SGD keeps the checkpoints of the large ones small
NETWORKS = {
    32: ("lenet5", "resnet18", "mobilenetv1_100", "mobilenetv2_100", "efficientnet_b0"),
    67: ("alexnet", "nin", "googlenet"),
}
SGD = ("optim=sgd", "optim.lr=0.001", "optim.momentum=0", "optim.nesterov=false")


@pytest.mark.parametrize("size", NETWORKS)
def test_it_trains_an_epoch_and_reloads_in_timm(workplace: Workplace, colour_folder: Path, size: int) -> None:
    names = NETWORKS[size]
    replaced = ("backbone=", "backbone.image_size", "trainer.max_epochs", "optim.lr")
    tiny = [line for line in TINY if not line.startswith(replaced)]
    own = [f"backbone={','.join(names)}", f"backbone.image_size={size}", "trainer.max_epochs=1", *SGD]
    ran = workplace.run("train", "data=folder", f"data.path={colour_folder}", *tiny, *own, timeout=600)
    assert ran.code == 0, ran.output

    for number, name in enumerate(names):
        bundle = ran.directory / str(number) / "bundle"
        network = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
        assert network.pretrained_cfg["architecture"] == name
        predictor = Predictor.from_directory(bundle)
        image = next(colour_folder.rglob("*.png"))
        batch = torch.from_numpy(Evaluate(predictor.preprocessing)(decode_rgb(image), Draw(0, 0)))[None]
        assert batch.shape[2:] == (size, size)
        with torch.inference_mode():
            expected = network(batch).softmax(dim=1).numpy()
        np.testing.assert_allclose(predictor.predict([image]), expected, rtol=0, atol=1e-4)
