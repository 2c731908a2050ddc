"""The commands of `database` and `prometheus` in docker/compose.yaml, run outside a container."""

import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tracking_server import DOCKER, SERVED_PASSWORD, SERVICES, free_port, health_check, running

PROMETHEUS = shutil.which("prometheus")


def test_the_health_check_of_the_database(postgres: int) -> None:
    assert health_check("database", {}, PGPORT=str(postgres))()
    assert not health_check("database", {}, PGPORT=str(free_port()))()


@pytest.mark.skipif(PROMETHEUS is None, reason="Prometheus is not installed: on Debian, apt-get install prometheus")
@pytest.mark.skipif(shutil.which("wget") is None, reason="wget is not installed: on Debian, apt-get install wget")
def test_prometheus_asks_the_served_model(serving: int, tmp_path: Path) -> None:
    """By docker/prometheus.yaml and its login, of which the addresses, the folder and the time between are others."""
    service, port = SERVICES["prometheus"], free_port()
    text = (DOCKER / "prometheus.yaml").read_text(encoding="utf-8")
    for before, after in (
        ("serving:5001", f"127.0.0.1:{serving}"),
        ("/tmp/", f"{tmp_path}/"),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
    ):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "prometheus.yaml").write_text(text, encoding="utf-8")
    config, store = "/etc/prometheus/prometheus.yaml", "/prometheus"
    assert service["volumes"] == [f"prometheus:{store}", f"./prometheus.yaml:{config}:ro"]
    shell, option, script, program = service["entrypoint"]
    assert ("> /tmp/serving_password;" in script, program) == (True, "/bin/prometheus")
    script = script.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")
    places = {
        f"--config.file={config}": f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={store}": f"--storage.tsdb.path={tmp_path}/store",
    }
    assert places.keys() <= set(service["command"])
    words = [places.get(word, word) for word in service["command"]]
    command = [shell, option, script, str(PROMETHEUS), *words, f"--web.listen-address=127.0.0.1:{port}"]

    def count(query: str) -> list[float]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return [float(one["value"][1]) for one in found]

    is_healthy = health_check("prometheus", {9090: port})
    with running(command, tmp_path / "log", is_healthy, SERVING_PASSWORD=SERVED_PASSWORD):
        deadline = time.monotonic() + 60
        while not (asked := count('up{job="graftline"}')) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert asked == [1.0], "the served model takes the login"
        assert count('graftline_model_info{job="graftline"}') == [1.0]
