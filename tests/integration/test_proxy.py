"""docker/nginx.conf, run by the machine's nginx, before the tracking server and a served model: TLS, and logins."""

import base64
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import NamedTuple

import pytest
from http_server import photo
from tracking_server import DOCKER, SERVED_PASSWORD, SERVICES, TrackingServer, free_port, health_check, running

from graftline.pipeline.health.server import check_tracking
from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: on Debian, apt-get install nginx"),
    pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed: on Debian, apt-get install wget"),
]


class Answer(NamedTuple):
    status: int
    headers: Message
    content: bytes


class Stay(urllib.request.HTTPRedirectHandler):
    """Does not go where it is sent."""

    def redirect_request(self, *_: object) -> None:
        return None


@dataclass(frozen=True)
class Proxy:
    """The running proxy: its certificates' folder, and by a port of the file the port here."""

    folder: Path
    ports: dict[int, int]

    def url(self, port: int) -> str:
        return f"http{'s' if port != 8080 else ''}://localhost:{self.ports[port]}"

    def ask(self, port: int, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send a request; no other certificate than the proxy's is taken."""
        context = ssl.create_default_context(cafile=str(self.folder / "fullchain.pem"))
        request = urllib.request.Request(self.url(port) + path, body, headers)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), Stay)
        try:
            with opener.open(request, timeout=60) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.headers, error.read())


def make_certificate(folder: Path) -> None:
    """Write a certificate for localhost, as docs/docker.md does for a try."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "30", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def proxy(tracking_server: TrackingServer, serving: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """nginx with this project's file, whose paths and ports alone are others."""
    found = Proxy(tmp_path_factory.mktemp("nginx"), {port: free_port() for port in (8080, 8443, 8444)})
    make_certificate(found.folder)
    text = (DOCKER / "nginx.conf").read_text(encoding="utf-8")
    for before, after in (
        ("/etc/nginx/certificates", str(found.folder)),
        ("/tmp/nginx", f"{found.folder}/nginx"),
        ("server tracking:5000", f"server 127.0.0.1:{tracking_server.port}"),
        ("server serving:5001", f"server 127.0.0.1:{serving}"),
        ("$host:8443", f"$host:{found.ports[8443]}"),
        *((f"listen {port}", f"listen 127.0.0.1:{here}") for port, here in found.ports.items()),
    ):
        assert before in text
        text = text.replace(before, after)
    (found.folder / "nginx.conf").write_text(text, encoding="utf-8")
    _, *words = SERVICES["proxy"]["command"]
    command = [str(NGINX), *words, "-e", "stderr", "-c", str(found.folder / "nginx.conf")]
    with running(command, found.folder / "log", health_check("proxy", {8444: found.ports[8444]})):
        yield found


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()


def test_the_model_behind_tls(proxy: Proxy) -> None:
    image = {"Content-Type": "image/jpeg"}
    assert proxy.ask(8444, "/").status == 401
    assert proxy.ask(8444, "/predict", photo(0), **image, Authorization=basic("wrong")).status == 401
    answer = proxy.ask(8444, "/predict", photo(0), **image, Authorization=basic(SERVED_PASSWORD))
    assert (answer.status, b"predictions" in answer.content) == (200, True)
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    large = proxy.ask(8444, "/predict", b"x" * 33_600_000, **image, Authorization=basic(SERVED_PASSWORD))
    assert large.status == 413


def test_who_has_no_login_is_told_before_the_body_is_sent(proxy: Proxy) -> None:
    """Of which the proxy, whose disk is memory, keeps nothing."""
    context = ssl.create_default_context(cafile=str(proxy.folder / "fullchain.pem"))
    with (
        socket.create_connection(("localhost", proxy.ports[8444]), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        lines = ("POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", "Content-Length: 1000000")
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + bytes(500_000))
        assert connection.recv(100).startswith(b"HTTP/1.1 401")


def test_nothing_goes_unencrypted(proxy: Proxy) -> None:
    sent_on = proxy.ask(8080, "/predict?a=b", b"photo")
    assert (sent_on.status, sent_on.headers["Location"]) == (308, f"{proxy.url(8443)}/predict?a=b")
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(proxy.url(8444), timeout=30)  # nobody has signed it: this is why one must be given
    with socket.create_connection(("127.0.0.1", proxy.ports[8444])) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert plain.recv(100).startswith(b"HTTP/1.1 400")


def test_a_run_by_way_of_the_proxy(proxy: Proxy, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy.ask(8443, "/api/2.0/mlflow/experiments/search?max_results=1").status == 401
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.folder / "fullchain.pem"))
    tracking = Tracking(uri=proxy.url(8443), system_metrics=False)
    assert [one.state for one in check_tracking(tracking)] == ["ok"] * 3
    with tracking.start(run_name="run", experiment="tls", directory=tmp_path / "run", tags={}) as run:
        run.log_metrics({"loss": 1.0}, 0)
        (tmp_path / "large.bin").write_bytes(b"x" * 5_000_000)
        run.log_artifact(tmp_path / "large.bin")
    assert run._outbox.journal.num_unsent == 0
    client = connect(server)
    assert [metric.value for metric in client.get_metric_history(run.id, "loss")] == [1.0]
    assert [item.file_size for item in client.list_artifacts(run.id) if item.path == "large.bin"] == [5_000_000]
