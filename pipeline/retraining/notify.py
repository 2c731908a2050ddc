"""Tell others what became of a retraining: a command that is given the result as JSON, or a web address."""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from graftline.console import say, warn
from graftline.errors import UserError, first_line


@dataclass(frozen=True)
class Notify:
    """Whom to tell (Hydra target of the node ``notify``).

    Attributes:
        command: of the shell; it gets the JSON on its standard input.
        url: an http or https address; it gets the JSON by POST.
        seconds: that either may take.
    """

    command: str | None = None
    url: str | None = None
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.url is not None and not _is_address(self.url):  # which may hold a token and is not repeated
            raise UserError(
                "Notify.url is no web address: give one that begins with http:// or https://, with a host and without "
                "blanks."
            )
        if self.url is not None and "@" in urlsplit(self.url).netloc:
            raise UserError(
                "Notify.url has a login before the host, which is not sent: give an address without it, or let curl "
                "send it, as Notify.command."
            )
        if not 0 < self.seconds < 1e6:  # also catches NaN
            raise UserError(f"Notify.seconds is {self.seconds}, it must be above 0.")

    @property
    def has_listener(self) -> bool:
        """Whether there is anybody to tell."""
        return self.command is not None or self.url is not None

    def tell(self, result: Mapping[str, Any]) -> None:
        """Tell of a result; whoever does not answer costs a warning."""
        content = json.dumps(result, default=str).encode()
        if self.command is not None:
            try:
                self._run(self.command, content)
                say("Notified: notify.command")  # the line itself may hold a token
            except (OSError, subprocess.SubprocessError) as error:
                warn(f"notify.command has failed ({_reason(error)}): the result is not affected.")
        if self.url is not None:
            host = urlsplit(self.url).hostname
            try:
                self._post(self.url, content)
                say(f"Notified: {host}")
            except (OSError, ValueError, HTTPException) as error:  # urllib's are OSErrors
                warn(f"notify.url at {host} was not reached ({first_line(error)}): the result is not affected.")

    def _run(self, command: str, content: bytes) -> None:
        with subprocess.Popen(
            ["/bin/sh", "-c", command],  # the user's own line, as in a crontab
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # whose processes are ended together
            env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        ) as process:
            try:
                _, told = process.communicate(content, timeout=self.seconds)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        if process.returncode != 0:
            raise subprocess.CalledProcessError(process.returncode, command, stderr=told)

    def _post(self, url: str, content: bytes) -> None:
        """Post in a thread: the time-out of a socket is one of each operation, and none of the look-up of a name."""
        request = urllib.request.Request(url, data=content, headers={"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked above
        ended = list[Exception | None]()

        def send() -> None:
            try:
                with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.seconds):
                    ended.append(None)
            except Exception as error:
                ended.append(error)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not ended:
            raise TimeoutError(f"no answer after {self.seconds:g} s")
        if ended[0] is not None:
            raise ended[0]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: what was sent by POST would be asked for by GET there, without the content."""

    def redirect_request(
        self,
        req: urllib.request.Request,  # noqa: ARG002 - the signature of what is replaced
        fp: IO[bytes],
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: HTTPMessage,  # noqa: ARG002
        newurl: str,
    ) -> None:
        fp.close()
        to = urlsplit(newurl)
        host = to.netloc.rpartition("@")[2]  # no more of it, which may hold a token
        raise OSError(f"it leads to {to.scheme}://{host}: give the address there")


def _is_address(url: str) -> bool:
    """Tell whether something is a web address that can be asked.

    >>> _is_address("https://host:8080/hook?x=1"), _is_address("https:///hook"), _is_address("http://host:port/")
    (True, False, False)
    """
    try:
        parts = urlsplit(url)
        _ = parts.port  # it is read only now
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and re.search(r"[\s\x00-\x1f\x7f]", url) is None


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        told = error.stderr.decode(errors="replace").strip().splitlines()
        return f"exit code {error.returncode}" + (f": {told[-1]}" if told else "")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no end after {error.timeout:g} s"
    return first_line(error)
