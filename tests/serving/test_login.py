"""A server that others can reach asks for its password, and does not start without one."""

import asyncio
import base64
import json
import threading
from collections.abc import MutableMapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from http_server import HttpServer, photo

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.pipeline.cli import compose
from graftline.serving.app import Service
from graftline.serving.check import check_server, describe_server
from graftline.serving.limits import Limits
from graftline.serving.measures import Measures
from graftline.serving.origin import BundleFolder
from graftline.serving.pixels import Pixels
from graftline.serving.slot import Slot

PASSWORD = "not a real secret, 32 characters"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_without_a_password_only_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTLINE_SERVE_PASSWORD", raising=False)
    with pytest.raises(UserError, match=r"serve\.host|host is .*, which others may reach.*GRAFTLINE_SERVE_PASSWORD"):
        compose("serve", ["model=pets", f"host='{host}'"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_alone_needs_none(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTLINE_SERVE_PASSWORD", raising=False)
    assert compose("serve", ["model=pets", f"host='{host}'"]).stage


@pytest.mark.parametrize("password", ["", "short"])
def test_a_password_is_long(password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_SERVE_PASSWORD", password)
    with pytest.raises(UserError, match="it must have 12"):
        compose("serve", ["model=pets", "host=0.0.0.0"])


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_who_may_ask(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_SERVE_PASSWORD", PASSWORD)
    with HttpServer(tmp_path, f"model={bundle}") as server:
        assert server.ask("/ping").status == 200  # for health checks
        assert server.ask("/model", Host="models.example.org", Authorization=basic("", PASSWORD)).status == 200
        for path in ("/", "/docs", "/health", "/metrics", "/model", "/nothing"):
            assert server.ask(path).status == 401, path
        for wrong in (basic("a", "wrong"), basic("", ""), f"Bearer {PASSWORD}", "Basic ?", basic(PASSWORD, "")):
            refused = server.ask("/predict", photo(0), Authorization=wrong)
            assert refused.status == 401, wrong
            assert refused.headers["WWW-Authenticate"].startswith("Basic ")
            assert refused.content["error_code"] == "UNAUTHENTICATED"
        answer = server.ask("/predict", photo(0), Authorization=basic("anyone", PASSWORD))
        assert (answer.status, len(answer.content["predictions"])) == (200, 1)
        assert check_server(server.url, describe_server(server.url), bundle).problem is None
        known = basic("", PASSWORD)
        assert server.ask("/model/", Authorization=known).status == 404, "no redirection, which could lead to http://"
        described = server.ask("/openapi.json", Authorization=known).content
        schemes = described["components"]["securitySchemes"]
        assert {name for one in described["security"] for name in one} == set(schemes)
        assert [one["scheme"] for one in schemes.values()] == ["basic"]
        for path, methods in described["paths"].items():
            (told,) = methods.values()
            assert ("401" in told["responses"]) == (path != "/ping") == (told.get("security") is None), path
        counted = str(server.ask("/metrics", Authorization=known).content)
        assert "/nothing" not in counted, "whoever guesses addresses would fill the memory"
        assert "/model/" not in counted
        monkeypatch.delenv("GRAFTLINE_SERVE_PASSWORD")
        with pytest.raises(UserError, match="wants its password"):
            describe_server(server.url)
        monkeypatch.setenv("GRAFTLINE_SERVE_PASSWORD", "that of another server")
        with pytest.raises(UserError, match=r"does not take the password in GRAFTLINE_SERVE_PASSWORD\.$"):
            describe_server(server.url)
        assert PASSWORD not in server.output
        assert '-u ":$GRAFTLINE_SERVE_PASSWORD"' in server.output


def test_without_a_password_it_answers_to_its_own_names_only(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of others could call it by a name of theirs that leads to 127.0.0.1 (DNS rebinding)."""
    monkeypatch.delenv("GRAFTLINE_SERVE_PASSWORD", raising=False)
    with HttpServer(tmp_path, f"model={bundle}", "allowed_hosts=[Models.example.org]") as server:
        for host in (
            "localhost",
            "LOCALHOST:99",
            "127.0.0.1:5001",
            "127.8.8.8",
            "[::1]:5001",
            "models.example.org:8444",
        ):
            assert server.ask("/model", Host=host).status == 200, host
        for host in ("evil.example", "localhost.evil.example", "evil@localhost:1:2", "[::1", "10.0.0.1", ":80", ""):
            assert server.ask("/ping", Host=host).status == 200, host
            refused = server.ask("/predict", photo(0), Host=host)
            assert refused.status == 403, host
            assert refused.content["error_code"] == "PERMISSION_DENIED"
            assert "ask localhost, or start it with allowed_hosts=[NAME]" in refused.content["message"]
        for path in ("/", "/model", "/metrics"):
            assert server.ask(path, Host="evil.example").status == 403, path
        for number in range(20):
            server.ask(f"/{number}", Host="evil.example")
        assert '"/19"' not in server.ask("/metrics").content


def test_a_list_of_names_holds_with_a_password_too(bundle: Path) -> None:
    async def ask(password: str | None, *allowed_hosts: str) -> tuple[int, str]:
        """Ask by another name, with the right password; returns the status and what is answered."""
        slot = Slot(BundleFolder(bundle, "pets"), Execution(), Limits(), Measures(), Pixels())
        service = Service({"pets": slot}, Limits(), Measures(), password=password, allowed_hosts=allowed_hosts)
        sent = list[MutableMapping[str, Any]]()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/model",
            "query_string": b"",
            "root_path": "",
        }
        scope["headers"] = [(b"host", b"other.example"), (b"authorization", basic("", PASSWORD).encode())]
        await service.app()(scope, receive, send)
        return sent[0]["status"], json.loads(sent[1]["body"])["message"]

    told = "This server has another name: ask localhost, or start it with allowed_hosts=[NAME]"
    assert asyncio.run(ask(PASSWORD, "models.example.org")) == (403, f"{told}.")
    assert asyncio.run(ask(None, "models.example.org")) == (403, f"{told}.")
    assert asyncio.run(ask(None)) == (403, f"{told} or a password.")


def test_a_redirection_does_not_take_the_password_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTLINE_SERVE_PASSWORD", PASSWORD)
    seen = list[tuple[str, str | None]]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(302 if self.path == "/model" else 200)
            self.send_header("Location", f"http://localhost:{server.server_port}/of-others")
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        describe_server(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert seen == [("/model", basic("", PASSWORD)), ("/of-others", None)]
