"""Heat maps and nearest images: both find what is known to be there, and are those of other libraries."""

from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam, Occlusion
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from graftline.bundle.heat import CELLS, GRAD_CAM, OCCLUSION
from graftline.bundle.neighbors import CHUNK, nearest
from graftline.evaluation import explanation
from graftline.evaluation.explanation import NoMapError, enlarge, find_heat, grad_cam, occlusion

CLASSES = 6  # one of three channels is brighter in one quarter, or darker
SIDE, QUARTER = 32, 16  # px
COUNT = 24  # images that are explained


def make_images(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, 3, SIDE, SIDE) of noise, which class each is, and in which quarter one sees that."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    classes, quarters = (torch.randint(high, (count,), generator=generator) for high in (CLASSES, 4))
    for image, one, quarter in zip(images, classes.tolist(), quarters.tolist(), strict=True):
        top, left = 4 + QUARTER * (quarter // 2), 4 + QUARTER * (quarter % 2)
        image[one // 2, top : top + 8, left : left + 8] += 3 if one % 2 == 0 else -3
    return images, classes, quarters


@cache
def train(kind: str, seed: int = 0) -> nn.Module:
    """Return a tiny network that tells the classes apart."""
    torch.manual_seed(seed)
    if kind == "resnet":
        network: nn.Module = ResNet(
            BasicBlock, (1, 1, 1, 1), CLASSES, output_stride=8, stem_width=8, channels=(8, 16, 16, 32)
        )
    elif kind == "vit":
        network = VisionTransformer(SIDE, 4, num_classes=CLASSES, embed_dim=32, depth=3, num_heads=2)
    else:
        network = SwinTransformer(
            SIDE, 4, num_classes=CLASSES, embed_dim=32, depths=(1, 1), num_heads=(2, 4), window_size=4
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(120):
        images, classes, _ = make_images(32, seed=step)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(images), classes))
        optimizer.step()
    return network.eval()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "seeds", "least"), [("resnet", 1, 0.75), ("vit", 3, 0.4), ("swin", 1, 0.4)])
def test_the_heat_lies_where_the_class_is_seen(kind: str, seeds: int, least: float) -> None:
    """How well a transformer's does depends on its first weights: on the mean of three, it is no chance."""
    images, classes, quarters = make_images(COUNT, seed=10_000)
    shares = []
    for seed in range(seeds):
        network, done = train(kind, seed), list[int]()
        with torch.no_grad():
            before = F.softmax(network(images), dim=1)
        assert (before.argmax(dim=1) == classes).float().mean() > 0.8
        find = partial(find_heat, network, images, classes.tolist(), lambda logits: logits)
        heat = find(done.append)
        assert GRAD_CAM in heat.methods
        assert done == [1] * COUNT
        assert heat.maps.shape == (COUNT, SIDE, SIDE)
        assert heat.maps.min() >= 0
        assert heat.maps.max() <= 1
        found = F.adaptive_avg_pool2d(torch.from_numpy(heat.maps), 2).flatten(1)  # (N, 4), of each quarter
        shares.append(float((found.argmax(dim=1) == quarters).float().mean()))
        if kind != "swin":  # its last map is a single window, in which all places know of each other: its heat is weak
            assert heat.covered.mean() < heat.elsewhere.mean() - 0.1
        told = [method == GRAD_CAM for method in heat.methods]
        assert (heat.covered[told] <= heat.elsewhere[told] + explanation.CONTRADICTION).all()
        np.testing.assert_array_equal(find(done.append).maps, heat.maps)
    assert np.mean(shares) > least  # by chance 0.25


@pytest.mark.long
def test_a_map_that_the_network_contradicts_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    network = train("resnet", 0)
    images, classes, quarters = make_images(COUNT, seed=20_000)
    monkeypatch.setattr(explanation, "grad_cam", lambda *given: 1 - grad_cam(*given))
    heat = find_heat(network, images, classes.tolist(), lambda logits: logits, lambda _: None)
    assert heat.methods.count(OCCLUSION) > 0.8 * COUNT
    found = F.adaptive_avg_pool2d(torch.from_numpy(heat.maps), 2).flatten(1)
    assert (found.argmax(dim=1) == quarters).float().mean() > 0.6


def test_grad_cam_is_that_of_captum() -> None:
    network = train("resnet")
    images, classes, _ = make_images(8, seed=1)
    found = LayerGradCam(network, network.layer4).attribute(images, target=classes, relu_attributions=True)
    lowest, highest = found.amin(dim=(1, 2, 3), keepdim=True), found.amax(dim=(1, 2, 3), keepdim=True)
    expected = ((found - lowest) / (highest - lowest)).detach()
    np.testing.assert_allclose(grad_cam(network, images, classes.tolist()), expected[:, 0], atol=1e-5)
    larger = LayerAttribution.interpolate(expected, (SIDE, SIDE), interpolate_mode="bilinear")
    np.testing.assert_allclose(enlarge(expected[:, 0].numpy(), (SIDE, SIDE)), larger[:, 0], atol=1e-6)


def test_occlusion_is_that_of_captum() -> None:
    network = train("vit")
    images, classes, _ = make_images(4, seed=2)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    other = Occlusion(lambda some: F.log_softmax(network(some), dim=1))
    found = other.attribute(images, (3, 8, 8), strides=(3, 4, 4), baselines=mean, target=classes)
    cells = F.avg_pool2d(found[:, 0], SIDE // CELLS).clamp_min(0)
    lowest, highest = cells.amin(dim=(1, 2), keepdim=True), cells.amax(dim=(1, 2), keepdim=True)
    expected = (cells - lowest) / (highest - lowest)
    np.testing.assert_allclose(occlusion(network, images, classes.tolist()), expected, atol=1e-4)


def test_a_network_without_a_map_is_asked_with_places_covered() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    images, classes, _ = make_images(2, seed=3)
    with pytest.raises(NoMapError):
        grad_cam(plain, images, classes.tolist())
    heat = find_heat(plain, images, classes.tolist(), lambda logits: logits, lambda _: None)
    assert heat.methods == [OCCLUSION] * 2
    expected = enlarge(occlusion(plain, images, classes.tolist()), (SIDE, SIDE))
    np.testing.assert_allclose(heat.maps, expected, atol=1e-5)


class CutOff(nn.Module):
    """A convolution whose map is cut off below 0 before it is averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, CLASSES, 3)

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.convolution(images)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        return features.relu().mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_an_answer_that_depends_on_no_map_changes_nothing_for_the_other_images() -> None:
    torch.manual_seed(0)
    network = CutOff()
    nn.init.constant_(network.convolution.weight, 0.1)
    images = torch.randn(3, 3, SIDE, SIDE)
    images[1] = -5  # below 0 everywhere
    heat = find_heat(network, images, [0, 1, 2], lambda logits: logits, lambda _: None)
    assert heat.methods == [GRAD_CAM, OCCLUSION, GRAD_CAM]
    expected = enlarge(grad_cam(network, images[:1], [0]), (SIDE, SIDE))
    np.testing.assert_array_equal(heat.maps[:1], expected)


def test_the_nearest_of_a_copy_is_the_image_itself() -> None:
    generator = np.random.default_rng(0)
    references = generator.normal(size=(CHUNK + 500, 16)).astype(np.float32)
    references[7] = references[3]
    copies = np.array([3, CHUNK + 1, CHUNK + 499])
    rows, distances = nearest(references, 2 * references[copies], 3)
    assert rows[:, 0].tolist() == copies.tolist()  # of the two alike, the first
    assert rows[0, 1] == 7
    assert distances[:, 0] == pytest.approx(0, abs=1e-3)
    directions = references / np.linalg.norm(references, axis=1, keepdims=True)
    expected = np.linalg.norm(directions[copies][:, None] - directions[None], axis=2)
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], atol=1e-3)
    assert nearest(references[:2], references[:1], 3)[0].tolist() == [[0, 1]]
