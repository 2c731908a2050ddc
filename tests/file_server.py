"""A server of files that a test can let break, and ask what it was asked for."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar


class Files(SimpleHTTPRequestHandler):
    """Serve files and parts of them, and break as often as was asked for."""

    breaks = 0
    code = 0
    refused: ClassVar[dict[str, int]] = {}  # path → its answer; 0: none, the connection is closed
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        self.asked.append(f"{self.command} {self.path}")
        if self.code:
            return self.send_error(self.code)
        if (answer := self.refused.get(self.path.rstrip("/"))) is not None:
            self.close_connection = True
            return self.send_error(answer) if answer else None
        if not file.is_file():
            return super().do_GET()
        content = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(content) - 1)) if wanted else (0, len(content) - 1)
        part = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Last-Modified", self.date_time_string(file.stat().st_mtime))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET" and type(self).breaks and file.suffix == ".tar":
            type(self).breaks -= 1
            part = part[: len(part) // 2]
            self.close_connection = True
        if self.command == "GET":
            self.wfile.write(part)
        return None

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the files of a folder at the URL that is yielded, without a fault."""
    Files.asked, Files.breaks, Files.code, Files.refused = [], 0, 0, {}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
