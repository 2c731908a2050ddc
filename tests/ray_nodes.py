"""A Ray cluster of several nodes on this machine, for tests that kill one of them."""

import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

MEMORY = 100_000_000  # bytes of each node's object store
QUICK = {  # notice within seconds that a node is gone
    "health_check_failure_threshold": 3,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_initial_delay_ms": 0,
}
SECONDS = 60.0  # within which a task begins
# Ray gives up a node whose helpers do not name their ports within 15 s, which can be short beside other tests: they
# are given some, of those that neither Linux nor Ray hands out.
PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
FIRST_PORT, LAST_PORT = 20_000, 32_000


@dataclass(frozen=True)
class Nodes:
    """The nodes of a cluster of Ray's, but for its head, which has no cores."""

    cluster: Any

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, number: int, num_cpus: int = 1, num_gpus: int = 0) -> list[Any]:
        """Add nodes, each of so many cores and GPUs, whether or not this machine has them."""
        own = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        nodes = [self.cluster.add_node(**own, **_settings()) for _ in range(number)]
        self.cluster.wait_for_nodes()
        return nodes

    def remove_all(self) -> None:
        for node in [*self.cluster.worker_nodes]:
            self.cluster.remove_node(node, allow_graceful=False)

    def find_running(self, task: str) -> tuple[Any, psutil.Process]:
        """Return a node and the worker of it that runs a task, which is named by its function."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for node in self.cluster.worker_nodes:
                for process in _raylet(node).children(recursive=True):
                    with suppress(psutil.Error):
                        if f"ray::{task}" in " ".join(process.cmdline()):
                            return node, process
        raise AssertionError(f"No worker has run {task} within {SECONDS:.0f} s.")

    @contextmanager
    def without(self, folder: Path) -> Iterator[None]:
        """Add a node of one core, the last one, to which a folder is empty, as where no file system is shared."""
        if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode != 0:
            pytest.skip("this machine lets nobody have file systems of his own")
        ports = [f"--{name.replace('_', '-')}={_free_port()}" for name in PORTS if name != "metrics_agent_port"]
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={self.address}", "--block"]
        start += ["--num-cpus=1", f"--object-store-memory={MEMORY}", "--disable-usage-stats", *ports]
        script = 'mount -t tmpfs none "$1" && shift && exec "$@"'
        process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script, "sh", str(folder), *start])
        try:
            deadline, before = time.monotonic() + SECONDS, self._count_living()
            while self._count_living() == before:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield
        finally:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()

    def _count_living(self) -> int:
        return sum(node["Alive"] for node in self.cluster.global_state.node_table())

    def kill(self, node: Any) -> None:
        """Kill a node and all its workers with SIGKILL, as where the power fails."""
        raylet = _raylet(node)
        processes = [raylet, *raylet.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)


def _settings() -> dict[str, Any]:
    return {"object_store_memory": MEMORY, **{name: _free_port() for name in PORTS}}


def _free_port() -> int:
    while True:
        port = FIRST_PORT + secrets.randbelow(LAST_PORT - FIRST_PORT)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def _raylet(node: Any) -> psutil.Process:
    return psutil.Process(node.all_processes["raylet"][0].process.pid)


@contextmanager
def start_nodes() -> Iterator[Nodes]:
    """Start a cluster whose head has no cores, so that each test adds the nodes that it needs."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, **_settings()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()
