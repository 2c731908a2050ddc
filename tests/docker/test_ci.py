""".ci/run calls what a person calls and stops at the first failure; pre-commit runs what `make lint` runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = (
    "chromium",
    "crontab",
    "munged",
    "nginx",
    "postgres",
    "prometheus",
    "shellcheck",
    "slurmctld",
    "slurmd",
    "srun",
    "systemd-analyze",
    "wget",
)
MAKE = """#!/bin/sh
echo "$*" >> {calls}
echo "the last line of make $1"
test "$1" != "$FAILING"
"""


@pytest.mark.parametrize(
    ("failing", "passed", "calls", "code", "last"),
    [
        ("", "0", ["lint", "test", "test-long"], 0, "the last line of make test-long"),
        ("", "1020", ["lint", "test"], 0, ".ci/run: make test-long is left out, as 17 minutes have passed"),
        ("lint", "0", ["lint"], 1, ".ci/run: make lint found something"),
        ("test", "0", ["lint", "test"], 1, ".ci/run: make test failed"),
        ("test-long", "0", ["lint", "test", "test-long"], 1, ".ci/run: make test-long failed"),
    ],
)
def test_ci_lints_then_tests(tmp_path: Path, failing: str, passed: str, calls: list[str], code: int, last: str) -> None:
    """With a `make` that notes how it is called, since these tests run below the real one, ``passed`` seconds on."""
    (tmp_path / "make").write_text(MAKE.format(calls=tmp_path / "calls"), encoding="utf-8")
    for program in OPTIONAL:  # there: nothing is to be installed
        (tmp_path / program).write_text("#!/bin/sh\n", encoding="utf-8")
    for program in ("make", *OPTIONAL):
        (tmp_path / program).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FAILING": failing,
        "SECONDS": passed,
        "PYTHON": sys.executable,
    }
    command = [str(ROOT / ".ci" / "run")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code
    assert (tmp_path / "calls").read_text(encoding="utf-8").splitlines() == calls
    assert (done.stderr or done.stdout).splitlines()[-1].startswith(last)


def test_ci_names_a_python_that_will_not_do(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "old").chmod(0o755)
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n", encoding="utf-8")  # not root: nothing is installed
    (tmp_path / "id").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(tmp_path / "old")}
    done = subprocess.run([str(ROOT / ".ci" / "run")], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "must be Python 3.11 or later" in done.stderr


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    linted = re.findall(r"bin/(\S+(?: check| format)?)", recipe)
    config: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (local,) = config["repos"]
    assert local["repo"] == "local"
    hooks = {hook["entry"].removeprefix(".venv/bin/"): hook for hook in local["hooks"]}
    assert sorted(re.sub(" --.*", "", entry) for entry in hooks) == sorted(linted)
    assert all(hook["language"] == "system" for hook in hooks.values())
    for entry in hooks:
        assert Path(sys.executable).with_name(entry.split()[0]).exists(), entry


def test_pre_commit_takes_its_configuration() -> None:
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
