"""A weights hub on this machine, which speaks the hub's protocol to its real client."""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

COMMIT = "1" * 40


class Hub(ThreadingHTTPServer):
    """Serves files of repositories; notes what is asked for."""

    def __init__(self, files: Mapping[str, bytes], prefix: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = files
        self.prefix = prefix
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"

    def downloads(self) -> list[str]:
        """Return the files that were downloaded, in order: REPOSITORY/FILE."""
        return [line.removeprefix("GET ") for line in self.asked if line.startswith("GET ")]


class Answer(BaseHTTPRequestHandler):
    """One answer, with the headers that the hub sends."""

    server: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        content = self.answer()
        if content is not None:
            self.wfile.write(content)

    def answer(self) -> bytes | None:
        """Send status and headers; returns the file's bytes, None if there is none."""
        name = self.path.removeprefix(f"{self.server.prefix}/").replace("/resolve/main/", "/")
        self.server.asked.append(f"{self.command} {name}")
        content = self.server.files.get(name) if self.path.startswith(self.server.prefix) else None
        if content is None:
            repository = name.rpartition("/")[0]
            is_known = any(file.startswith(f"{repository}/") for file in self.server.files)
            headers = {"X-Error-Code": "EntryNotFound" if is_known else "RepoNotFound", "Content-Length": "0"}
        else:
            etag = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "Content-Length": str(len(content))}
        self.send_response(404 if content is None else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        return content

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serve(files: Mapping[str, bytes], prefix: str = "") -> Iterator[Hub]:
    """Serve ``files``, REPOSITORY/FILE → content, while the block runs.

    Args:
        files: what the hub has.
        prefix: a path before it all, as mirrors behind a company's server have one.
    """
    with Hub(files, prefix) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def point_client_at(endpoint: str, patch: pytest.MonkeyPatch) -> None:
    """Do in this process what HF_ENDPOINT does in a new one: the client reads it when it is imported."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
