"""What is told of a cluster that cannot be had, before anything slow; and that Ray is left alone where nobody asks."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from ray_nodes import Nodes, start_nodes

from graftline import ray_cluster, ray_connection
from graftline.errors import UserError
from graftline.execution import available_cores
from graftline.ray_cluster import AHEAD, Homes, RayCluster, Slots
from graftline.training import ranks

HAS_RAY = find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="ray is missing: make test-extras installs it")


@pytest.mark.extras
@needs_ray
def test_an_address_that_does_not_answer_is_told_at_once() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(UserError, match=f"RayCluster.address={address} does not answer"):
            RayCluster(address).check()
    assert time.monotonic() - start < 30


@pytest.mark.extras
@needs_ray
def test_an_address_is_a_host_and_a_port() -> None:
    with pytest.raises(UserError, match="give HOST:PORT"):
        RayCluster("somewhere").check()


@pytest.mark.extras
@needs_ray
@pytest.mark.timeout(300)
def test_a_ray_of_our_own_lets_nobody_in_and_tells_nobody(tmp_path: Path) -> None:
    import ray
    from ray._common.usage import usage_lib

    ray.shutdown()
    RayCluster(num_workers=1).connect()
    assert not usage_lib.usage_stats_enabled()
    started = psutil.Process().children(recursive=True)
    pages = [one for one in started if any(part.endswith("dashboard.py") for part in one.cmdline())]
    assert not [at for one in pages for at in one.net_connections() if at.status == "LISTEN"], "there is no dashboard"

    address = ray.get_runtime_context().gcs_address
    enter = f"import ray; ray.init('{address}')"
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for token, gets_in in (({}, True), ({"RAY_AUTH_TOKEN": 64 * "0"}, False)):
        environment = {**others, "RAY_AUTH_MODE": "token", **token}
        ran = subprocess.run(
            [sys.executable, "-c", enter], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert (ran.returncode == 0) == gets_in, ran.stderr
    assert "token" in ran.stderr.lower()


@pytest.mark.extras
@needs_ray
def test_a_home_that_has_left_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": letter * 56, "Resources": {"CPU": 1.0}} for letter in "ab"]
    monkeypatch.setattr(ray_cluster, "living_nodes", lambda: nodes)
    homes = Homes()
    first = homes.of("a shard").node_id
    assert homes.of("a shard").node_id == first
    nodes = [node for node in nodes if node["NodeID"] != first]
    assert [homes.of("a shard").node_id for _ in range(2)] == [nodes[0]["NodeID"]] * 2


@pytest.mark.extras
@needs_ray
def test_a_task_that_ends_each_worker_is_given_up() -> None:
    with pytest.raises(UserError, match=r"lost a task for good .*: look at ray status, and whether its nodes have eno"):
        list(RayCluster(num_workers=1).map(ranks._end, [(None,)]))


@pytest.mark.extras
@needs_ray
def test_a_task_uses_the_cores_of_its_slot() -> None:
    cluster = RayCluster(num_workers=2)
    assert list(cluster.map(available_cores, [(), ()], slots=Slots(2, cores=1, gpus=0.0))) == [1, 1]
    assert list(cluster.map(available_cores, [()])) == [available_cores()], "of a task that has no slot"


def make_task() -> Callable[[str, int, int], int]:
    """Return a function that is sent to the workers, which do not have this module."""

    def begin(folder: str, number: int, awaited: int) -> int:
        """Say that a task has begun; the first one ends once another one has."""
        Path(folder, str(number)).touch()
        deadline = time.monotonic() + 60
        while number == 0 and not Path(folder, str(awaited)).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return number

    return begin


@pytest.mark.extras
@needs_ray
def test_a_slow_task_lets_no_worker_stand_idle(tmp_path: Path) -> None:
    items = [(str(tmp_path), number, 7) for number in range(8)]
    assert list(RayCluster(num_workers=2).map(make_task(), items, slots=Slots(2, cores=1, gpus=0.0))) == [*range(8)]


@pytest.mark.extras
@needs_ray
def test_few_large_results_wait_for_a_slow_task(tmp_path: Path) -> None:
    taken, most = list[int](), 2 * AHEAD

    def items() -> Iterator[tuple[str, int, int]]:
        for number in range(4 * AHEAD):
            taken.append(number)
            yield str(tmp_path), number, most - 1

    results = RayCluster(num_workers=2).map(make_task(), items())
    assert next(results) == 0
    assert len(taken) == most
    assert [*results] == [*range(1, 4 * AHEAD)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster without nodes, and no other one that this process is connected with."""
    import ray

    ray.shutdown()
    with start_nodes() as nodes:
        yield nodes


@pytest.mark.extras
@needs_ray
@pytest.mark.timeout(300)
def test_a_node_that_has_the_gpu_may_be_smaller(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.add(1, num_cpus=4)
    (with_gpu,) = nodes.add(1, num_cpus=2, num_gpus=1)
    cluster = RayCluster(nodes.address)
    slots = cluster.slots()
    assert slots == Slots(1, cores=2, gpus=1.0)
    assert list(cluster.map(available_cores, [(), ()], slots=slots)) == [min(2, available_cores())] * 2
    nodes.kill(with_gpu)
    monkeypatch.setattr(ray_cluster, "SECONDS_BETWEEN_LOOKS", 0.5)
    monkeypatch.setattr(ray_cluster, "SECONDS_WITHOUT_NODE", 2.0)
    with pytest.raises(UserError, match="no node of the Ray cluster has had 2 cores and a GPU, as each task needs"):
        list(cluster.map(available_cores, [()], slots=slots))


@pytest.mark.extras
@needs_ray
@pytest.mark.timeout(300)
def test_a_node_that_comes_later_gets_tasks(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "SECONDS_BETWEEN_LOOKS", 0.0)
    nodes.add(1)
    taken = list[int]()

    def items() -> Iterator[tuple[str, int, int]]:
        for number in range(20):
            taken.append(number)
            yield str(tmp_path), number, 0

    results = RayCluster(nodes.address).map(make_task(), items())
    assert next(results) == 0
    assert len(taken) == AHEAD
    nodes.add(1)
    assert next(results) == 1
    assert len(taken) == 1 + 2 * AHEAD
    assert [*results] == [*range(2, 20)]


@pytest.mark.extras
@needs_ray
@pytest.mark.timeout(300)
def test_each_connection_is_checked(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes.add(1, num_cpus=3)
    RayCluster(num_workers=1).connect()
    cluster = RayCluster(nodes.address)
    assert [node["CPU"] for node in cluster.resources() if node.get("CPU")] == [3.0], "not the one before"
    ray.shutdown()
    with monkeypatch.context() as patch:
        patch.setattr(ray_connection, "version", lambda _: "another")
        for _ in range(2):
            with pytest.raises(UserError, match="here is another: install it"):
                cluster.connect()
    cluster.connect()
    connected = ray.get_runtime_context().get_job_id()
    cluster.connect()
    assert ray.get_runtime_context().get_job_id() == connected, "once"


@pytest.mark.extras
@needs_ray
@pytest.mark.timeout(300)
def test_a_cluster_of_another_python_is_told(nodes: Nodes) -> None:
    """What Ray keeps of the cluster's versions says another one, as if another Python had started its head."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
    from ray._raylet import GcsClient

    client = GcsClient(address=nodes.address)
    told = json.loads(client.internal_kv_get(CLUSTER_METADATA_KEY, namespace=KV_NAMESPACE_CLUSTER))
    other = json.dumps({**told, "python_version": "3.10.1"}).encode()
    client.internal_kv_put(CLUSTER_METADATA_KEY, other, overwrite=True, namespace=KV_NAMESPACE_CLUSTER)
    with pytest.raises(UserError, match="runs another Python or Ray than this process, which has Python 3"):
        RayCluster(nodes.address).connect()


HEAD, WITH_GPU = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "number", "expected"),
    [
        ([HEAD, WITH_GPU], None, Slots(1, 8, 1.0)),
        ([HEAD, WITH_GPU], 2, Slots(2, 4, 0.5)),  # both on the GPU
        ([WITH_GPU, WITH_GPU], 3, Slots(3, 8, 2 / 3)),  # no task has a third of each
        ([{"CPU": 16.0, "GPU": 4.0}], None, Slots(4, 4, 1.0)),
        ([HEAD, HEAD], None, Slots(2, 16, 0.0)),
        ([HEAD, HEAD], 3, Slots(3, 8, 0.0)),
        ([HEAD], 4, Slots(4, 4, 0.0)),
        ([HEAD, {"CPU": 4.0}], None, Slots(2, 8, 0.0)),  # both on the larger one
        ([{"GPU": 1.0}, {"CPU": 4.0}], None, Slots(1, 4, 0.0)),  # a head that is to run nothing
        ([{"CPU": 2.0}], 5, Slots(5, 1, 0.0)),  # two of them run, the others wait
    ],
)
def test_a_training_gets_what_a_node_has(nodes: list[dict[str, float]], number: int | None, expected: Slots) -> None:
    assert Slots.on(nodes, number) == expected


def test_a_cluster_without_a_core_is_told() -> None:
    with pytest.raises(UserError, match=r"^No node of the Ray cluster has a core: look at ray status\.$"):
        Slots.on([{}])


def test_a_number_of_workers_is_at_least_one() -> None:
    with pytest.raises(UserError, match=r"RayCluster\.num_workers is 0"):
        RayCluster(num_workers=0)


@pytest.mark.skipif(HAS_RAY, reason="ray is there")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install graftline\[ray\]"):
        RayCluster().check()


@pytest.mark.long
def test_ray_is_not_imported_where_it_is_not_used() -> None:
    program = "import sys, graftline.pipeline.train, graftline.features.remote_pass; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
