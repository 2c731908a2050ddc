"""What a search chooses from: weights that are here, at sizes that suit the images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from graftline.backbones.backbone import Backbone
from graftline.errors import UserError
from graftline.search.candidates import find_backbones, list_candidates
from graftline.search.contestant import PassSeconds


@pytest.fixture
def plain(weights_dir: Path) -> Backbone:
    return Backbone("tf_efficientnet_lite0", weights_dir=str(weights_dir), drop_rate=0.1)


def test_packages_and_the_weights_directory_are_found(plain: Backbone) -> None:
    found = find_backbones(plain)
    names = [backbone.name.partition(".")[0] for backbone in found]
    assert found[0] is plain
    assert {"tf_efficientnet_lite1", "tf_efficientnet_lite2", "test_efficientnet", "test_resnet"} <= {*names}
    assert len({*names}) == len(names)
    assert {backbone.drop_rate for backbone in found} == {0.1}
    for backbone in found:
        assert backbone.check() is not None  # without a download


def test_the_plain_answer_comes_first_then_what_differs_least(plain: Backbone) -> None:
    backbones = [plain, replace(plain, name="tf_efficientnet_lite1")]
    candidates = list_candidates(backbones, plain.name, shorter_side=100)
    assert candidates[0].backbone is plain
    assert [(one.network[-5:], one.side, one.changes) for one in candidates] == [
        ("lite0", 224, 0),
        ("lite0", 112, 1),
        ("lite0", 160, 1),
        ("lite1", 240, 1),
        ("lite1", 128, 2),
        ("lite1", 176, 2),
    ]
    by_name = {one.name: one.macs for one in candidates}
    assert by_name["tf_efficientnet_lite0 112 px"] == pytest.approx(by_name["tf_efficientnet_lite0 224 px"] / 4)


def test_a_network_is_measured_once_and_left_out_where_it_does_not_fit(
    plain: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    measured: list[tuple[int, int]] = []

    def measure(_: nn.Module, image_size: tuple[int, int], channels: int) -> float:
        measured.append(image_size)
        if len(measured) > 1:
            raise torch.OutOfMemoryError
        return 0.1 * channels

    backbones = [replace(plain, name=name, image_size=None) for name in ("test_resnet", "test_efficientnet")]
    candidates = list_candidates(backbones, "test_resnet", shorter_side=40, measure=measure)
    assert measured == [(160, 160), (160, 160)]
    assert candidates[0].seconds == pytest.approx(0.3)
    seconds = PassSeconds(0.0, 1.0)
    for one in candidates:
        assert one.network == "test_resnet"
        assert seconds.of(one) == one.seconds == pytest.approx(0.3 * (one.side / 160) ** 2)
    assert "test_efficientnet does not fit the GPU's memory at 160 px" in caplog.text


def test_a_size_that_is_given_is_the_only_one(plain: Backbone) -> None:
    sized = replace(plain, image_size=96)
    assert [one.name for one in list_candidates([sized], plain.name, 300)] == ["tf_efficientnet_lite0 96 px"]


def test_sizes_that_a_network_does_not_take_are_left_out(plain: Backbone) -> None:
    vit = replace(plain, name="test_vit", weights="none")
    sides = {one.side for one in list_candidates([vit], "test_vit", shorter_side=40)}
    assert 160 in sides
    assert all(side % 16 == 0 for side in sides)


def test_settings_tell_candidates_apart(plain: Backbone) -> None:
    sized = replace(plain, name="test_resnet", image_size=64)
    backbones = [replace(sized, crop_pct=crop) for crop in (0.875, 1.0, 1.0)]
    found = list_candidates(backbones, "test_resnet", 64)
    assert [one.name for one in found] == ["test_resnet 64 px, crop_pct=0.875", "test_resnet 64 px, crop_pct=1.0"]
    assert len({one.key for one in found}) == 2
    heads = list_candidates([replace(sized, head="last"), replace(sized, head="stages")], "test_resnet", 64)
    assert [one.name for one in heads] == ["test_resnet 64 px, head=last", "test_resnet 64 px, head=stages"]


def test_a_size_that_suits_the_images_is_one_that_the_search_finds(weights_dir: Path) -> None:
    plain = Backbone("test_resnet", weights_dir=str(weights_dir))
    found, auto = (
        list_candidates([one], "test_resnet", shorter_side=40) for one in (plain, replace(plain, image_size="auto"))
    )
    assert auto == found
    assert len(auto) > 1


def test_a_network_that_cannot_be_built_is_left_out(plain: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    good = replace(plain, name="test_resnet", image_size=64)
    bad = replace(plain, name="test_vit", image_size=50)
    assert [one.network for one in list_candidates([good, bad], "test_resnet", 64)] == ["test_resnet"]
    assert "test_vit is left out: " in caplog.text
    with pytest.raises(UserError):
        list_candidates([bad], "test_vit", 64)
