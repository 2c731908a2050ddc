"""Processes of a launch that do not find each other."""

import socket

import pytest

from graftline.errors import UserError
from graftline.training import ranks
from graftline.training.launch import Launch


@pytest.mark.parametrize(
    ("rank", "told"),
    [(0, "torchrun announced 2 processes, but not all of them came to rank 0"), (1, "Rank 1 on .* could not reach")],
)
def test_who_is_alone_says_so(rank: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(ranks, "SECONDS_TO_MEET", 1.0)
    with pytest.raises(UserError, match=told):
        ranks._connect(Launch("torchrun", rank, 2, 0, 1))
