"""What verify makes of the answers of any server."""

import json
import urllib.request
from pathlib import Path

import pytest
from http_server import HttpServer
from one_answer import answering

from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.serving.check import check_server, describe_server


def test_what_does_not_speak_http_does_not_answer() -> None:
    with answering(b"SSH-2.0-OpenSSH_9.2\r\n") as url, pytest.raises(UserError, match=r"does not answer \(SSH-2\.0"):
        describe_server(url)


def json_answer(status: str, content: object) -> bytes:
    body = json.dumps(content).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_verify_says_what_a_server_says(bundle: Path) -> None:
    busy = json_answer("503 Service Unavailable", {"message": "The server has as much to do as it takes."})
    with answering(busy) as url, pytest.raises(UserError, match=r"images \(HTTP 503: The server has as much to do as"):
        check_server(url, {}, bundle)
    for uri in ("bundle", "/server/models/pets"):  # a folder of the same name may be another one here; a container's
        with answering(json_answer("200 OK", {"uri": uri})) as url, pytest.raises(UserError, match="does not tell"):
            compose("verify", [url.partition("/hook")[0]]).run()
    named = json_answer("403 Forbidden", {"message": "This server has another name."})
    with answering(named) as url, pytest.raises(UserError, match=r"refuses to answer \(This server has another name\)"):
        describe_server(url)


def test_verify_of_a_server_that_takes_little(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(bundle.parent, "model=bundle", "limits.images=1") as server:
        monkeypatch.chdir(tmp_path)
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://192.0.2.7:9")  # it is not asked for this machine
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr(urllib.request, "_opener", None)
        assert compose("verify", [server.url]).run().facts["bundle"] == str(bundle)
