"""Networks with a new head: what is loaded, what is refused, and what they want done to images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from graftline.backbones.backbone import Backbone, Graft
from graftline.backbones.loading import create
from graftline.backbones.scaling import ScaledBackbone
from graftline.backbones.sizes import size_for_images
from graftline.errors import UserError

NAME = "test_resnet"


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    """A network of 10 classes whose weights, BatchNorm statistics included, are its own."""
    torch.manual_seed(1)
    network: nn.Module = timm.create_model(NAME, num_classes=10)
    with torch.no_grad():
        for number, tensor in enumerate(network.state_dict().values()):
            if tensor.dtype.is_floating_point:
                tensor.add_(0.01 * (number % 7))
    return network.eval()


def is_head(key: str) -> bool:
    return key.startswith("fc.")


def assert_trunk_is_that_of(network: nn.Module, donor: nn.Module) -> None:
    state, expected = network.state_dict(), donor.state_dict()
    assert state.keys() == expected.keys()
    for key, tensor in expected.items():
        if not is_head(key):
            assert torch.equal(state[key], tensor), key


def logits(graft: Graft, images: Tensor) -> Tensor:
    """Return (B, K)."""
    with torch.no_grad():
        result: Tensor = graft.network.eval()(images)
    return result


def test_a_head_of_another_size_is_replaced_and_the_trunk_kept() -> None:
    whole, graft = Backbone("tf_efficientnet_lite0").build(1000), Backbone("tf_efficientnet_lite0").build(3)
    expected, state = whole.network.state_dict(), graft.network.state_dict()
    assert state.keys() == expected.keys()
    different = {key for key in state if not torch.equal(state[key], expected[key])}
    assert different == {"classifier.weight", "classifier.bias"}
    assert state["classifier.weight"].shape == (3, 1280)
    assert graft.network.training
    assert all(parameter.requires_grad for parameter in graft.network.parameters())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "model_ema", "module"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_checkpoints_are_unwrapped(donor: nn.Module, tmp_path: Path, wrap: str, suffix: str) -> None:
    state = donor.state_dict()
    noise = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    content: dict[str, Any] = {
        "plain": dict(state),
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "model_ema": {"model_ema": state, "model": noise},  # the averaged weights are the better ones
        "module": {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
    }[wrap]
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    graft = Backbone(NAME, file=str(path)).build(4)
    assert_trunk_is_that_of(graft.network, donor)
    assert (graft.weights.source, graft.weights.location) == ("file", str(path))


def test_a_head_of_the_same_size_in_a_file_is_kept(donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(donor.state_dict(), path)
    graft = Backbone(NAME, weights="file", file=str(path)).build(10)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(logits(graft, images), donor(images))


@pytest.mark.parametrize(
    ("class_names", "head"),
    [
        (("cat", "dog", "owl"), "with their own head, which is for the same classes"),
        (("ant", "bee", "fly"), "with a new head, as theirs is for other classes"),
        (("dog", "cat", "owl"), "with a new head, as theirs is for other classes"),
        (("cat", "dog"), "with a new head, as theirs is for other classes"),
    ],
)
def test_the_head_of_a_bundle_is_kept_for_the_very_same_classes(
    class_names: tuple[str, ...], head: str, tmp_path: Path
) -> None:
    network = timm.create_model(NAME, num_classes=3)
    save_for_hf(network, str(tmp_path), model_config={"label_names": ["cat", "dog", "owl"]}, safe_serialization=True)
    graft = Backbone(NAME, file=str(tmp_path / "model.safetensors")).build(class_names)
    assert_trunk_is_that_of(graft.network, network)
    assert graft.network.num_classes == len(class_names)
    assert torch.equal(graft.network.get_classifier().weight, network.get_classifier().weight) == ("own" in head)  # type: ignore[operator]
    assert graft.weights.describe().endswith(f"({tmp_path / 'model.safetensors'}), {head}")


def test_a_head_of_the_right_size_for_who_knows_which_classes_is_replaced(donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(donor.state_dict(), path)
    graft = Backbone(NAME, file=str(path)).build([f"class {number}" for number in range(10)])
    assert_trunk_is_that_of(graft.network, donor)
    assert not torch.equal(graft.network.get_classifier().weight, donor.get_classifier().weight)  # type: ignore[operator]
    assert graft.weights.describe().endswith("with a new head")


def test_a_file_without_a_head_will_do(donor: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "trunk.safetensors"
    save_file({key: tensor for key, tensor in donor.state_dict().items() if not is_head(key)}, path)
    graft = Backbone(NAME, file=str(path)).build(4)
    assert_trunk_is_that_of(graft.network, donor)
    assert logits(graft, torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    path = tmp_path / "efficientnet.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    with pytest.raises(UserError) as error:
        Backbone(NAME, file=str(path)).build(4)
    message, state = str(error.value), load_file(path)
    target = timm.create_model(NAME).state_dict()
    missing = [key for key in target if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in target]
    assert f"efficientnet.safetensors does not fit the backbone '{NAME}'" in message
    assert f"{len(missing)} tensors are missing ({', '.join(missing[:3])}, …)" in message
    assert f"{len(unexpected)} are unexpected ({', '.join(unexpected[:3])}, …)" in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_a_trunk_that_is_not_complete_is_refused(donor: nn.Module, tmp_path: Path, change: str) -> None:
    state = dict(donor.state_dict())
    if change == "missing":
        del state["layer1.0.conv1.weight"], state["layer1.0.bn1.running_mean"]
        expected = r"2 tensors are missing \(layer1\.0\.conv1\.weight, layer1\.0\.bn1\.running_mean\);"
    elif change == "unexpected":
        state["layer9.weight"] = torch.zeros(1)
        expected = r"1 are unexpected \(layer9\.weight\);"
    else:
        state["layer1.0.bn1.bias"] = torch.zeros(5)
        expected = r"1 have another shape \(layer1\.0\.bn1\.bias \(5,\) for \(\d+,\)\);"
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=expected):
        Backbone(NAME, file=str(path)).build(4)


@pytest.mark.parametrize(
    ("backbone", "made_with", "changes", "found", "way_out"),
    [
        (Backbone("alexnet"), {}, {"options": {"groups": 2}}, r"3 have another shape \(conv2.*\)", "groups=2"),
        (Backbone("lenet5"), {}, {"image_size": 64}, r"1 have another shape \(fc1.*\)", "image_size=64"),
        (ScaledBackbone("efficientnet"), {}, {"phi": 1.0}, r"128 tensors are missing .*\)", "phi=1.0"),
        (Backbone("alexnet"), {"groups": 2}, {"options": {"groups": 1}}, r"3 have another shape \(.*\)", None),
    ],
)
def test_weights_that_an_option_keeps_from_fitting(
    tmp_path: Path, backbone: Backbone, made_with: dict[str, Any], changes: dict[str, Any], found: str, way_out: str
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(backbone.name, **made_with).state_dict(), path)
    expected = f"they fit without {way_out}: leave that out" if way_out else r"with its options \(now groups=1\)"
    with pytest.raises(UserError, match=rf"does not fit the backbone '{backbone.name}': {found}; .*{expected}\.$"):
        replace(backbone, file=str(path), **changes).build(4)


def test_packaged_weights_that_an_option_keeps_from_fitting() -> None:
    with pytest.raises(UserError, match=r"1 have another shape \(conv_stem.*\); they fit without stem_kernel_size=5:"):
        Backbone("tf_efficientnet_lite0", options={"stem_kernel_size": 5}).build(4)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_pickled_objects_are_never_loaded(donor: nn.Module, tmp_path: Path) -> None:
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    torch.save({"state_dict": donor.state_dict(), "extra": Evil(made)}, path)
    with pytest.raises(UserError, match=r"holds pickled objects, which we do not load: .*\.safetensors"):
        Backbone(NAME, file=str(path)).build(4)
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()  # it would have


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("text.pth", b"<html>Not found</html>", "no weights file"),
        ("empty.pth", b"", "cannot be read as weights"),
        ("text.safetensors", b"<html>Not found</html>", "cannot be read as weights"),
        ("numbers.pth", None, "holds no state_dict"),
    ],
)
def test_what_is_no_weights_file_is_refused(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    path = tmp_path / file
    if content is None:
        torch.save({"accuracy": 0.9}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Backbone(NAME, file=str(path)).build(4)
    assert "\n" not in str(error.value)


def test_no_weights_is_a_random_network() -> None:
    graft = Backbone(NAME, weights="none").build(5)
    assert not graft.weights.pretrained
    assert (graft.weights.location, graft.weights.digest) == (None, None)
    assert logits(graft, torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite2", "densenet121", "test_vit", "test_resnet.r160_in1k"])
def test_preprocessing_is_that_of_timm(name: str) -> None:
    graft = Backbone(name, weights="none").build(2)
    expected = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    preprocessing = graft.preprocessing
    assert (preprocessing.channels, *preprocessing.image_size) == expected.pop("input_size")
    assert {key: getattr(preprocessing, key) for key in expected} == expected


def test_an_image_size_resamples_the_positions_of_a_transformer(tmp_path: Path) -> None:
    torch.manual_seed(2)
    source = timm.create_model("test_vit")  # 160 px: 10 x 10 patches
    path = tmp_path / "vit.safetensors"
    save_file(source.state_dict(), path)
    graft = Backbone("test_vit", file=str(path), image_size=96).build(2)
    assert graft.preprocessing.image_size == (96, 96)
    assert graft.network.get_parameter("pos_embed").shape[1] == 6 * 6 + 1
    assert torch.equal(graft.network.get_parameter("blocks.0.attn.qkv.weight"), source.blocks[0].attn.qkv.weight)
    assert logits(graft, torch.randn(2, 3, 96, 96)).shape == (2, 2)


def test_an_image_size_and_crop_pct_of_a_convolutional_network() -> None:
    preprocessing = Backbone("tf_efficientnet_lite0", image_size=128, crop_pct=1.0).build(2).preprocessing
    assert (preprocessing.image_size, preprocessing.crop_pct) == ((128, 128), 1.0)
    assert preprocessing.mean == (0.5, 0.5, 0.5)


def test_small_images_are_seen_at_a_smaller_size_where_none_is_given() -> None:
    backbone = Backbone("tf_efficientnet_lite0", weights="none", image_size="auto")
    assert backbone.preprocessing().image_size == (224, 224), "as long as nobody knows the images"
    assert backbone.for_images(28).build(2).preprocessing.image_size == (size_for_images(28, 224),) * 2
    assert backbone.for_images(300).build(2).preprocessing.image_size == (224, 224)
    for image_size in (None, 192):
        given = Backbone("tf_efficientnet_lite0", weights="none", image_size=image_size)
        assert given.for_images(28) is given


def test_elongated_images_are_seen_whole_where_nothing_else_is_asked_for() -> None:
    backbone = Backbone("tf_efficientnet_lite0", weights="none")
    own = backbone.preprocessing()
    assert backbone.for_images(300, aspect=1.9) == backbone
    seen = backbone.for_images(100, aspect=4.0).build(2).preprocessing
    assert (seen.crop_mode, seen.crop_pct) == ("squash", 1.0)
    strip = np.zeros((100, 400, 3), dtype=np.uint8)
    strip[:, :20] = 255  # a mark at one end
    assert seen.frame(strip).max() == 255
    assert own.frame(strip).max() == 0
    assert replace(backbone, crop_mode="center").for_images(100, aspect=4.0).preprocessing() == own
    assert replace(backbone, crop_mode="border").preprocessing().crop_mode == "border"
    assert replace(backbone, crop_pct=0.9).for_images(100, aspect=4.0).preprocessing().crop_pct == 0.9
    with pytest.raises(UserError, match=r"Backbone\.crop_mode is 'middle': use one of center, squash, border"):
        replace(backbone, crop_mode="middle")  # type: ignore[arg-type]  # what a user may type


@pytest.mark.parametrize("name", ["test_vit", "lenet5", "pvt_v2_b0"])
def test_a_network_of_one_size_keeps_it_for_small_images(name: str) -> None:
    backbone = Backbone(name, weights="none", image_size="auto")
    assert backbone.for_images(28).preprocessing() == Backbone(name, weights="none").preprocessing()


def test_a_scaled_network_keeps_the_size_of_its_phi() -> None:
    backbone = ScaledBackbone("efficientnet", weights="none", image_size="auto", phi=0.5)
    assert backbone.for_images(28) is backbone


def test_drop_rates_reach_the_network() -> None:
    graft = Backbone("test_efficientnet", weights="none", drop_rate=0.3, drop_path_rate=0.2).build(2)
    network = graft.network
    assert graft.drop_rates == {"drop_rate": 0.3, "drop_path_rate": 0.2}
    assert network.drop_rate == 0.3
    assert max(getattr(module, "drop_prob", 0) or 0 for module in network.modules()) > 0
    network = Backbone("repghostnet_050", weights="none").build(2).network  # timm's default for it is 0.2
    assert network.drop_rate == 0


def test_a_drop_rate_that_the_network_does_not_have_is_refused() -> None:
    Backbone("densenet121", weights="none").build(2)
    with pytest.raises(UserError, match="'densenet121' has no drop_path_rate"):
        Backbone("densenet121", weights="none", drop_path_rate=0.1).build(2)
    with pytest.raises(UserError, match=r"Backbone\.drop_rate is 1\.5"):
        Backbone("densenet121", drop_rate=1.5)


def test_a_network_that_words_its_refusal_otherwise_is_built_too() -> None:
    with torch.device("meta"):
        network = create("hrnet_w18_small", 2, {"drop_rate": 0.1, "drop_path_rate": 0.0})
    assert network.get_submodule("head_drop").p == 0.1
    with pytest.raises(UserError, match="has no drop_path_rate"):
        create("hrnet_w18_small", 2, {"drop_path_rate": 0.1})


@pytest.mark.parametrize("size", [0, -3, 99_999_999])
def test_no_size_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"Backbone.image_size is {size} px, but must be above 0"):
        Backbone("test_vit", image_size=size)


def test_an_unknown_name_is_refused_before_anything_else() -> None:
    with pytest.raises(UserError, match="did you mean resnet50"):
        Backbone("resnet5o", file="missing.pth").build(2)


def test_building_is_quiet(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    Backbone("tf_efficientnet_lite0").build(2)
    Backbone("test_vit", weights="none", image_size=96).build(2)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
