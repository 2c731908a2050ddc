"""The doctor: each check finds what is wrong and names the way out; the stage ends with the exit code that fits."""

import io
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bundles import tiny_bundle
from packaging.requirements import Requirement
from workplace import Workplace

from graftline.errors import UserError
from graftline.pipeline.health import machine, models, packages, server
from graftline.pipeline.health.finding import Finding, State, checked
from graftline.pipeline.health.machine import Gpus
from graftline.pipeline.health.models import check_champions, check_model, check_weights
from graftline.pipeline.program import FROM_MAKE
from graftline.tracking.client import connect
from graftline.tracking.tracking import Tracking

NOT_REPLAYED = "those of {}: graftline doctor model=NAME does that"
GOOD = dict.fromkeys(packages.SHOWN, "2.0")


def states(findings: list[Finding]) -> dict[str, State]:
    return {one.name: one.state for one in findings}


@pytest.mark.parametrize(
    ("name", "version", "state", "way_out"),
    [
        ("torch", "2.0+cu130", "ok", ""),
        ("torch", None, "broken", "is not installed: pip install torch"),
        ("torch", "2.1", "warning", "the lock has 2.0: pip install torch==2.0 brings it"),
        ("timm", "1.9", "broken", "needs >=2: pip install 'timm>=2'"),
        ("pytorch-lightning", "2.6.2", "broken", "malware"),
        ("pytorch-lightning", "2.6.3", "broken", "malware"),
        ("lightning", "2.6.2", "broken", "malware"),
    ],
)
def test_a_version(name: str, version: str | None, state: State, way_out: str) -> None:
    installed = {**GOOD, name: version} if version else {other: "2.0" for other in GOOD if other != name}
    required = [Requirement("timm>=2"), Requirement("pillow")]
    findings = list(packages.check_versions({**installed, "pillow": "12"}, required, {"torch": "2.0"}))
    (found,) = (one for one in findings if one.name == name)
    assert found.state == state
    assert way_out in found.text
    assert states(findings)["other packages"] == "ok"


def test_other_packages_share_a_line() -> None:
    required = [Requirement("a"), Requirement("b>=2"), Requirement("c")]
    found = list(packages.check_versions({**GOOD, "b": "1", "c": "1", "d": "1"}, required, {"c": "2", "d": "1"}))[-1]
    assert found == Finding(
        "other packages",
        "broken",
        "a is not installed; b 1 does not fit graftline, which needs >=2: pip install a 'b>=2'",
    )
    found = list(packages.check_versions({**GOOD, "c": "1", "d": "1"}, [], {"c": "2", "d": "1"}))[-1]
    assert found.state == "warning"
    assert "c 1, the lock has 2" in found.text


def test_in_a_clone_the_way_out_is_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "doctor", FROM_MAKE])
    *_, others = packages.check_versions({**GOOD, "b": "1"}, [Requirement("b>=2")], {})
    assert others.text == "b 1 does not fit graftline, which needs >=2: make setup"
    (python,) = packages.check_python("3.9.1")
    assert python.text.endswith(": rm -r .venv, then make setup PYTHON=python3.12")
    (gpu,) = machine.check_gpu(Gpus(None, [], True, (12, 4)))
    assert gpu.text.endswith(": rm -r .venv, then make setup without SYSTEM_TORCH")


@pytest.mark.parametrize(
    ("name", "in_its_place"), [("onnxruntime", "onnxruntime-gpu"), ("opencv-python-headless", "opencv-python")]
)
def test_a_package_that_brings_the_same_modules_takes_the_place_of_another(name: str, in_its_place: str) -> None:
    installed = {other: "2.0" for other in GOOD if other != name} | {in_its_place: "2.1"}
    required = [Requirement(f"{name}>=2")]
    assert {one.state for one in packages.check_versions(installed, required, {name: "2.0"})} == {"ok"}
    found = packages.check_versions({**installed, in_its_place: "1"}, required, {})
    (told,) = [f"{one.name} {one.text}" for one in found if one.state == "broken"]
    assert f"install '{in_its_place}>=2'" in told


def test_python() -> None:
    (found,) = packages.check_python("3.9.1")
    assert found.state == "broken"
    assert found.text.endswith(": install graftline into a new environment of python3.12")
    assert [one.state for one in packages.check_python("3.11.0")] == ["ok"]


@pytest.mark.parametrize(
    ("further", "way_out"),
    [
        ({"lightning": "2.6.1"}, "pip uninstall lightning"),
        ({"opencv-python": "5"}, "pip uninstall opencv-python-headless opencv-python, then pip install opencv-python-"),
        ({"onnxruntime-gpu": "1.32"}, "pip uninstall onnxruntime onnxruntime-gpu"),
    ],
)
def test_clashes(further: dict[str, str], way_out: str) -> None:
    installed = {"pytorch-lightning": "2.6.6", "opencv-python-headless": "5", "onnxruntime": "1.32"}
    assert [one.state for one in packages.check_clashes(installed)] == ["ok"]
    (found,) = packages.check_clashes(installed | further)
    assert found.state == "broken"
    assert way_out in found.text


def test_torchvision_of_another_torch() -> None:
    wanted = ["numpy", "torch==2.14.1"]
    (fits,) = packages.check_pair({"torch": "2.14.1+cpu", "torchvision": "0.29.1"}, wanted)
    (does_not,) = packages.check_pair({"torch": "2.13.0", "torchvision": "0.29.1"}, wanted)
    assert (fits.state, does_not.state) == ("ok", "broken")


def test_the_lock_is_read_for_this_machine(tmp_path: Path) -> None:
    lines = [
        "Foo_Bar==1.2 \\",
        "    --hash=sha256:00",
        "gone==1 ; sys_platform == 'win32' \\",
        "kept==2 ; sys_platform != 'win32'",
    ]
    (tmp_path / "lock").write_text("\n".join(lines))
    assert packages.read_lock(tmp_path / "lock") == {"foo-bar": "1.2", "kept": "2"}
    assert packages.read_lock(tmp_path / "none") == {}
    assert len(packages.read_lock()) > 100


@pytest.mark.parametrize(
    ("gpus", "state", "words"),
    [
        (Gpus("CUDA 13.0", ["H100"], True, (13, 1)), "ok", "1 x H100"),
        (Gpus(None, [], False, None), "ok", "built for the CPU"),
        (Gpus(None, [], True, (12, 4)), "warning", "this torch is built for the CPU"),
        (Gpus("CUDA 13.0", [], False, None), "ok", "runs on the CPU"),
        (Gpus("CUDA 13.0", [], True, None), "broken", "no driver"),
        (Gpus("CUDA 13.0", [], True, (12, 4)), "broken", "the driver runs 12.4 at most"),
        (Gpus("CUDA 12.8", [], True, (12, 4)), "warning", "nvidia-smi"),
    ],
)
def test_the_gpu(gpus: Gpus, state: State, words: str) -> None:
    (found,) = machine.check_gpu(gpus)
    assert found.state == state
    assert words in found.text


def test_no_driver_is_no_cuda() -> None:
    assert machine.driver_cuda_version("libnothing.so.1") is None
    assert (machine.find_gpus().built_for or "CUDA").startswith(("CUDA", "ROCm"))


def test_shared_memory(tmp_path: Path) -> None:
    assert [one.state for one in machine.check_shared_memory(tmp_path, 1)] == ["ok"]
    (found,) = machine.check_shared_memory(tmp_path, 10**18)
    assert found.state == "warning"
    assert "docker run --shm-size 1g" in found.text
    assert [one.state for one in machine.check_shared_memory(tmp_path / "none")] == ["ok"]


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    here, there = f"{tmp_path}/outputs", f"{tmp_path}/file/data"
    monkeypatch.setattr(machine, "FEW_BYTES", 0)
    assert [(one.state, one.text.partition(":")[0]) for one in machine.check_disk([here, f"{tmp_path}/new/cache"])] == [
        ("ok", f"{here}, {tmp_path}/new/cache")
    ]
    assert [one.state for one in machine.check_disk([here, there])] == ["ok", "broken"]
    monkeypatch.setattr(machine, "FEW_BYTES", 10**18)
    assert [one.state for one in machine.check_disk([here])] == ["warning"]
    monkeypatch.setattr(machine, "MIN_BYTES", 10**18)
    assert [one.state for one in machine.check_disk([here])] == ["broken"]


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("gone")
    for name in ("data", "data/below"):
        (found,) = machine.check_disk([f"{tmp_path}/{name}"])
        assert found == Finding(
            "disk",
            "broken",
            f"{tmp_path}/{name}: {tmp_path}/data leads to gone, where no folder is; mount that, or remove the link",
        )


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed" / "data").mkdir(parents=True)
    (tmp_path / "closed").chmod(0)
    closed = str(tmp_path / "closed" / "data")
    code = f"""
import os
from graftline.pipeline.health.machine import check_disk
if os.geteuid() == 0:
    os.setuid(65534)  # root may look into any folder
print(*check_disk([{closed!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "state='broken'" in done.stdout, done.stderr
    assert "may not be written to; change its owner or rights" in done.stdout


@pytest.mark.parametrize(("encoding", "state"), [("UTF-8", "ok"), ("ascii", "warning")])
def test_locale(encoding: str, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    monkeypatch.setenv("LC_ALL", "POSIX")
    (found,) = machine.check_locale()
    assert (found.state, "set PYTHONUTF8=1, or LC_ALL=C.UTF-8" in found.text) == (state, state == "warning")


def test_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    for zone, state in (("Europe/Berlin", "ok"), ("Europe/Berln", "warning"), ("CET-1", "ok")):
        monkeypatch.setenv("TZ", zone)
        assert [one.state for one in machine.check_time_zone()] == [state]


def test_a_check_that_fails_is_a_finding() -> None:
    def fails() -> Iterator[Finding]:
        raise error
        yield

    error: Exception = UserError("It is wrong: mend it.")
    assert checked("x", fails) == [Finding("x", "broken", "It is wrong: mend it")]
    error = ImportError("libx.so: no such file\nmore")
    assert checked("x", fails)[0].text.startswith("cannot be checked (ImportError: libx.so: no such file)")


class Answers(BaseHTTPRequestHandler):
    """A server that is MLflow 1.30, of another day, and asks for a login."""

    def do_GET(self) -> None:
        is_version = self.path == "/version"
        self.send_response_only(200 if is_version else 401)
        self.send_header("Date", formatdate(time.time() - 3600, usegmt=True))
        self.end_headers()
        self.wfile.write(b"1.30.0" if is_version else b"")

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def other_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_server_that_does_not_let_us_in(other_server: str) -> None:
    (found,) = checked("tracking", lambda: server.check_tracking(Tracking(uri=other_server)))
    assert found.state == "broken"
    assert "MLFLOW_TRACKING_USERNAME" in found.text


def test_a_server_that_is_another(other_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tracking, "check", lambda _: None)  # it lets us in
    findings = list(server.check_tracking(Tracking(uri=other_server)))
    assert states(findings) == {"tracking": "warning", "login": "ok", "clock": "warning"}
    assert "has MLflow 1.30.0, here is 3." in findings[0].text
    assert " s ahead of the server's" in findings[2].text


def test_a_database_in_an_impossible_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (found,) = checked("tracking", lambda: server.check_tracking(Tracking(f"sqlite:///{tmp_path}/new/mlflow.db")))
    assert (found.state, "which the first run makes" in found.text) == ("ok", True)
    (found,) = checked("tracking", lambda: server.check_tracking(Tracking(f"sqlite:///{tmp_path}/file/a/mlflow.db")))
    assert (found.state, f"{tmp_path}/file is no folder" in found.text) == ("broken", True)


def test_no_server() -> None:
    (found,) = checked("tracking", lambda: server.check_tracking(Tracking(uri="http://127.0.0.1:9")))
    assert (found.state, "connection refused" in found.text) == ("broken", True)


def test_login_over_a_network() -> None:
    assert server._judge_login("http://far:5000", has_login=True).state == "warning"
    assert server._judge_login("https://far", has_login=True).state == "ok"
    assert server._judge_login("https://far", has_login=False).state == "warning"


def test_weights_directory(tmp_path: Path) -> None:
    assert [one.state for one in check_weights(str(tmp_path))] == ["ok"]
    entry = {"sha256": "0", "bytes": 4, "license": "x", "source": "x", "architecture": "x", "date": "x", "timm": "x"}
    lock = {"a.b": {"file": "a.b.safetensors", **entry}}
    (tmp_path / "weights.lock.json").write_text(json.dumps(lock))
    assert "graftline fetch-weights backbone=a.b" in list(check_weights(str(tmp_path)))[-1].text
    (tmp_path / "a.b.safetensors").write_bytes(b"1234")
    assert [one.state for one in check_weights(str(tmp_path))] == ["ok", "ok"]


def test_a_model(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    (found,) = check_model(str(bundle), Tracking())
    assert (found.state, "golden images reproduced" in found.text) == ("ok", True)
    (bundle / "model.onnx").write_bytes(b"another")
    (found,) = checked("pets", lambda: check_model(str(bundle), Tracking()))
    assert (found.state, "is not what was saved" in found.text) == ("broken", True)


def test_champions_of_a_database(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MOST_REPLAYED", 2)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    tracking = Tracking(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert not list(check_champions(tracking)), "there is no model"
    client = connect(tracking.uri)
    for name in ("birds", "cats", "dogs"):
        tiny_bundle(tmp_path / name / "artifacts" / "bundle")
        client.create_registered_model(name)
        client.create_model_version(name, (tmp_path / name).as_uri())
    for name in ("birds", "cats"):
        client.set_registered_model_alias(name, "champion", "1")
    (tmp_path / "cats" / "artifacts" / "bundle" / "model.onnx").write_bytes(b"another")
    whole, damaged, left = check_champions(tracking)
    assert (whole.name, whole.state) == ("models:/birds@champion", "ok")
    assert "golden images reproduced" in whole.text
    assert (damaged.name, damaged.state) == ("cats", "broken")
    assert left == Finding("golden images", "ok", NOT_REPLAYED.format("dogs are not replayed (no champion)"))
    client.set_registered_model_alias("dogs", "champion", "1")
    assert list(check_champions(tracking))[-1].text == NOT_REPLAYED.format(
        "dogs are not replayed (2 others were replayed)"
    )
    (of_server,) = check_champions(Tracking(uri="http://127.0.0.1:9"))
    assert of_server.text == NOT_REPLAYED.format("a server's models are not replayed"), "it is not even asked"


def test_the_stage(tmp_path: Path) -> None:
    ran = Workplace(tmp_path).run("doctor")
    assert ran.code == 0, ran.output
    assert (ran.result["broken"], ran.result["findings"]["Models"][0]["state"]) == (0, "ok")
    assert ran.result["findings"]["Tracking"][0]["text"].endswith("which the first run makes")
    assert not (tmp_path / "mlflow.db").exists()


def test_the_stage_when_something_is_broken(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    ran = Workplace(tmp_path).run("doctor", "model=elpv", "tracking.uri=http://127.0.0.1:9")
    assert ran.code == 1
    broken = {one["name"] for group in ran.result["findings"].values() for one in group if one["state"] == "broken"}
    assert broken == {"disk", "tracking", "elpv"}
    assert "broken    3: disk, tracking, elpv" in ran.output
    assert "tracking.uri" in ran.output  # in the words of the command line
