"""Processes that torchrun or SLURM's srun starts: one run, one output directory, and the numbers of one process."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from computing import train_in_small_shards
from mlflow.entities import Run
from safetensors.torch import load_file
from warm_process import WarmProcess
from workplace import TINY, Workplace, run_stage

Start = Callable[..., list[subprocess.Popen[str]]]
StartWarm = Callable[..., list[WarmProcess]]

TEMPLATE = Path(__file__).resolve().parents[2] / "docker" / "launch" / "slurm.sbatch"
SECONDS = 60  # within which whoever is left ends
needs_slurm = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("srun", "slurmctld", "slurmd", "munged")) or os.geteuid() != 0,
    reason="SLURM is missing, or this is not root, who alone starts it: apt-get install slurm-wlm",
)


@pytest.fixture
def words(color_folder: Path) -> list[str]:
    """A network without batch statistics, so that the share of a process does not matter."""
    given = ["data=folder", f"data.path={color_folder}", *TINY, "backbone=test_vit"]
    return list({line.partition("=")[0]: line for line in given}.values())


@pytest.fixture
def torchrun(workplace: Workplace) -> Start:
    """Start nodes on this machine, which find each other by its loopback."""

    def start(words: Sequence[str], nodes: int, processes: int) -> list[subprocess.Popen[str]]:
        endpoint = f"127.0.0.1:{free_port()}"
        how = [
            f"--nnodes={nodes}",
            f"--nproc-per-node={processes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={endpoint}",
        ]
        command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", "graftline", "train", *words]
        return [_start(workplace, command, node) for node in range(nodes)]

    return start


@pytest.fixture
def slurm(workplace: Workplace) -> StartWarm:
    """Start processes with the variables that srun sets, one on each of several nodes."""

    def start(words: Sequence[str], nodes: int, run: Callable[[list[str]], int] = run_stage) -> list[WarmProcess]:
        step = {
            "SLURM_JOB_ID": "1234",
            "SLURM_JOB_NAME": "train",
            "SLURM_STEP_ID": "0",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes),
            "SLURM_TASKS_PER_NODE": f"1(x{nodes})",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_LOCALID": "0",
            "MASTER_PORT": str(free_port()),
        }
        own = ({"SLURM_PROCID": f"{node}", "SLURM_NODEID": f"{node}"} for node in range(nodes))
        train = partial(run, ["train", *words])
        return [workplace.start_function(train, {**step, **node}) for node in own]

    return start


@pytest.fixture
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real SLURM of two nodes, both of which are this machine; yields the variables that srun finds it by."""
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    key, sock = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": free_port(),
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={sock}",
        "SlurmUser": "root",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": f"{folder}/spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": f"{folder}/slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "GresTypes": "gpu",
        "SlurmdParameters": "config_overrides",  # the cores and GPUs of the lines below, whatever this machine has
        "SelectType": "select/cons_tres",
        "ReturnToService": 2,
    }
    has = "CPUs=32 Gres=gpu:4"
    nodes = [f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} {has}" for n in range(2)]
    lines = [*(f"{name}={value}" for name, value in settings.items()), *nodes, "PartitionName=p Nodes=ALL Default=YES"]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    devices = [f"Name=gpu File=/dev/{device}\n" for device in ("null", "zero", "full", "random")]  # SLURM wants files
    (folder / "gres.conf").write_text("".join(devices))
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own = [f"--{name}-file={folder / name}" for name in ("pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}", *own],
        ["slurmctld", "-D", "-i"],
    ]
    commands += [["slurmd", "-D", "-N", node] for node in ("n0", "n1")]
    daemons = []
    try:
        for command in commands:
            log = subprocess.DEVNULL
            daemons.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log))
            time.sleep(1)
        yield variables
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start(place: Workplace, command: Sequence[str], node: int) -> subprocess.Popen[str]:
    with (place.root / f"node{node}.log").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=place.root,
            env=place.environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def output(place: Workplace, node: int) -> str:
    return (place.root / f"node{node}.log").read_text()


def await_checkpoint(place: Workplace, process: subprocess.Popen[str]) -> None:
    """Wait until a training, whose processes write to the log of node 0, has written one."""
    while not list(place.root.glob("outputs/train/*/checkpoints/last.ckpt")):
        assert process.poll() is None, output(place, 0)
        time.sleep(0.05)


def check_resumed(place: Workplace, run: Run, steps_per_epoch: int, epochs: int) -> None:
    """Make sure that a run which was lost and resumed is one, with each epoch once."""
    ended = only_run(place)
    assert ended.info.run_id == run.info.run_id
    assert ended.info.status == "FINISHED"
    steps = [metric.step for metric in place.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [steps_per_epoch * (epoch + 1) for epoch in range(epochs)]
    assert len(list(place.root.glob("outputs/train/*/result.json"))) == 1


def only_run(place: Workplace) -> Run:
    experiment = place.mlflow.get_experiment_by_name("colors0")
    assert experiment is not None
    (run,) = place.mlflow.search_runs([experiment.experiment_id])
    return run


def test_two_nodes_of_two_processes_give_the_numbers_of_one(
    workplace: Workplace, make_workplace: Callable[[str], Workplace], words: list[str], torchrun: Start
) -> None:
    words = [*words, "data.split.train=0.75", "data.split.test=0.15"]  # 45: the last batches have 3, 2, 2 and 2 images
    nodes = torchrun([*words, "train.batch_size=3"], nodes=2, processes=2)
    assert [node.wait(300) for node in nodes] == [0, 0], output(workplace, 0) + output(workplace, 1)
    assert "epoch" not in output(workplace, 1), "rank 0 speaks for all"
    run = only_run(workplace)
    (directory,) = workplace.root.glob("outputs/train/*")

    alone = make_workplace("alone")
    ran = alone.run("train", *words, "train.batch_size=12")
    assert ran.code == 0, ran.output
    assert run.info.status == "FINISHED"
    expected = only_run(alone).data.metrics
    for name in ("train/loss", "val/loss", "val/accuracy", "test/accuracy"):
        assert run.data.metrics[name] == pytest.approx(expected[name], abs=1e-6)
    weights, of_one = (load_file(one / "bundle" / "model.safetensors") for one in (directory, ran.directory))
    # AdamW divides by the size of a gradient, so that the rounding of a small one is seen in its weight
    assert max(float((weights[name] - of_one[name]).abs().max()) for name in of_one) < 5e-5


def test_all_processes_fill_the_cache_together(
    workplace: Workplace, words: list[str], slurm: StartWarm, tmp_path: Path
) -> None:
    import timm

    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "weights.pth")
    frozen = ["backbone.weights=file", f"backbone.file={tmp_path / 'weights.pth'}", "freeze=all_but_head"]
    typed = {line.partition("=")[0]: line for line in [*words, *frozen, "features=cached"]}
    (noted := tmp_path / "noted").mkdir()
    nodes = slurm(typed.values(), nodes=2, run=partial(train_in_small_shards, noted))
    assert [node.wait(300) for node in nodes] == [0, 0], nodes[0].output + nodes[1].output
    written = [sum(map(int, (noted / rank).read_text().split())) for rank in "01"]
    assert sum(written) == 45, "each image of training and validation once"
    assert min(written) >= 4, "a shard at least"
    assert nodes[1].output == ""
    assert only_run(workplace).info.status == "FINISHED"
    assert len(list(workplace.root.glob("outputs/train/*"))) == 1


@pytest.mark.parametrize(("lost", "left"), [(1, 0), (0, 1)])
def test_the_end_of_a_process_ends_the_others(
    workplace: Workplace, words: list[str], slurm: StartWarm, lost: int, left: int
) -> None:
    nodes = slurm([*words, "trainer.max_epochs=4000", "train.patience=null"], nodes=2)
    while not list(workplace.root.glob("outputs/train/*/checkpoints/last.ckpt")):
        assert all(node.code is None for node in nodes), nodes[0].output + nodes[1].output
        time.sleep(0.05)
    nodes[lost].send_signal(signal.SIGKILL)
    assert nodes[left].wait(SECONDS) == 1
    told = nodes[left].output
    assert told.count(f"Rank {lost}") == 1, told
    assert "has ended" in told
    assert "Traceback" not in told
    assert only_run(workplace).info.status == ("FAILED" if left == 0 else "RUNNING")


def test_torchrun_names_the_process_that_is_gone(workplace: Workplace, words: list[str], torchrun: Start) -> None:
    (node,) = torchrun([*words, "trainer.max_epochs=4000", "train.patience=null"], nodes=1, processes=2)
    await_checkpoint(workplace, node)
    (second,) = (one for one in psutil.Process(node.pid).children() if one.environ().get("RANK") == "1")
    second.send_signal(signal.SIGKILL)
    assert node.wait(SECONDS) == 1
    assert output(workplace, 0).count("Rank 1 on") == 1, output(workplace, 0)
    assert only_run(workplace).info.status == "FAILED"


@needs_slurm
def test_srun_starts_a_training(workplace: Workplace, words: list[str], slurm_cluster: dict[str, str]) -> None:
    how = ["--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    done = subprocess.run(
        ["srun", *how, sys.executable, "-m", "graftline", "train", *words],
        cwd=workplace.root,
        env={**workplace.environment(), **slurm_cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout
    assert "Warning" not in done.stdout
    run = only_run(workplace)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [2, 4], "18 images a process in batches of 16"


def test_a_rank_of_the_second_node_is_killed_and_the_run_goes_on(
    workplace: Workplace, words: list[str], torchrun: Start
) -> None:
    endless = [*words, "train.batch_size=3", "trainer.max_epochs=4000", "train.patience=null"]
    nodes = torchrun(endless, nodes=2, processes=2)
    await_checkpoint(workplace, nodes[0])
    ranks = [one for node in nodes for one in psutil.Process(node.pid).children()]
    (last,) = (one for one in ranks if one.environ()["RANK"] == "3")
    last.kill()
    assert [node.wait(SECONDS) for node in nodes] == [1, 1]
    assert not psutil.wait_procs(ranks, timeout=5)[1]
    told = output(workplace, 0) + output(workplace, 1)
    # torchrun ends rank 2 at once, with which it has started rank 3: rank 0 may see that first
    assert len(re.findall(r"Rank [23] on \S+ has ended, for the reason", told)) == 1, told
    assert told.count("has ended, for the reason") == 1, told
    run = only_run(workplace)
    assert run.info.status == "FAILED"
    epochs = 1 + max(metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")) // 3
    nodes = torchrun([f"train.resume={run.info.run_id}", f"trainer.max_epochs={epochs}"], nodes=2, processes=2)
    assert [node.wait(300) for node in nodes] == [0, 0], output(workplace, 0) + output(workplace, 1)
    check_resumed(workplace, run, 3, epochs)


@needs_slurm
def test_a_task_of_srun_is_killed_and_the_run_goes_on(
    workplace: Workplace, words: list[str], slurm_cluster: dict[str, str]
) -> None:
    def srun(*words: str) -> subprocess.Popen[str]:
        how = ["--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
        command = ["env", *(f"{name}={value}" for name, value in slurm_cluster.items()), "srun", *how]
        return _start(workplace, [*command, sys.executable, "-m", "graftline", "train", *words], 0)

    step = srun(*words, "trainer.max_epochs=4000", "train.patience=null")
    await_checkpoint(workplace, step)
    (second,) = (one for one in psutil.process_iter() if is_task(one, "1", slurm_cluster))
    second.kill()
    assert step.wait(SECONDS) != 0
    told = output(workplace, 0)
    assert told.count("has ended, for the reason") == told.count("Rank 1 on ") == 1, told
    run = only_run(workplace)
    assert run.info.status == "FAILED"
    epochs = 1 + max(metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")) // 2
    step = srun(f"train.resume={run.info.run_id}", f"trainer.max_epochs={epochs}")
    assert step.wait(300) == 0, output(workplace, 0)
    check_resumed(workplace, run, 2, epochs)


def is_task(process: psutil.Process, rank: str, slurm_cluster: dict[str, str]) -> bool:
    """Tell whether a process is the training that srun started on this SLURM as a rank."""
    with suppress(psutil.Error):
        variables = process.environ()
        is_ours = variables.get("SLURM_CONF") == slurm_cluster["SLURM_CONF"] and variables.get("SLURM_PROCID") == rank
        return bool(is_ours and process.cmdline()[1:4] == ["-m", "graftline", "train"])
    return False


@needs_slurm
def test_sbatch_starts_the_template(workplace: Workplace, words: list[str], slurm_cluster: dict[str, str]) -> None:
    """As it is, but for one task on each node, whom SLURM gives eight cores and four GPUs that are not there."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sbatch", "--wait", "--ntasks-per-node=1", str(TEMPLATE), *words],
        cwd=workplace.root,
        env={**workplace.environment(), **slurm_cluster, **own},
        capture_output=True,
        text=True,
        timeout=280,
    )
    log = "".join(file.read_text() for file in workplace.root.glob("slurm-*.log"))
    assert done.returncode == 0, done.stderr + log
    run = only_run(workplace)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in workplace.mlflow.get_metric_history(run.info.run_id, "val/loss")]
    assert steps == [2, 4], "18 images a process in batches of 16"
