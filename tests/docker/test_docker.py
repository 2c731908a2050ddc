"""No image is built in a test; what they are made of is checked, and each command line in the files runs for real.

Outside of a container a command line has other paths and ports, 127.0.0.1 for the services' names, and sqlite for
PostgreSQL (tests/integration has the real one).
"""

import base64
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import packages_distributions, requires
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from workplace import TINY

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each build stage: its name → [(keyword, arguments)]."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, list[tuple[str, str]]] = {}
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            stages[arguments.split(" AS ")[1]] = instructions = []
        elif keyword:
            instructions.append((keyword, arguments))
    return stages


STAGES = read_stages()


def arguments_of(keyword: str, *stages: str) -> list[str]:
    return [text for stage in stages or STAGES for word, text in STAGES[stage] if word == keyword]


def copied() -> list[tuple[list[str], str]]:
    """Return what is copied from the project into the images: (sources, destination)."""
    copies = [text.split() for text in arguments_of("COPY") if not text.startswith("--from=")]
    return [(words[:-1], words[-1]) for words in copies]


UV = """#!/bin/sh
hashes=$(grep -A1 '^torch==' "$4" | grep -c hash)
echo "${UV_TORCH_BACKEND:-the lock}: $1 $2 $3 $5 $6, torch hashes: $hashes"
"""


def mounted() -> list[str]:
    """Return the project's files that the build looks at."""
    return [source for text in arguments_of("RUN") for source in re.findall(r"type=bind,source=([^,\s]+)", text)]


def enters_the_build(path: str) -> bool:
    """Apply .dockerignore: the last pattern that matches the path, or a folder above it, decides."""
    candidates = [path, *(str(parent) for parent in PurePosixPath(path).parents)][:-1]
    enters = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and any(fnmatch(name, line.removeprefix("!")) for name in candidates):
            enters = line.startswith("!")
    return enters


def test_what_the_build_takes_from_the_project_is_there_and_gets_in() -> None:
    sources = {source for names, _ in copied() for source in names} | set(mounted())
    assert {"src", "pipeline", "conf", "requirements.lock"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert enters_the_build(source), source
    assert enters_the_build("src/graftline/errors.py")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        "cache/x",
        "data/elpv/summary.json",
        "docker/.env",
        "mlartifacts/1/model.onnx",
        "mlflow.db",
        "outputs/train/result.json",
        "src/graftline/__pycache__/errors.pyc",
    ],
)
def test_nothing_else_enters_the_build(path: str) -> None:
    assert not enters_the_build(path)


def test_versions_come_from_the_lock() -> None:
    lock: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(" ")[0].partition("==")
        lock.setdefault(name, set()).add(version)
    commands = [text for text in arguments_of("RUN") if "uv pip install" in text and "--no-deps" not in text]
    commands = [command for command in commands if "pipeline/dagster/requirements.txt" not in command]
    assert len(commands) == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"--extra (\w+)", pipeline_install())
    of_extras = [Requirement(text) for extra in extras for text in project["optional-dependencies"][extra]]
    assert {canonicalize_name(one.name) for one in of_extras} <= lock.keys()
    assert {"audit", "tiff"} <= set(extras), "what reads images and ranks labels is there"
    assert "--all-extras" not in pipeline_install()
    assert all("--constraint" in command and "requirements.lock" in command for command in commands)
    assert {Requirement(name).name for name in server_packages()} <= lock.keys()
    for name, version in re.findall(r"\b([a-z][\w-]*)==([\w.]+)", "\n".join(arguments_of("RUN"))):
        assert version in lock.get(name, {version}), f"{name}=={version} is not what requirements.lock says"


def pipeline_install() -> str:
    """Return the instruction that installs what the pipeline needs."""
    (command,) = (text for text in arguments_of("RUN", "pipeline-packages") if "pyproject.toml" in text)
    return command


def test_the_choice_of_torch(tmp_path: Path) -> None:
    """The shell lines of the build, with an `uv` that tells how it is called, and whether torch must be the lock's."""
    script = re.sub(r"--mount=\S+\s*", "", pipeline_install())
    (tmp_path / "uv").write_text(UV, encoding="utf-8")
    (tmp_path / "uv").chmod(0o755)

    def build(torch: str) -> tuple[int, str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH": torch}
        done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, cwd=ROOT)
        return done.returncode, (done.stdout + done.stderr).strip()

    assert arguments_of("ARG") == ["TORCH=cpu"]
    assert build("cpu") == (
        0,
        "cpu: pip install --constraint --requirement pyproject.toml, torch hashes: 0",
    )
    assert build("cuda") == (
        0,
        "the lock: pip install --constraint --requirement pyproject.toml, torch hashes: 1",
    )
    assert build("rocm") == (1, "TORCH=rocm: must be cpu or cuda")


def test_the_overlay_for_gpus_takes_the_torch_for_gpus() -> None:
    overlay = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text(encoding="utf-8"))
    assert list(overlay["services"]) == ["train"]
    assert overlay["services"]["train"]["build"] == {"args": {"TORCH": "cuda"}}
    assert overlay["services"]["train"]["image"] != SERVICES["train"]["image"]


def image_environment(stage: str) -> dict[str, str]:
    pairs = [pair for text in arguments_of("ENV", "base", stage) for pair in re.findall(r"(\w+)=(\S+)", text)]
    return {name: value for name, value in pairs if name not in ("PATH", "HOME")}


def outside_of_a_container(word: str, port: int, directory: Path) -> str:
    """Return a word of a command line of the server for this machine."""
    word = {"python": sys.executable, "mlflow": str(Path(sys.executable).with_name("mlflow"))}.get(word, word)
    word = re.sub(r"postgresql\+psycopg2://[^/]+/mlflow$", f"sqlite:///{directory}/mlflow.db", word)
    word = word.replace("--host=0.0.0.0", "--host=127.0.0.1").replace("=/artifacts", f"={directory}/artifacts")
    word = word.replace("${PUBLIC_NAME:-localhost}", "localhost")
    return word.replace("--port=5000", f"--port={port}").replace("'127.0.0.1', 5000", f"'127.0.0.1', {port}")


def server_packages() -> list[str]:
    (command,) = arguments_of("RUN", "tracking-packages")
    return shlex.split(command.partition("--constraint requirements.lock ")[2])


def with_requirements(names: list[str]) -> set[str]:
    """Return the names of packages with all that they require."""
    found: set[tuple[str, str]] = set()  # a name, and an extra of it or none
    todo = [Requirement(name) for name in names]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in found:
                found.add((name, extra))
                further = [Requirement(text) for text in installed_requirements(name)]
                todo += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def installed_requirements(name: str) -> list[str]:
    try:
        return requires(name) or []
    except ModuleNotFoundError:  # it belongs to an extra that nobody asked for
        return []


def hide_all_but(packages: set[str], directory: Path) -> None:
    """Write a start-up file for Python that lets every import fail which these packages do not bring."""
    modules = {"graftline", "pipeline"}
    for module, owners in packages_distributions().items():
        if not packages & {canonicalize_name(owner) for owner in owners}:
            modules.add(module)
    assert "torch" in modules
    lines = f"import sys\nsys.modules.update(dict.fromkeys({sorted(modules)}))\n"
    (directory / "sitecustomize.py").write_text(lines, encoding="utf-8")


PASSWORD = "of tests, not a secret"
AUTHORIZATION = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()


@pytest.fixture(autouse=True)
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the services that use the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", SERVICES["train"]["environment"]["MLFLOW_TRACKING_USERNAME"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@dataclass(frozen=True)
class Server:
    port: int
    artifacts: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The service `tracking`, with no more packages than its image has; healthy, as its health check sees it."""
    directory = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hide_all_but(with_requirements(server_packages()), directory)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment |= image_environment("tracking") | {"PYTHONPATH": str(directory)}
    environment |= {name: value for name, value in SERVICES["tracking"]["environment"].items() if "$" not in value}
    ini = (DOCKER / "basic_auth.ini").read_text(encoding="utf-8")
    ini = re.sub(r"postgresql.*", f"sqlite:///{directory}/mlflow.db", ini)
    (directory / "basic_auth.ini").write_text(ini, encoding="utf-8")
    environment |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "not a secret",
    }
    command = [outside_of_a_container(word, port, directory) for word in SERVICES["tracking"]["command"]]
    check = [outside_of_a_container(word, port, directory) for word in SERVICES["tracking"]["healthcheck"]["test"]]
    assert check.pop(0) == "CMD"
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while subprocess.run(check, capture_output=True).returncode != 0:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, (directory / "log.txt").read_text(encoding="utf-8")
            time.sleep(0.5)
        yield Server(port, directory / "artifacts")
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.parametrize(
    ("host", "status"),
    [("tracking:5000", 200), ("localhost:5000", 200), ("127.0.0.1:5050", 200), ("rebound.example:5000", 403)],
)
def test_the_server_answers_to_its_own_names_only(server: Server, host: str, status: int) -> None:
    address = f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1"
    headers = {"Host": host, "Authorization": AUTHORIZATION}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            seen = answer.status
    except urllib.error.HTTPError as error:
        seen = error.code
    assert seen == status


def test_the_server_takes_in_and_hands_out_artifacts(server: Server, tmp_path: Path) -> None:
    """A client needs no access to where artifacts lie."""
    client = MlflowClient(tracking_uri=server.url)
    run = client.create_run(client.create_experiment("artifacts"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    (tmp_path / "note.txt").write_text("kept", encoding="utf-8")
    client.log_artifact(run.info.run_id, str(tmp_path / "note.txt"), "notes")
    (stored,) = server.artifacts.rglob("note.txt")
    assert stored.read_text(encoding="utf-8") == "kept"
    back = client.download_artifacts(run.info.run_id, "notes/note.txt", str(tmp_path))
    assert Path(back).read_text(encoding="utf-8") == "kept"


def test_the_server_sends_nothing_home(server: Server) -> None:
    address = f"{server.url}/ajax-api/3.0/mlflow/ui-telemetry"
    request = urllib.request.Request(address, headers={"Authorization": AUTHORIZATION})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["disable_ui_telemetry"] is True


@pytest.fixture(scope="module")
def image_environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that sees of this project what the image holds, and no more."""
    root = tmp_path_factory.mktemp("image")
    for sources, destination in copied():
        for source in sources:
            if (ROOT / source).is_dir():
                skip = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, root / destination, symlinks=True, ignore=skip)
            else:
                shutil.copy2(ROOT / source, root / destination)
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    return environment | image_environment("pipeline") | {"PYTHONPATH": str(root / "src")}  # as installed in the image


def run(words: list[str], environment: dict[str, str], directory: Path) -> str:
    programs = {"python": [sys.executable], "graftline": [sys.executable, "-m", "graftline"]}
    command = [part for word in words for part in programs.get(word, [word])]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_entry_reads_as_make_does(image_environ: dict[str, str], tmp_path: Path) -> None:
    """`docker run graftline config ...`, with nothing of the project but what the image holds."""
    entry: list[str] = json.loads(arguments_of("ENTRYPOINT", "pipeline")[0])
    config = yaml.safe_load(run([*entry, "config", "backbone=efficientnet_b0", "seed=7"], image_environ, tmp_path))
    assert config["backbone"]["name"].startswith("efficientnet_b0")
    assert config["seed"] == 7
    where = run(["python", "-c", "import graftline.pipeline as found; print(found.__file__)"], image_environ, tmp_path)
    assert where.startswith(image_environ["PYTHONPATH"])
    assert entry[0] in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert SERVICES["train"]["entrypoint"][: len(entry)] == entry


def test_a_training_is_tracked_by_the_server(
    server: Server, image_environ: dict[str, str], color_folder: Path, tmp_path: Path
) -> None:
    """The service `train`, as in `docker compose run train data=folder ...`."""
    own = {key: value.replace("tracking:5000", f"127.0.0.1:{server.port}") for key, value in train_environment()}
    own["MLFLOW_TRACKING_PASSWORD"] = PASSWORD
    typed = ["data=folder", f"data.path={color_folder}", "tracking.experiment=colors", *TINY]
    run([*SERVICES["train"]["entrypoint"], *typed], image_environ | own, tmp_path)

    client = MlflowClient(tracking_uri=server.url)
    experiment = client.get_experiment_by_name("colors")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert [version.run_id for version in client.search_model_versions("")] == [tracked.info.run_id]
    (result,) = tmp_path.glob("outputs/train/*/result.json")
    assert json.loads(result.read_text(encoding="utf-8"))["run_id"] == tracked.info.run_id
    assert not list(tmp_path.glob("mlflow.db*"))


def train_environment() -> list[tuple[str, str]]:
    return list(SERVICES["train"]["environment"].items())
