"""A network that is compiled for as long as a fit lasts."""

import copy

import pytest
import torch
from torch import nn

from graftline.errors import UserError
from graftline.training.compiling import compiled


class Inner(nn.Module):
    """A layer that torch.compile cannot look into, and need not."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2


@pytest.mark.long
def test_it_is_undone_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    network, images = nn.Sequential(nn.Linear(4, 3), Inner()), torch.randn(2, 4)
    names, expected = list(network.state_dict()), network(images)
    with compiled(network, on=True):
        assert network._compiled_call_impl is not None
        assert torch.allclose(network(images), expected)
        assert list(network.state_dict()) == names
        copy.deepcopy(network)  # as for averaged weights
    assert "CUDA" not in capfd.readouterr().err + caplog.text
    assert network._compiled_call_impl is None
    with compiled(network, on=False):
        assert network._compiled_call_impl is None


def test_what_torch_cannot_compile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    network = nn.Sequential(nn.Linear(5, 3), Inner())
    with (
        pytest.raises(UserError, match=r"torch cannot compile this network here \(.*leave out Recipe\.compile"),
        compiled(network, on=True),
    ):
        network(torch.randn(2, 5))
