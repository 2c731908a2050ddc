"""The stage ``serve`` as a process of its own, and requests to it."""

import base64
import io
import json
import re
import signal
import threading
import time
import urllib.error
import urllib.request
import zlib
from email.message import Message
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image
from workplace import Workplace

CLASS_NAMES = ("cat", "class", "döner & co")  # one is named like a column of the answer


def photo(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((140, 100)).save(file, kind)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A small PNG whose header tells that it is large."""
    content = bytearray(photo(0, "PNG"))
    content[16:24] = side.to_bytes(4) + side.to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Answer(NamedTuple):
    status: int
    headers: Message
    content: Any


class HttpServer:
    """A server that answers at ``url`` during the block."""

    def __init__(self, root: Path, *overrides: str) -> None:
        self._process = Workplace(root).start("serve", "accelerator=cpu", "port=0", *overrides)
        self.url = ""

    def __enter__(self) -> Self:
        deadline = time.monotonic() + 120
        while (found := re.search(r"^(http://\S+)/ +drop a photo here", self.output, re.MULTILINE)) is None:
            assert self._process.code is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        self.url = found[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.code is None:
            self.stop()

    @property
    def output(self) -> str:
        return self._process.output

    def stop(self) -> int:
        """End it as a service manager does, and return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def ask(self, path: str, body: bytes | None = None, kind: str = "image/jpeg", **headers: str) -> Answer:
        """Send a request; its answer's content is taken out of JSON where it is some."""
        typed = {"Content-Type": kind} if body is not None and kind else {}
        request = urllib.request.Request(self.url + path, body, {**typed, **headers})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return _taken(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return _taken(error.code, error.headers, error.read())

    def ask_json(self, path: str, content: object) -> Answer:
        return self.ask(path, json.dumps(content).encode(), "application/json")

    @property
    def memory(self) -> float:
        """Resident megabytes."""
        line = re.search(r"^process_resident_memory_bytes (\d+)", self.ask("/metrics").content, re.MULTILINE)
        assert line is not None
        return int(line[1]) / 1e6


class Asking:
    """A client that asks a server all the time during the block: a photo every fifth of a second.

    Attributes:
        failures: what came in place of an answer.
        versions: of the model that answered, in their order, each once as long as it does.
    """

    def __init__(self, server: HttpServer) -> None:
        self.failures: list[object] = []
        self.versions: list[int] = []
        self.count = 0
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def wait_for(self, version: int) -> None:
        """Wait until a version of the model answers."""
        deadline = time.monotonic() + 120
        while self.versions[-1:] != [version]:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline, (self.versions, self.failures, self._server.output)
            time.sleep(0.05)

    def _work(self) -> None:
        image = photo(0)
        while not self._end.wait(0.2):
            self.count += 1
            try:
                answer = self._server.ask("/predict", image)
            except Exception as error:  # whatever a connection may come to is a request that failed
                self.failures.append(error)
                continue
            if answer.status != 200:
                self.failures.append(answer)
            elif self.versions[-1:] != [answer.content["version"]]:
                self.versions.append(answer.content["version"])


def form(*files: bytes, boundary: str = "b0undary") -> bytes:
    """Return the body of a multipart/form-data request."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{number}.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n".encode()
        + file
        + b"\r\n"
        for number, file in enumerate(files)
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=b0undary"


def _taken(status: int, headers: Message, body: bytes) -> Answer:
    try:
        return Answer(status, headers, json.loads(body))
    except ValueError:
        return Answer(status, headers, body.decode())


class Load:
    """Clients that ask all the time during the block, each for four images at once."""

    def __init__(self, server: HttpServer) -> None:
        self._server, self._stop = server, threading.Event()
        self.images = [photo(seed) for seed in range(4)]
        self.answers: list[tuple[int, object]] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            status, _, content = self._server.ask("/predict", form(*self.images), FORM)
            self.answers.append((status, content))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
