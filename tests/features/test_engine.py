"""The trunk's engine: it gives what torch gives, or says why it is torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features import engine as engine_module
from graftline.features.cut import Cut, cut
from graftline.features.engine import HowOnGpu, gpu_engine, make_engine
from graftline.files import sha256_file

SIZE = (64, 64)
CPU = Execution("cpu", threads=2)


def parts(name: str = "test_efficientnet", seed: int = 0, size: int = 64) -> Cut:
    torch.manual_seed(seed)
    network: Any = timm.create_model(name, num_classes=3)
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    trainable = {key for key, parameter in network.named_parameters() if id(parameter) in head}
    for key, parameter in network.named_parameters():
        parameter.requires_grad = key in trainable
    return cut(network, trainable, (size, size))


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def exact(trunk: nn.Module, batch: Tensor) -> np.ndarray:
    with torch.inference_mode():
        result: np.ndarray = trunk(batch).numpy()
    return result


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_it_gives_what_torch_gives_for_any_batch_size(name: str, tmp_path: Path) -> None:
    size = 160 if name == "test_vit" else 64
    trunk = parts(name, size=size).trunk
    batches = [torch.randn(number, 3, size, size) for number in (1, 3, 8)]
    engine = make_engine(trunk, tmp_path / "trunk.onnx", batches[-1], CPU)
    assert engine.runs_on == "ONNX Runtime"
    assert {path.name for path in tmp_path.iterdir()} == {"trunk.onnx", "trunk.sha256", "trunk.lock"}
    for batch in batches:
        np.testing.assert_allclose(engine.run(batch), exact(trunk, batch), atol=1e-4)


def test_the_export_is_made_once(tmp_path: Path) -> None:
    file = tmp_path / "trunk.onnx"
    make_engine(parts().trunk, file, images(2), CPU)
    written = file.stat().st_mtime_ns
    make_engine(parts().trunk, file, images(2), CPU)
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["cut short", "one bit"])
def test_a_damaged_export_is_made_anew(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "trunk.onnx"
    trunk = parts().trunk
    make_engine(trunk, file, images(2), CPU)
    content = bytearray(file.read_bytes())
    weight = trunk.get_parameter("blocks.3.0.se.conv_reduce.weight").detach().numpy().tobytes()
    content[content.index(weight)] ^= 1  # the last bit of a number, which no comparison of outputs shows
    file.write_bytes(content[:1000] if damage == "cut short" else content)
    engine = make_engine(parts().trunk, file, images(2), CPU)
    assert engine.runs_on == "ONNX Runtime"
    assert sha256_file(file) == (tmp_path / "trunk.sha256").read_text()
    assert file.read_bytes() != content


def test_an_export_of_other_weights_is_not_believed(tmp_path: Path) -> None:
    make_engine(parts().trunk, tmp_path / "trunk.onnx", images(2), CPU)
    other = parts(seed=1).trunk
    engine = make_engine(other, tmp_path / "trunk.onnx", images(2), CPU)
    assert "differs" in engine.runs_on
    np.testing.assert_allclose(engine.run(images(2)), exact(other, images(2)), atol=1e-5)


def test_what_the_older_exporter_gets_wrong_the_newer_one_writes(tmp_path: Path) -> None:
    class Misread(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3)) * (2 if torch._C._get_tracing_state() else 1)

    engine = make_engine(Misread(), tmp_path / "trunk.onnx", images(5), CPU)
    assert engine.runs_on == "ONNX Runtime"
    np.testing.assert_allclose(engine.run(images(5)), exact(Misread(), images(5)), atol=1e-5)


def test_what_cannot_be_exported_runs_on_torch(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            result: Tensor = torch.special.bessel_j0(images).flatten(1)  # ONNX has no such thing
            return result

    engine = make_engine(Odd(), tmp_path / "trunk.onnx", images(2), CPU)
    assert "no sound ONNX export" in engine.runs_on
    assert [path.name for path in tmp_path.iterdir()] == ["trunk.lock"]
    np.testing.assert_array_equal(engine.run(images(3)), exact(Odd(), images(3)))


def test_the_cpu_is_the_cpu_whatever_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU too, and with as many threads as are asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = make_engine(parts().trunk, tmp_path / "trunk.onnx", images(2), Execution("cpu", threads=3))
    assert (engine.runs_on, engine.callers) == ("ONNX Runtime", 3)


class Compiler:
    """Stands for torch.compile, which takes a minute, and notes the sizes of batches that it would compile for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, trunk: nn.Module, **_: object) -> Callable[[Tensor], Tensor]:
        def run(batch: Tensor) -> Tensor:
            self.sizes.append(len(batch))
            activations: Tensor = trunk(batch)
            return activations

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(torch, "compile", made)
    monkeypatch.setattr(engine_module, "GPU_BATCH", 8)
    return made


def test_a_gpu_compiles_for_one_size_of_batches(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body runs on the CPU here."""
    monkeypatch.setattr(engine_module, "MAX_RELATIVE_DIFFERENCE", 0.05)
    trunk = parts().trunk.eval()
    made = gpu_engine(trunk, images(4), CPU)
    assert (made.runs_on, made.how) == ("torch on the GPU, compiled", "compiled")
    for count in (1, 5, 8):
        expected = exact(trunk, images(count))
        np.testing.assert_allclose(made.run(images(count)), expected, atol=0.05 * np.abs(expected).max())
    assert set(compiler.sizes) == {8}


def test_a_gpu_compiles_nothing_that_float16_cannot_hold(compiler: Compiler) -> None:
    class Large(nn.Module):
        exact_convolutions: ClassVar[list[bool]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.exact_convolutions.append(not torch.backends.cudnn.allow_tf32)
            return images.flatten(1)[:, :8] @ torch.full((8, 8), 1e5)

    before = torch.backends.cudnn.allow_tf32
    made = gpu_engine(Large(), images(4), CPU)
    assert made.runs_on == "torch on the GPU, in float32"
    assert compiler.sizes == []
    np.testing.assert_allclose(made.run(images(3)), exact(Large(), images(3)), rtol=1e-5)
    assert all(Large.exact_convolutions[:-1])
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(UserError, match="in float32, but cannot run it in float16, as another one does: use"):
        gpu_engine(Large(), images(4), CPU, "in float16")


@pytest.mark.parametrize("how", ["in float32", "in float16", "compiled"])
def test_a_gpu_does_as_another_one(how: HowOnGpu, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_RELATIVE_DIFFERENCE", 0.05)
    trunk = parts().trunk.eval()
    made = gpu_engine(trunk, images(4), CPU, how)
    assert made.how == how
    assert (len(compiler.sizes) > 0) == (how == "compiled")
    difference = np.abs(made.run(images(4)) - exact(trunk, images(4))).max()
    assert (difference < 1e-6) == (how == "in float32")


def test_a_gpu_says_why_it_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("No working C++ compiler found.")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    monkeypatch.setattr(engine_module, "MAX_RELATIVE_DIFFERENCE", 0.05)
    with pytest.raises(UserError, match=r"one does \(No working C\+\+ compiler found\): use GPUs of one kind"):
        gpu_engine(parts().trunk.eval(), images(4), CPU, "compiled")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path) -> None:
    trunk = parts().trunk
    engine = make_engine(trunk, tmp_path / "trunk.onnx", images(8), Execution("cuda:0"))
    assert "torch on the GPU" in engine.runs_on
    assert next(trunk.parameters()).device.type == "cpu"
    expected = exact(trunk, images(8))
    np.testing.assert_allclose(engine.run(images(8)), expected, atol=2e-3 * np.abs(expected).max())
