"""The packaged networks see what is in known photographs: weights, their order and the preprocessing are right."""

import pytest
import torch
from skimage import data
from timm.data import ImageNetInfo

from graftline.backbones.backbone import Backbone
from graftline.backbones.weights import PACKAGED

CATS = {"tabby, tabby cat", "tiger cat", "Persian cat", "Siamese cat, Siamese", "Egyptian cat"}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_know_what_they_see(name: str) -> None:
    graft = Backbone(name).build(1000)  # the head of the weights is kept
    assert graft.weights.source == "packaged"
    motorcycle, _, _ = data.stereo_motorcycle()
    images = [graft.preprocessing(image) for image in (data.chelsea(), data.coffee(), motorcycle, data.rocket())]
    with torch.inference_mode():
        logits = graft.network.eval()(torch.stack([torch.from_numpy(image) for image in images]))
    words = ImageNetInfo()
    likeliest = [[words.index_to_description(index) for index in row] for row in logits.topk(5).indices.tolist()]
    cat, coffee, motorcycle_seen, rocket = likeliest
    assert cat[0] in CATS
    assert set(cat[:3]) <= CATS
    assert coffee[0] == "espresso"
    assert motorcycle_seen[:2] == ["moped", "motor scooter, scooter"]  # ImageNet has no motorcycle
    assert {"missile", "projectile, missile"} <= set(rocket)
