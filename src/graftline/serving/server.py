"""Run a service over HTTP until it is told to stop, and look after names that move meanwhile."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from graftline.errors import UserError, first_line
from graftline.execution import Execution
from graftline.serving.app import Service
from graftline.serving.limits import Limits
from graftline.serving.measures import Measures
from graftline.serving.origin import ModelSource
from graftline.serving.pixels import Pixels
from graftline.serving.slot import MakeWatch, Slot

logger = logging.getLogger(__name__)

_KEEP_SECONDS = 75  # a connection stays open between requests, longer than a proxy keeps its own: nginx 60 s
_LAST_SECONDS = 30  # for answers that are being computed when the server is told to stop


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose header does not come, or whose answers nobody reads.

    Likewise one whose request was answered early, as with a refusal, and whose body does not come to its end.
    """

    header_seconds: float
    _deadline: float | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first header."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take data, and go on waiting if no header is whole, or only the rest of an answered request is to come."""
        super().data_received(data)
        is_answered = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if (self.conn.their_state is h11.IDLE or is_answered) and not self.transport.is_closing():
            self._wait()
        else:
            self._deadline = None

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.time() + self.header_seconds
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_at(self._deadline, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        """Wait for the client to read what it was answered."""
        super().pause_writing()
        self._expect_reading()

    def on_response_complete(self) -> None:
        """Go on, and wait for the client to read it."""
        super().on_response_complete()
        self._expect_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and wait for the client to read it."""
        super().send_400_response(msg)
        self._expect_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        if self._unread is not None:
            self._unread.cancel()

    def _expect_reading(self) -> None:
        """Break the connection unless some of what is unsent by now is sent within the time of a header."""
        if self._unread is not None:
            self._unread.cancel()
        if unsent := self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self.header_seconds, self._check_reading, unsent)

    def _check_reading(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:
            self._expect_reading()
        else:
            self.transport.abort()


class _Server(uvicorn.Server):
    """Ends with its answers when it is told to stop, and does not pass the signal on."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()


def serve(
    sources: Sequence[ModelSource],
    *,
    host: str,
    port: int,
    limits: Limits,
    execution: Execution,
    poll_seconds: float,
    on_start: Callable[[str, Mapping[str, Slot]], None],
    watch: MakeWatch | None = None,
    password: str | None = None,
    allowed_hosts: Sequence[str] = (),
) -> Measures:
    """Load models and answer over HTTP until SIGINT or SIGTERM.

    Args:
        sources: what is served; the first one is meant where an address names none.
        host: address to listen on.
        port: 0 takes a free one.
        limits: what is taken in.
        execution: where the networks run.
        poll_seconds: between two looks at names that may have moved.
        on_start: is called with the address once it answers.
        watch: makes what is shown each answer of a model; None: nothing is.
        password: that requests must have; None: nobody is asked for one.
        allowed_hosts: names by which it may be called, beside those of this machine; with a password, and none: all.

    Returns:
        What was counted.

    Raises:
        UserError: a model is missing or does not give here what it gave where it was saved, or the port is taken.
    """
    listening = _listen(host, port)
    service = partial(Service, password=password, allowed_hosts=allowed_hosts)
    with listening:
        return asyncio.run(_serve(sources, listening, limits, execution, poll_seconds, on_start, watch, service))


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else first_line(error)
        raise UserError(
            f"{host}:{port} cannot be listened on ({reason}): choose another Serve.port, 0 for any free one."
        ) from error
    # Connections inherit it. asyncio sets it on sockets that it made itself only, and without it the second part of an
    # answer waits for the client to confirm the first, 40 ms later.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


async def _serve(
    sources: Sequence[ModelSource],
    listening: socket.socket,
    limits: Limits,
    execution: Execution,
    poll_seconds: float,
    on_start: Callable[[str, Mapping[str, Slot]], None],
    watch: MakeWatch | None,
    service: Callable[..., Service],
) -> Measures:
    measures, large = Measures(), Pixels()
    slots = {source.name: Slot(source, execution, limits, measures, large, watch) for source in sources}
    try:
        for slot in slots.values():
            await slot.start()
        config = uvicorn.Config(
            service(slots, limits, measures).app(),
            http=type("Protocol", (PatientProtocol,), {"header_seconds": limits.request_seconds}),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_SECONDS,
            timeout_graceful_shutdown=_LAST_SECONDS,
        )
        host, port = listening.getsockname()[:2]
        on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}", slots)
        watching = asyncio.create_task(_watch(list(slots.values()), poll_seconds))
        await _Server(config).serve(sockets=[listening])
        watching.cancel()
    finally:
        for slot in slots.values():
            await slot.close()
    return measures


async def _watch(slots: Sequence[Slot], poll_seconds: float) -> None:
    moving = [slot for slot in slots if slot.source.moves]
    while moving:
        await asyncio.sleep(poll_seconds)
        for slot in moving:
            await slot.refresh()
