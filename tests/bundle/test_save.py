"""What a bundle holds, and that saving disturbs nothing."""

import copy
import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Backbone
from graftline.backbones.onnx import export_onnx
from graftline.bundle.odd_images import make_odd_images
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import ExportError, add_to_card, check_savable, save_bundle
from graftline.data.decoding import PLAIN
from graftline.errors import UserError

CLASS_NAMES = ("ant", "bee/wasp", "cat")
CARD = {"dataset_digest": "0123456789abcdef", "freeze_plan": {"boundary": "layer3"}}


TIMM_ALONE = """
import sys
sys.modules["graftline"] = None  # importing it fails
import json, numpy, timm, torch
directory, images, logits = sys.argv[1:]
network = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
with torch.no_grad():
    numpy.save(logits, network(torch.from_numpy(numpy.load(images))).numpy())
print(json.dumps([timm.data.resolve_model_data_config(network), network.pretrained_cfg["label_names"]]))
"""


class Saved(NamedTuple):
    """A bundle and what it was made of."""

    directory: Path
    network: nn.Module
    preprocessing: Preprocessing
    timm_name: str


def make_network(backbone: Backbone) -> tuple[nn.Module, Preprocessing]:
    """Return a network whose outputs depend visibly on the image: random ones are nearly constant."""
    torch.manual_seed(3)
    graft = backbone.build(len(CLASS_NAMES))
    with torch.no_grad():
        graft.network.get_classifier().weight.mul_(20)  # type: ignore[operator]
    return graft.network.eval(), graft.preprocessing


def save(directory: Path, backbone: Backbone) -> Saved:
    network, preprocessing = make_network(backbone)
    original = copy.deepcopy(network)
    save_bundle(
        directory,
        network,
        timm_name=backbone.name,
        class_names=CLASS_NAMES,
        preprocessing=preprocessing,
        card=CARD,
    )
    return Saved(directory, original, preprocessing, backbone.name)


@pytest.fixture(scope="module", params=["resnet", "vit", "gray"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A bundle: of a convolutional network, of one whose image size is part of it, of one with other arguments."""
    backbone = {
        "resnet": Backbone("test_resnet.r160_in1k", weights="none", image_size=64, crop_pct=0.8),
        "vit": Backbone("test_vit", weights="none", image_size=96),
        "gray": Backbone("test_resnet", weights="none", image_size=64, channels=1, options={"output_stride": 8}),
    }[request.param]
    return save(tmp_path_factory.mktemp("bundles") / request.param, backbone)


def draw(preprocessing: Preprocessing, count: int) -> torch.Tensor:
    """Return (count, C, H, W)."""
    return torch.randn(
        count, preprocessing.channels, *preprocessing.image_size, generator=torch.Generator().manual_seed(count)
    )


def run(network: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = network(images).numpy()
    return logits


def test_a_bundle_is_exactly_these_files(saved: Saved) -> None:
    files = {path.relative_to(saved.directory).as_posix() for path in saved.directory.rglob("*") if path.is_file()}
    images = {file for file in files if file.startswith("golden/images/")}
    assert files - images == {
        "bundle.json",
        "config.json",
        "golden/golden.json",
        "golden/values.npz",
        "model.onnx",
        "model.safetensors",
    }
    assert images == {f"golden/images/{name}" for name in make_odd_images()}
    assert [path.name for path in saved.directory.parent.iterdir() if path.name.startswith(".")] == []


def test_the_card_says_what_it_is(saved: Saved) -> None:
    content = json.loads((saved.directory / "bundle.json").read_text(encoding="utf-8"))
    files = content.pop("files")
    assert content.pop("digest") == Predictor.from_directory(saved.directory).digest
    assert content == {
        "format": 4,
        "timm_name": saved.timm_name,
        "class_names": list(CLASS_NAMES),
        "decoding": PLAIN.to_dict(),
        "preprocessing": saved.preprocessing.to_dict(),
        "calibration": None,
        "decision": None,
        "refusal": None,
        "embedding_size": saved.network.head_hidden_size,
        "class_weights": None if saved.timm_name == "test_vit" else "fc.weight",
        "card": CARD,
    }
    assert files["model.onnx"] == hashlib.sha256((saved.directory / "model.onnx").read_bytes()).hexdigest()
    assert len(files) == 5 + len(make_odd_images())


def test_timm_loads_it_without_graftline(saved: Saved, tmp_path: Path) -> None:
    images = draw(saved.preprocessing, 4)
    np.save(tmp_path / "images.npy", images.numpy())
    done = subprocess.run(
        [sys.executable, "-I", "-c", TIMM_ALONE, saved.directory, tmp_path / "images.npy", tmp_path / "logits.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config, label_names = json.loads(done.stdout)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), run(saved.network, images), atol=1e-5)
    assert label_names == list(CLASS_NAMES)
    fields = saved.preprocessing.to_dict()
    assert config == {"input_size": [fields.pop("channels"), *fields.pop("image_size")], **fields}


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_onnx_file_takes_any_batch(saved: Saved, count: int) -> None:
    session = onnxruntime.InferenceSession(saved.directory / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(item.name, item.type) for item in session.get_inputs()] == [("image", "tensor(float)")]
    assert session.get_inputs()[0].shape[1:] == [saved.preprocessing.channels, *saved.preprocessing.image_size]
    outputs = ["logits", "embedding"] if saved.timm_name == "test_vit" else ["logits", "embedding", "features"]
    assert [item.name for item in session.get_outputs()] == outputs
    images = draw(saved.preprocessing, count)
    logits, embedding = session.run(["logits", "embedding"], {"image": images.numpy()})
    np.testing.assert_allclose(logits, run(saved.network, images), atol=1e-4)
    assert embedding.shape == (count, saved.network.head_hidden_size)
    assert np.ptp(logits) > 0.1  # not equal for being constant


def test_the_onnx_file_is_whole_and_says_what_it_is(saved: Saved) -> None:
    model = onnx.load(saved.directory / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["class_names"] == list(CLASS_NAMES)
    assert metadata["preprocessing"] == saved.preprocessing.to_dict()


def test_the_onnx_file_says_nothing_of_the_machine(saved: Saved, tmp_path: Path) -> None:
    content = (saved.directory / "model.onnx").read_bytes()
    assert str(Path(timm.__file__).parents[1]).encode() not in content
    again = save_bundle(
        tmp_path / "again",
        saved.network,
        timm_name=saved.timm_name,
        class_names=CLASS_NAMES,
        preprocessing=saved.preprocessing,
        card={},
    )
    assert Predictor.from_directory(again).digest == Predictor.from_directory(saved.directory).digest


def test_a_network_that_gives_no_embedding_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    monkeypatch.delattr(type(network), "forward_head")
    monkeypatch.setattr(type(network), "forward", forward_at_once)
    directory = save_bundle(
        tmp_path / "bundle",
        network,
        timm_name="test_resnet",
        class_names=CLASS_NAMES,
        preprocessing=preprocessing,
        card={},
    )
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_outputs()] == ["logits"]
    predictor = Predictor.from_directory(directory)
    assert predictor.embedding_size is None
    with pytest.raises(UserError, match="gives no embedding"):
        predictor.logits_and_embeddings([])


def forward_at_once(network: Any, images: torch.Tensor) -> Any:
    return network.fc(network.global_pool(network.forward_features(images)))


def test_saving_leaves_the_network_and_the_random_numbers_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    network.to(memory_format=torch.channels_last).train()
    network.get_submodule("layer1").eval()
    network.get_parameter("conv1.0.weight").requires_grad_(False)
    before = {key: (tensor.clone(), tensor.stride()) for key, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    gradients = [parameter.requires_grad for parameter in network.parameters()]
    random = torch.get_rng_state()
    save_bundle(
        tmp_path / "bundle",
        network,
        timm_name="test_resnet",
        class_names=CLASS_NAMES,
        preprocessing=preprocessing,
        card={},
    )
    after = network.state_dict()
    for key, (tensor, stride) in before.items():
        assert torch.equal(after[key], tensor), key
        assert after[key].stride() == stride, key
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == gradients
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("flaw", ["diverged", "another network"])
def test_a_bundle_that_would_be_wrong_does_not_appear(tmp_path: Path, flaw: str) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "old").touch()
    if flaw == "diverged":
        network.get_parameter("fc.bias").data[1] = torch.nan
        message = "outputs of 'test_resnet' are not finite.*lower the learning rate"
    else:
        network.register_forward_hook(lambda _module, _input, logits: logits + 0.001)  # what timm would not rebuild
        message = r"model\.safetensors of 'test_resnet' computes something else"
    with pytest.raises(UserError, match=message):
        save_bundle(
            directory,
            network,
            timm_name="test_resnet",
            class_names=CLASS_NAMES,
            preprocessing=preprocessing,
            card={},
        )
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "old"]


@pytest.mark.long
def test_an_export_that_computes_something_else_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_badly(network: nn.Module, *arguments: Any, **options: Any) -> None:
        network.get_parameter("network.fc.bias").data[0] += 0.01
        export_onnx(network, *arguments, **options)

    monkeypatch.setattr("graftline.bundle.save.export_onnx", export_badly)
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    message = r"model\.onnx of 'test_resnet' computes something else .*allowed 1e-04"
    with pytest.raises(ExportError, match=f"{message}.*Its weights are kept in .*bundle-without-onnx, "):
        save_bundle(
            tmp_path / "bundle",
            network,
            timm_name="test_resnet",
            class_names=CLASS_NAMES,
            preprocessing=preprocessing,
            card={},
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bundle-without-onnx"]


@pytest.mark.long
def test_a_disk_that_is_full_before_onnx_is_written_is_no_fault_of_the_network(tmp_path: Path) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_520_000, before[1]))  # the weights have 1,508,188 bytes
    try:
        with pytest.raises((OSError, RuntimeError), match="File too large"):  # ours are of another kind, UserError
            save_bundle(
                tmp_path / "bundle",
                network,
                timm_name="test_resnet",
                class_names=[letter * 20_000 for letter in "abc"],  # they are in the ONNX file too
                preprocessing=preprocessing,
                card={},
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_the_weights_of_a_network_that_onnx_cannot_express_are_not_lost(tmp_path: Path) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    # ONNX has no Bessel functions
    network.get_submodule("layer1").register_forward_hook(
        lambda *given: given[2] + 0 * torch.special.bessel_j0(given[2])
    )
    with pytest.raises(UserError, match=r"'test_resnet' cannot be written as ONNX \(.*\): take another backbone\.$"):
        check_savable("test_resnet", network, preprocessing)
    with pytest.raises(ExportError):
        save_bundle(
            tmp_path / "bundle",
            network,
            timm_name="test_resnet",
            class_names=CLASS_NAMES,
            preprocessing=preprocessing,
            card={},
        )
    again = timm.create_model(f"local-dir:{tmp_path / 'bundle-without-onnx'}", pretrained=True)
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_layer_in_two_places_is_in_the_file_twice(tmp_path: Path) -> None:
    network, preprocessing = make_network(Backbone("test_resnet", weights="none", image_size=64))
    block = network.get_submodule("layer1.0")
    block.bn1 = block.bn2
    directory = save_bundle(
        tmp_path / "bundle",
        network,
        timm_name="test_resnet",
        class_names=CLASS_NAMES,
        preprocessing=preprocessing,
        card={},
    )
    state = load_file(directory / "model.safetensors")
    assert torch.equal(state["layer1.0.bn1.weight"], state["layer1.0.bn2.weight"])


def test_entries_can_be_added_to_the_card(saved: Saved) -> None:
    add_to_card(saved.directory, metrics={"accuracy": 0.9})
    assert Predictor.from_directory(saved.directory).card == {**CARD, "metrics": {"accuracy": 0.9}}
    add_to_card(saved.directory, metrics=None)
