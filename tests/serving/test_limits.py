"""What a server allows, and how its connections are made."""

import socket

import pytest

from graftline.errors import UserError
from graftline.serving.limits import Limits
from graftline.serving.server import _listen


def test_limits_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"Limits\.batch is 0, it must be at least 1"):
        Limits(batch=0)
    with pytest.raises(UserError, match=r"Limits\.images is 128, more than Limits\.waiting_images, 5"):
        Limits(waiting_images=5)


def test_no_part_of_an_answer_waits_for_the_client_to_confirm_another() -> None:
    with _listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
