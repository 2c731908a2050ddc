"""A server's image: the folder that it is built of runs without torch, and with the packages alone that it asks for."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest
from http_server import CLASS_NAMES, photo
from one_answer import answering
from packaging.utils import canonicalize_name

from graftline.bundle.predictor import Predictor
from graftline.data.decode import PLAIN
from graftline.serving.check import check_server, describe_server
from graftline.serving.image_folder import with_hashes, write_image_folder
from graftline.serving.login import PASSWORD

HIDING = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path = [NotInstalled(), *(finder for finder in sys.meta_path if "editable" not in repr(finder))]
"""


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(bundle, "pets", PLAIN, tmp_path_factory.mktemp("image") / "pets-docker")


def hidden(folder: Path) -> set[str]:
    """Return the names by which all is imported that is installed here and is not in the image."""
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {canonicalize_name(line.partition("==")[0]) for line in lines if line[0].isalpha()}
    modules = packages_distributions().items()
    return {module for module, names in modules if not needed & {canonicalize_name(name) for name in names}}


def command(folder: Path) -> list[str]:
    """Return what the image runs, with a free port of this machine."""
    text = (folder / "Dockerfile").read_text(encoding="utf-8")
    words = [word for key in ("ENTRYPOINT", "CMD") for word in json.loads(re.search(rf"^{key} (.*)$", text, re.M)[1])]  # type: ignore[index]
    assert words == ["python", "serve.py", "--host", "0.0.0.0", "--port", "5001"]
    return [sys.executable, "-P", *words[1:2], "--host", "127.0.0.1", "--port", "0"]


def test_it_serves_without_torch(folder: Path, bundle: Path, predictor: Predictor, tmp_path: Path) -> None:
    without = hidden(folder)
    assert {"torch", "timm", "pytorch_lightning", "pandas", "mlflow", "rich", "hydra"} <= without
    (tmp_path / "sitecustomize.py").write_text(f"HIDDEN = {without - {'graftline'}!r}\n{HIDING}", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(folder)])}
    server = subprocess.Popen(command(folder), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        told = ""
        while (found := re.search(r"(http://\S+)/ answers", told)) is None:
            line = server.stderr.readline()
            assert line, told
            told += line
        assert "golden images reproduced" in told
        request = urllib.request.Request(f"{found[1]}/predict", photo(1), {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)
        expected = predictor.predict([photo(1)])[0]
        assert (content["model"], content["digest"]) == ("pets", predictor.digest)
        assert content["predictions"][0]["class"] == CLASS_NAMES[expected.argmax()]
        np.testing.assert_allclose(list(content["predictions"][0]["probabilities"].values()), expected, rtol=1e-6)
        check = check_server(found[1], describe_server(found[1]), bundle)
        assert check.problem is None
        for page in ("", "docs", "openapi.json", "metrics", "version", "site/page.js"):
            with urllib.request.urlopen(f"{found[1]}/{page}", timeout=60) as answer:
                assert answer.status == 200
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


def test_what_lies_in_the_folder(folder: Path, bundle: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "Dockerfile",
        ".dockerignore",
        "serve.py",
        "requirements.txt",
        "graftline",
        "models",
    }
    for file in filter(Path.is_file, bundle.rglob("*")):
        assert (folder / "models" / "pets" / file.relative_to(bundle)).read_bytes() == file.read_bytes()
    code = {path.relative_to(folder / "graftline").parts[0] for path in (folder / "graftline").iterdir()}
    assert not code & {"training", "backbones", "report", "evaluation", "pipeline"}
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines.pop(0).startswith("# Without hashes, which are those of graftline's requirements.lock: ")
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.+]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {"numpy", "onnxruntime", "pillow", "starlette", "uvicorn"}
    allowed = (folder / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = set(re.findall(r"^COPY (\S+)", (folder / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {f"!{name}" for name in copied} <= set(allowed)


def test_the_user_of_the_image_can_read_it_whatever_the_umask_is(bundle: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        private = Path(shutil.copytree(bundle, tmp_path / "bundle"))
        (private / "bundle.json").chmod(0o600)
        folder = write_image_folder(private, "pets", PLAIN, tmp_path / "pets-docker")
    finally:
        os.umask(before)
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
    assert modes == {(True, 0o755), (False, 0o644)}


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY"])
def test_the_health_check_asks_no_proxy(folder: Path, variable: str) -> None:
    """Docker sets one in each container where its client has one."""
    (line,) = re.findall(r"^HEALTHCHECK .*\n +CMD (.*)$", (folder / "Dockerfile").read_text(encoding="utf-8"), re.M)
    _, *words = json.loads(line)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as url:
        port = url.rpartition(":")[2].partition("/")[0]
        command = [sys.executable, *(word.replace("5001", port) for word in words)]
        environment = {**os.environ, variable: "http://127.0.0.1:9"}
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n") as url:
        port = url.rpartition(":")[2].partition("/")[0]
        command = [sys.executable, *(word.replace("5001", port) for word in words)]
        assert subprocess.run(command, capture_output=True).returncode == 1
    assert subprocess.run(command, capture_output=True).returncode == 1, "nobody listens"


def test_the_dockerfile_is_sound(folder: Path) -> None:
    text = (folder / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG PYTHON={sys.version_info.major}.{sys.version_info.minor}\n" in text
    assert "\nUSER 1000\n" in text
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([str(hadolint), str(folder / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_model_of_medical_images_asks_for_their_reader(bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = write_image_folder(bundle, "scans", replace(PLAIN, extras=("dicom",)), tmp_path / "scans")
    assert "pydicom==" in (folder / "requirements.txt").read_text(encoding="utf-8")


def test_the_packages_have_the_hashes_of_the_lock(folder: Path, tmp_path: Path) -> None:
    pins = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()[1:]
    entries = [f"{pin} \\\n    --hash=sha256:{number:064x}" for number, pin in enumerate(pins)]
    lock = tmp_path / "requirements.lock"
    lock.write_text("\n".join(["other==1 \\\n    --hash=sha256:00", *entries]) + "\n", encoding="utf-8")
    assert with_hashes(pins, lock) == "\n".join(entries) + "\n"
    lock.write_text("\n".join(entries[1:]) + "\n", encoding="utf-8")
    head, *lines = with_hashes(pins, lock).splitlines()
    assert (head.endswith(f": it does not have {pins[0]}."), lines) == (True, pins)


def test_a_port_that_is_none(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    asked = [*command(folder)[:-1], "99999"]
    done = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("--port is 99999: choose one up to 65535, or 0 for any free one.")


def test_limits_are_options_and_mistakes_name_them(folder: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != PASSWORD} | {"PYTHONPATH": str(folder)}
    for options, sentence in {
        ("--batch", "0"): "--batch is 0, it must be at least 1.",
        ("--images", "600"): "--images is 600, more than --waiting-images, 512, so that",
        ("--host", "0.0.0.0"): "--host is 0.0.0.0, which others may reach, and there is no password: set ",
    }.items():
        asked = [*command(folder), *options]
        done = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(sentence)


def test_without_a_model_it_says_so(folder: Path, tmp_path: Path) -> None:
    server = shutil.copytree(folder, tmp_path / "server", ignore=shutil.ignore_patterns("models"))
    environment = {**os.environ, "PYTHONPATH": str(server)}
    for name in ("models", "models/..data"):  # of a volume that is mounted there
        done = subprocess.run(command(folder), cwd=server, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr == f"{server}/models holds no bundle: put one there, as a folder of its own.\n"
        (server / name).mkdir()
