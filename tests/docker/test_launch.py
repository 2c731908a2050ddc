"""The templates by which trainings on several machines are started, read by the tools that will read them."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from graftline.scheduling.job import Job
from graftline.scheduling.kubernetes import KubernetesOptions, cron_job
from graftline.scheduling.times import parse_times

LAUNCH = Path(__file__).resolve().parents[2] / "docker" / "launch"
SCRIPTS = ("torchrun.sh", "slurm.sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_shell_reads_the_scripts(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is missing: apt-get install shellcheck")
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run(["shellcheck", LAUNCH / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_tasks_of_slurm_get_their_cores(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh\nexec printenv SRUN_CPUS_PER_TASK")
    (tmp_path / "srun").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8"}  # as sbatch sets it
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch"], env={**os.environ, **own}, capture_output=True, text=True)
    assert done.stdout == "8\n", done.stderr


def test_torchrun_understands_the_script(tmp_path: Path) -> None:
    """Without graftline: another program of that name says what it was started with."""
    said = "f\"{sys.argv[1:]} {os.environ['WORLD_SIZE']}\\n\""
    (tmp_path / "graftline.py").write_text(f"import os, sys; os.write(1, {said}.encode())")  # at once: two write
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path), "PROCESSES": "2", "PORT": "0"}
    command = ["bash", str(LAUNCH / "torchrun.sh"), "data.path=/a b"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["['train', 'data.path=/a b'] 2"] * 2, done.stderr


@pytest.mark.parametrize(
    ("head", "told"),
    [("localhost", "RendezvousTimeoutError"), ("192.0.2.1", "timed out after 1000ms")],  # nobody's: RFC 5737
)
def test_a_node_that_does_not_come_ends_the_wait(head: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (tmp_path / "torchrun").chmod(0o755)
    names = {"HEAD": head, "NODES": "2", "PROCESSES": "1", "PORT": "0", "WAIT": "1"}
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **names}
    command = ["bash", str(LAUNCH / "torchrun.sh")]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert told in done.stderr


def test_kubernetes_reads_the_manifests() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    manifests = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
    for manifest in manifests:
        validate(manifest, "1.37", strict=True)
    service, job = manifests
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    command = pod["containers"][0]["command"]
    assert f"--nnodes={job['spec']['completions']}" in command
    assert "--rdzv-conf=join_timeout=1800,read_timeout=1800" in command


def test_two_pods_run_the_command_of_the_job(tmp_path: Path) -> None:
    """As it is, but for the name of the first pod, which only Kubernetes knows, and one process in place of four GPUs.

    In the place of graftline is a program that says what it was started with.
    """
    (_, job) = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{listener.getsockname()[1]}"
    changes = {"--rdzv-endpoint=graftline-train-0.graftline-train:29500": f"--rdzv-endpoint={here}"}
    changes |= {"torchrun": "-m torch.distributed.run", "--nproc-per-node=4": "--nproc-per-node=1"}
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert changes.keys() < {*command}
    started = [sys.executable, *" ".join(changes.get(word, word) for word in command).split()]
    said = "f\"{os.environ['RANK']} of {os.environ['WORLD_SIZE']} {sys.argv[1:]}\\n\""
    (tmp_path / "graftline.py").write_text(f"import os, sys; os.write(1, {said}.encode())")
    own = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pods = [subprocess.Popen(started, env=own, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [pod.communicate(timeout=240)[0] for pod in pods]
    keys = ["train", "trainer=gpu", "data=folder", "data.path=/work/photos"]
    assert sorted(told) == [f"{rank} of 2 {keys}\n" for rank in range(2)]


def test_pods_have_the_rights_of_those_of_a_schedule() -> None:
    """The image's user, to whom the volume is given, and no other rights."""
    job = Job("pets", "retrain", (), Path("/p"), Path("/d"), 60)
    scheduled = yaml.safe_load(cron_job(job, parse_times("daily 03:00"), None, KubernetesOptions(), "UTC"))
    theirs = scheduled["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (_, training) = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    ours = training["spec"]["template"]["spec"]
    assert ours["securityContext"] == theirs["securityContext"]
    assert ours["containers"][0]["securityContext"] == theirs["containers"][0]["securityContext"]
