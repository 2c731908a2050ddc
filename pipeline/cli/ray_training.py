"""One training whose processes a Ray cluster starts, and starts again where one is lost (``trainer=ray``).

Ray Train's ``TorchTrainer`` (https://docs.ray.io/en/latest/train/train.html) finds room for all processes at a time and
watches them. It has a worker on each node, which starts as many processes of ours as those of the other nodes, as
torchrun does: Ray calls what it is given in a thread, where nobody hears a signal. So nothing is different in the
training itself, and Ray's own Lightning code, which would prefer a package called lightning to pytorch_lightning, is
left alone.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from graftline.console import say
from graftline.errors import UserError, first_line
from graftline.pipeline.cli.composed_stage import ComposedStage
from graftline.pipeline.cli.errors import EXIT_DONE, EXIT_MISTAKE
from graftline.pipeline.cli.ray_sweep import RemoteJob, first_file, run_job, set_variables
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.processes import end_with_parent
from graftline.ray_cluster import RayCluster
from graftline.ray_connection import check_lightning
from graftline.training.launch import RAY

STRATEGY = "ray"  # what conf/trainer/ray.yaml calls it
MAX_FAILURES = 3  # lost processes, each of which starts all of them again from the last checkpoint
MAX_WAITS = 5  # of a minute each, for room for all processes where a node was lost: Ray would wait for ever
SECONDS_TO_END = 30.0  # that the first process may take to notice that it is to end
SECONDS_TO_FOLLOW = 0.5
STOP = "stop"


@dataclass(frozen=True)
class RayTraining:
    """A training that Ray starts.

    Attributes:
        job: the training.
        cluster: on which.
        processes: how many.
    """

    job: ComposedStage
    cluster: RayCluster
    processes: int

    @classmethod
    def of(cls, job: ComposedStage) -> "RayTraining | None":
        """Return that of a stage; None if it is not one.

        Raises:
            UserError: a number of processes that cannot be, another stage than train, or a second Lightning.
        """
        trainer = OmegaConf.select(job.config, "trainer", default={})
        if trainer.get("strategy") != STRATEGY:
            return None
        if job.name != "train":
            raise UserError(f"trainer=ray is for {program()} train: leave it out of {program()} {job.name}.")
        check_lightning()
        processes = trainer.get("devices")
        if not isinstance(processes, int) or processes < 1:
            raise UserError(f"trainer.devices is {processes}: give trainer=ray the number of processes, at least 1.")
        cluster = instantiate(job.config.cluster)
        return cls(job, cluster if isinstance(cluster, RayCluster) else RayCluster(), processes)

    def run(self) -> int:
        """Train, and tell here what the first process tells; returns the exit code.

        Raises:
            UserError: there is no room for the processes, or too many of them were lost.
        """
        self.cluster.check()
        kind, per_node = self._find_room()
        remote = self._remote(earlier=self._find_earlier())
        self.cluster.check_shared(self.job.directory, [Path.cwd(), *first_file(self.job)])
        result = RunDirectory(self.job.directory).result
        result.unlink(missing_ok=True)  # of an earlier command with the same directory
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        say(f"{self.processes} processes, started by Ray.")
        trainer = TorchTrainer(
            partial(train_along, remote, per_node),  # not as train_loop_config, which Ray shows: it may have a password
            scaling_config=ScalingConfig(
                num_workers=self.processes // per_node,
                use_gpu=kind == "GPU",
                resources_per_worker={kind: per_node},
                placement_strategy="STRICT_SPREAD",
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(self.job.directory.absolute()),
                failure_config=FailureConfig(MAX_FAILURES, controller_failure_limit=MAX_WAITS),
            ),
        )
        with _removed(self._stop.parent), _followed(_told(self.job.directory)):
            try:
                _wait_for(trainer.fit, self._stop)
            except Exception as error:  # Ray's, of many kinds
                raise UserError(
                    f"Ray gave the training up ({first_line(getattr(error, '__cause__', None) or error)}): look at ray "
                    "status, and at log.txt in the output directory; train.resume goes on with the run, on fewer "
                    "processes too (trainer.devices)."
                ) from error
        return EXIT_DONE if result.exists() else EXIT_MISTAKE

    @property
    def _stop(self) -> Path:
        """The file that tells the first process, wherever it runs, that the user wants no more."""
        return self.job.directory.absolute() / "ray" / STOP

    def _find_room(self) -> tuple[str, int]:
        """Return what each process gets, ``GPU`` or ``CPU``, and how many of them each node has.

        Raises:
            UserError: the cluster has no room for so many, for which Ray would wait for ever.
        """
        resources = self.cluster.resources()
        accelerator = self.job.config.trainer.get("accelerator", "auto")
        has_gpu = any(node.get("GPU", 0) > 0 for node in resources)
        kind = "GPU" if accelerator == "gpu" or (accelerator == "auto" and has_gpu) else "CPU"
        rooms = [room for node in resources if (room := int(node.get(kind, 0))) > 0]
        found = even_numbers(rooms)
        if self.processes not in found:
            fewer = sorted(number for number in found if number < self.processes)
            more = sorted(number for number in found if number > self.processes)
            ways = [*map(str, fewer[-1:] + more[:1]), "another cluster as cluster.address"]
            raise UserError(
                f"trainer.devices is {self.processes}, but the Ray cluster has {sum(rooms)} {kind}s on {len(rooms)} "
                f"nodes, each of which takes the same number: give {' or '.join(ways)}."
            )
        return kind, found[self.processes]

    def _find_earlier(self) -> list[str]:
        """Return the runs in MLflow that earlier commands have left in the directory: this one is not theirs."""
        if not self.job.directory.exists():
            return []
        runs: list[str] = instantiate(self.job.config.tracking).find_runs(self.job.directory)
        return runs

    def _remote(self, earlier: Sequence[str]) -> RemoteJob:
        """Return what the processes need to know of the training."""
        several = self.processes > 1
        changes = {"trainer.strategy": "ddp" if several else "auto", "trainer.devices": "auto" if several else 1}
        return RemoteJob.of(self.job, changes, earlier)


def even_numbers(rooms: Sequence[int]) -> dict[int, int]:
    """Return which numbers of processes can be divided evenly among nodes.

    Args:
        rooms: for how many processes each node has room.

    Returns:
        Processes in all → processes on each node, of as few nodes as possible.

    >>> even_numbers([4, 4])
    {1: 1, 2: 2, 4: 4, 3: 3, 6: 3, 8: 4}
    """
    return {
        per_node * nodes: per_node
        for per_node in range(1, max(rooms, default=0) + 1)
        for nodes in range(1, sum(room >= per_node for room in rooms) + 1)
    }


def train_along(remote: RemoteJob, per_node: int) -> None:
    """Start the processes of a node and wait for them; runs on a worker of Ray Train, of which each node has one.

    Args:
        remote: the training.
        per_node: how many processes each node has.

    Raises:
        RuntimeError: one was killed; Ray starts all anew then.
    """
    from ray.train import get_context

    context = get_context()
    node = context.get_world_rank()
    set_variables(remote.variables)  # which the processes inherit
    host, port = _rendezvous()
    names = {
        RAY: 1,
        "WORLD_SIZE": per_node * context.get_world_size(),
        "LOCAL_WORLD_SIZE": per_node,
        "NODE_RANK": node,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }
    processes: list[subprocess.Popen[str]] = []
    try:
        with _told(Path(remote.directory)).open("a", encoding="utf-8") as told:
            for number in range(per_node):
                of_rank = {**names, "RANK": per_node * node + number, "LOCAL_RANK": number}
                processes.append(_start(remote, of_rank, told))
        while not _lost(processes) and any(process.poll() is None for process in processes):
            time.sleep(SECONDS_TO_FOLLOW)
        lost = _lost(processes)
    finally:
        for process in processes:
            process.kill()
    if lost:
        signum = -processes[lost[0]].returncode
        raise RuntimeError(
            f"the process of rank {per_node * node + lost[0]} on {socket.gethostname()} was ended by signal {signum}"
        )


def _lost(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Return the numbers of those that were ended by a signal."""
    return [number for number, process in enumerate(processes) if (process.poll() or 0) < 0]


def _start(remote: RemoteJob, names: Mapping[str, object], told: IO[str]) -> subprocess.Popen[str]:
    """Start one of the processes, with these variables."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=told,
        stderr=told,
        cwd=remote.folder,
        env={**os.environ, **{name: str(value) for name, value in names.items()}},
        text=True,
    )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(json.dumps(asdict(remote)))
    return process


def _told(directory: Path) -> Path:
    """Return the file that has what the processes print, as they do."""
    return directory.absolute() / "ray" / "told.txt"


def _rendezvous() -> tuple[str, int]:
    """Return an address for the processes to meet at: rank 0's, which tells the others in the group that Ray formed."""
    import torch.distributed as dist

    with socket.socket() as listener:
        listener.bind(("", 0))
        told: list[Any] = [(os.environ["MASTER_ADDR"], listener.getsockname()[1])]
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    host, port = told[0]
    return host, port


def main() -> int:
    """Be one of the processes; returns the exit code."""
    from graftline.pipeline.__main__ import main as by_command

    remote = RemoteJob(**json.loads(sys.stdin.read()))
    directory = Path(remote.directory)
    end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray has its processes ignore it
    threading.Thread(target=_listen, args=(directory / "ray" / STOP,), daemon=True).start()
    if os.environ["RANK"] != "0":
        return by_command([])  # it hears of rank 0 what there is to do
    return run_job(remote).code


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove a folder, of Ray's own notes, after the block; one of an earlier start too."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _listen(stop: Path) -> None:
    """Interrupt this process as soon as the user wants no more."""
    while not stop.exists():
        time.sleep(SECONDS_TO_FOLLOW)
    os.kill(os.getpid(), signal.SIGINT)


def _wait_for(fit: Callable[[], object], stop: Path) -> None:
    """Wait for Ray, which takes Ctrl-C for itself where it is called in the main thread, and would kill the processes.

    Raises:
        KeyboardInterrupt: the user wants no more; the first process was told, and has ended or had its time to.
    """
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while not future.done():
            wait([future], timeout=SECONDS_TO_FOLLOW)
    except KeyboardInterrupt:
        stop.parent.mkdir(parents=True, exist_ok=True)
        stop.touch()
        wait([future], timeout=SECONDS_TO_END)
        raise
    future.result()


@contextmanager
def _followed(file: Path) -> Iterator[None]:
    """Print what is written to a log during the block."""
    done = threading.Event()

    def follow() -> None:
        position = 0
        while True:
            last = done.is_set()
            if file.exists():
                with file.open("rb") as log:
                    log.seek(position)
                    content = log.read()
                content = content if last else content[: content.rfind(b"\n") + 1]  # it may end within a character
                position += len(content)
                if content:
                    say(content.decode("utf-8", errors="replace").rstrip("\n"))
            if last:
                return
            done.wait(SECONDS_TO_FOLLOW)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
