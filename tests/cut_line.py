"""The line to an MLflow server, which is cut at a request: between any two questions a server may go away."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self

Loses = Literal["request", "answer"]

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}  # headers of one line, not of the message


@dataclass
class Line:
    """A line to a server on this machine; who calls while it is cut gets no answer.

    Attributes:
        port: of the server.
        uri: address of the near end, while it is open.
        asked: the requests that changed something since it was cut or mended last, as "POST /api/…/runs/log-batch".
        is_cut: whether it has come to the request at which it is cut.
    """

    port: int
    uri: str = ""
    asked: list[str] = field(default_factory=list)
    is_cut: bool = False
    _at: str | None = None
    _left: int = 0
    _loses: Loses = "request"
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cut(self, at: str = "", number: int = 1, loses: Loses = "request") -> None:
        """Let it be cut at one of the requests that change something.

        Args:
            at: a regular expression that is found in the request.
            number: of the request among those, the first being 1.
            loses: the ``request`` itself, or only the ``answer`` to it: the server has done it then.
        """
        with self._lock:
            self._at, self._left, self._loses, self.is_cut, self.asked = at, number, loses, False, []

    def mend(self) -> None:
        """Let all requests pass."""
        with self._lock:
            self._at, self.is_cut, self.asked = None, False, []

    def passes(self, method: str, path: str) -> tuple[bool, bool]:
        """Note a request; returns whether it reaches the server, and whether the answer comes back."""
        with self._lock:
            if self.is_cut:
                return False, False
            request = f"{method} {path.partition('?')[0]}"
            if method in ("GET", "HEAD") or request.endswith("/search"):
                return True, True
            self.asked.append(request)
            if self._at is None or re.search(self._at, request) is None:
                return True, True
            self._left -= 1
            self.is_cut = self._left == 0
            return not self.is_cut or self._loses == "answer", not self.is_cut

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Let it stand during the block."""
        line = self

        class Handler(_Handler):
            pass

        Handler.line = line
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    line: Line

    def _relay(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reaches, returns = self.line.passes(self.command, self.path)
        if reaches:
            status, headers, answer = self._ask(content)
        if not returns:
            self.close_connection = True
            return
        with suppress(ConnectionError):  # who has asked may not wait for the answer any more
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _relay  # noqa: N815 - http.server's names

    def _ask(self, content: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = HTTPConnection("127.0.0.1", self.line.port, timeout=300)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
            server.request(self.command, self.path, content, headers)
            answer = server.getresponse()
            told = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            return answer.status, told, answer.read()
        finally:
            with suppress(OSError):
                server.close()

    def log_message(self, *_arguments: object) -> None:
        pass
