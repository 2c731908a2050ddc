"""Who is told of a retraining: by a command or at a web address, within a time, and without repeating a secret."""

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from one_answer import answering

from graftline.errors import UserError
from graftline.pipeline.retraining.notify import Notify


class _Hook(BaseHTTPRequestHandler):
    told: list[dict[str, str]]

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a web server and what it was told."""
    _Hook.told = []
    server = HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", _Hook.told
    server.shutdown()
    server.server_close()


def test_a_web_address_and_a_command_are_told(
    hook: tuple[str, list[dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url, told = hook
    Notify(command="cat > told.json", url=url).tell({"outcome": "promoted", "directory": tmp_path})
    expected = {"outcome": "promoted", "directory": str(tmp_path)}
    assert told == [expected]
    assert json.loads((tmp_path / "told.json").read_text()) == expected


def test_who_answers_something_else_costs_a_warning_too(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        Notify(url=url).tell({"outcome": "promoted"})
    assert "! notify.url at 127.0.0.1 was not reached (SSH-2.0-OpenSSH_9" in capsys.readouterr().out


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_who_leads_elsewhere_is_not_told(
    hook: tuple[str, list[dict[str, str]]], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A redirect of a POST is asked for by GET, without the content, and would count as told."""
    there, told = hook
    with answering(f"HTTP/1.0 {code} Moved\r\nLocation: {there}?token=secret\r\n\r\n".encode()) as url:
        Notify(url=url).tell({"outcome": "promoted"})
    out = capsys.readouterr().out
    at = there.removesuffix("/hook")
    assert f"! notify.url at 127.0.0.1 was not reached (it leads to {at}: give the address there)" in out
    assert "Notified" not in out
    assert "secret" not in out
    assert told == []


def test_what_may_hold_a_token_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"HTTP/1.0 204 No Content\r\n\r\n") as url:
        Notify(command="true secret", url=url).tell({"outcome": "promoted"})
    assert capsys.readouterr().out == "Notified: notify.command\nNotified: 127.0.0.1\n"


@pytest.mark.parametrize(
    "url", ["host", "ftp://host/", "http:///hook", "http://host:port/", "http://host/a b", "http://[::1/?token=sesame"]
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"^Notify\.url is no web address: give one .* without blanks\.$"):
        Notify(url=url)


@pytest.mark.parametrize("login", ["me:sesame", "sesame", "me:sesame@8"])
def test_a_login_in_an_address_is_refused_and_not_repeated(login: str) -> None:
    """Which urllib would take for a part of host and port."""
    with pytest.raises(UserError, match=r"^Notify\.url has a login before the host, ") as refused:
        Notify(url=f"https://{login}@host:8080/hook")
    assert "sesame" not in str(refused.value)
    assert Notify(url="https://host/@me/hook?to=me@host").has_listener


@pytest.mark.parametrize(
    ("notify", "warning"),
    [
        (Notify(command="echo no such room >&2; exit 3"), "notify.command has failed (exit code 3: no such room)"),
        (Notify(command="sleep 60", seconds=0.2), "notify.command has failed (no end after 0.2 s)"),
        (Notify(url="http://127.0.0.1:9/"), "notify.url at 127.0.0.1 was not reached"),
    ],
)
def test_who_does_not_answer_costs_a_warning(notify: Notify, warning: str, capsys: pytest.CaptureFixture[str]) -> None:
    notify.tell({"outcome": "promoted"})
    assert f"! {warning}" in capsys.readouterr().out


def test_an_answer_that_does_not_end_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of its bytes comes within the time."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.0 200 OK\r\nSlow: ")
                for _ in range(20):
                    connection.sendall(b"x")
                    time.sleep(0.1)
                connection.sendall(b"\r\n\r\n")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        Notify(url=f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=0.4).tell({"outcome": "promoted"})
        thread.join()
    assert "! notify.url at 127.0.0.1 was not reached (no answer after 0.4 s)" in capsys.readouterr().out


def test_a_command_that_takes_too_long_ends_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("alive")
    reader = os.open("alive", os.O_RDONLY | os.O_NONBLOCK)
    Notify(command="sleep 60 > alive | cat", seconds=0.4).tell({"outcome": "promoted"})
    assert "! notify.command has failed (no end after 0.4 s)" in capsys.readouterr().out
    assert select.select([reader], [], [], 10)[0], "nobody has it open for writing"
    os.close(reader)
