"""The workflows call what there is: targets of the Makefile, stages, Python versions that pyproject.toml allows."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from graftline.pipeline.cli.conf_files import CONF, stages

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
JOBS: dict[str, Any] = {
    name: job for file in FILES for name, job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].items()
}
STEPS = [step for job in JOBS.values() for step in job["steps"]]
COMMANDS = [line for step in STEPS for line in step.get("run", "").splitlines()]
LOCKS = {  # each file of pins, and how many they are at least
    "requirements.lock": 100,
    "pipeline/dagster/requirements.txt": 60,
    "tests/extras-requirements.txt": 10,
    "benchmarks/accuracy/peers/requirements.txt": 40,
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_their_jobs() -> None:
    assert set(JOBS) == {"lint", "test", "extras", "lowest", "wheel"}
    assert all("timeout-minutes" in job for job in JOBS.values())


def test_targets_and_stages_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = [command.split()[1] for command in COMMANDS if command.startswith("make ")]
    assert called == ["lint", "test", "test-extras"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in called)
    run = [command.split()[1] for command in COMMANDS if command.startswith("graftline ")]
    assert set(run) <= {"--help", *stages([CONF])}
    assert list(PROJECT["project"]["scripts"]) == ["graftline"]


def test_python_versions_are_those_that_we_allow() -> None:
    tested: list[str] = JOBS["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["project"]["requires-python"] == f">={tested[0]}"
    fixed = {step["with"]["python-version"] for step in STEPS if "python-version" in step.get("with", {})}
    assert {version for version in fixed if "$" not in version} <= set(tested)
    assert tested[0] == JOBS["lowest"]["steps"][1]["with"]["python-version"], "newer ones lack builds of the lowest"


@pytest.mark.parametrize("action", sorted({step["uses"] for step in STEPS if "uses" in step}))
def test_actions_are_pinned(action: str) -> None:
    assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action)


def test_uv_is_the_one_of_the_images() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    found = {version for text in (dockerfile, *COMMANDS) for version in re.findall(r"\buv==([\d.]+)", text)}
    assert len(found) == 1


def pins(file: str) -> list[str]:
    """Return the pins of a file, each with its hashes."""
    return re.split(r"\n(?=\S)", (ROOT / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "least"), LOCKS.items())
def test_every_pin_has_hashes(file: str, least: int) -> None:
    assert len(pins(file)) > least
    assert not [pin for pin in pins(file) if "==" not in pin or "--hash=sha256:" not in pin]


@pytest.mark.parametrize("file", LOCKS)
def test_a_lock_has_what_it_is_made_of(file: str) -> None:
    source = (ROOT / file).with_suffix(".in")
    wanted: list[str] = PROJECT["project"]["dependencies"]
    if source.exists():
        wanted = re.sub(r" *#.*", "", source.read_text(encoding="utf-8")).split()
    has = {canonicalize_name(name): version for name, version in (pin.split()[0].split("==") for pin in pins(file))}
    asked = [Requirement(text) for text in wanted]
    assert not [str(one) for one in asked if has[canonicalize_name(one.name)] not in one.specifier]


def test_nothing_is_installed_without_its_hash() -> None:
    """But this project itself, and in an image pip's uv and what the lock holds as a list of constraints."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "docker/Dockerfile")]
    commands = [line for text in texts for line in text.replace("\\\n", "").splitlines() if "pip install" in line]
    others = ("--dry-run --no-index", "--no-deps --editable .", "--constraint", "pip install uv==")
    installed = [one for one in commands if not any(words in one for words in others)]
    assert len(installed) == 4
    assert all("--no-deps --require-hashes --requirement" in one for one in installed)


def test_what_was_malware_is_left_out() -> None:
    (lightning,) = (line for line in PROJECT["project"]["dependencies"] if line.startswith("pytorch-lightning"))
    assert {"!=2.6.2", "!=2.6.3"} <= set(lightning.removeprefix("pytorch-lightning").split(","))


def test_a_torch_that_is_there_is_not_installed_again(tmp_path: Path) -> None:
    """`make setup SYSTEM_TORCH=1` leaves out torch and what torch alone needs, with their hashes."""
    command = ["make", "--just-print", "setup", f"VENV={tmp_path}", "SYSTEM_TORCH=1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (filtering,) = re.findall(r"^awk (?:.*\\\n)*.*$", printed, re.MULTILINE)
    subprocess.run(["sh", "-c", filtering], cwd=ROOT, check=True)
    whole, rest = (
        file.read_text(encoding="utf-8") for file in (ROOT / "requirements.lock", tmp_path / "requirements.lock")
    )
    names, kept = (set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE)) for text in (whole, rest))
    assert {name for name in names - kept if not name.startswith(("nvidia-", "cuda-"))} == {
        "torch",
        "torchvision",
        "triton",
    }
    assert all("--hash=" in pin for pin in re.split(r"\n(?=\S)", rest))


def test_another_torch_that_is_there_is_refused(tmp_path: Path) -> None:
    command = ["make", "--just-print", "setup", f"VENV={sys.prefix}", "SYSTEM_TORCH=1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (check,) = re.findall(r"^wanted=(?:.*\\\n)*.*$", printed, re.MULTILINE)

    def run(path: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": path}
        return subprocess.run(["sh", "-c", check], cwd=ROOT, capture_output=True, text=True, env=environment)

    fitting = run("")
    assert (fitting.returncode, fitting.stdout) == (0, "")
    (tmp_path / "torch-2.6.0.dist-info").mkdir()
    (tmp_path / "torch-2.6.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.6.0\n")
    refused = run(str(tmp_path))
    wanted = [line for line in PROJECT["project"]["dependencies"] if re.match("torch(vision)?>", line)]
    assert refused.returncode == 1
    assert refused.stdout.startswith(f"SYSTEM_TORCH=1 needs a PYTHON that has {' '.join(wanted)}: rm -r ")
    torch, torchvision = (re.findall(r"[\d.]+", line)[0] for line in wanted)
    told = f"With torch {torch.rpartition('.')[0]} ({torch} or later) and torchvision {torchvision} that are"
    assert all(told in (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/index.md"))


def test_setup_installs_again_what_is_there_and_no_other_command_does(tmp_path: Path) -> None:
    (tmp_path / ".ready").touch()

    def printed(target: str) -> str:
        command = ["make", "--just-print", target, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "pip install" in printed("setup")
    assert "pip install" not in printed("doctor")
