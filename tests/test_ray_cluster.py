"""What is told of a cluster that cannot be had, before anything slow; and that Ray is left alone where nobody asks."""

import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from graftline.errors import UserError
from graftline.execution import available_cores
from graftline.ray_cluster import RayCluster, Slots
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
def test_a_task_that_ends_each_worker_is_given_up() -> None:
    with pytest.raises(UserError, match=r"lost a task for good .*: look at ray status, and whether its nodes have eno"):
        list(RayCluster(num_workers=1).map(ranks._end, [(None,)]))


@pytest.mark.extras
@needs_ray
def test_a_task_uses_the_cores_of_its_slot() -> None:
    cluster = RayCluster(num_workers=2)
    assert list(cluster.map(available_cores, [(), ()], slots=Slots(2, cores=1, gpus=0.0))) == [1, 1]
    assert list(cluster.map(available_cores, [()])) == [available_cores()], "of a task that has no slot"


def test_a_number_of_workers_is_at_least_one() -> None:
    with pytest.raises(UserError, match=r"RayCluster\.num_workers is 0"):
        RayCluster(num_workers=0)


@pytest.mark.skipif(HAS_RAY, reason="ray is there")
def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install graftline\[ray\]"):
        RayCluster().check()


def test_ray_is_not_imported_where_it_is_not_used() -> None:
    program = "import sys, graftline.pipeline.train, graftline.features.remote_pass; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
