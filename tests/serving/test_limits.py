"""What a server allows, and how its connections are made."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn

from graftline.errors import UserError
from graftline.serving.limits import Limits
from graftline.serving.server import PatientProtocol, _listen, _Server


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


def read_answer(size: int, ask: Callable[[socket.socket], int], **headers: str) -> int:
    """Let a client ask a server that answers some bytes, and expects it to read some of them each half second."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        length = (b"content-length", str(size).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": bytes(size)})

    async def run() -> int:
        listening = _listen("127.0.0.1", 0)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of the system's own; connections inherit it
        protocol = type("Protocol", (PatientProtocol,), {"header_seconds": 0.5})
        config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(listening.getsockname())
            lines = ["GET / HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            try:
                return await asyncio.to_thread(ask, client)
            finally:
                server.should_exit = True
                await serving

    return asyncio.run(run())


def read_all(client: socket.socket, seconds: float = 0) -> int:
    """Read all that comes, in pieces with a break before each, and return how many bytes that were."""
    total = 0
    while content := client.recv(20_000):
        total += len(content)
        time.sleep(seconds)
    return total


@pytest.mark.parametrize("size", [50_000, 600_000])  # less and more than uvicorn lets wait before it stops to write
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_who_does_not_read_an_answer_holds_no_connection(size: int, connection: str) -> None:
    def ask(client: socket.socket) -> int:
        time.sleep(1.3)
        return read_all(client)

    assert read_answer(size, ask, Connection=connection) < size


def test_who_reads_it_slowly_gets_it() -> None:
    """For longer than half a second."""

    def ask(client: socket.socket) -> int:
        start, total = time.monotonic(), read_all(client, 0.03)
        assert time.monotonic() > start + 1
        return total

    assert read_answer(300_000, ask, Connection="close") > 300_000


def test_who_does_not_end_an_answered_request_holds_no_connection() -> None:
    """A body of which a byte comes now and then, after the answer that does not wait for it."""

    def ask(client: socket.socket) -> int:
        start = time.monotonic()
        total = len(client.recv(20_000))
        client.settimeout(0.1)
        while time.monotonic() < start + 10:
            try:
                client.sendall(b".")
                if not client.recv(20_000):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert 0.4 < time.monotonic() - start < 5
        return total

    assert read_answer(10, ask, **{"Content-Length": "1000000"}) > 10
