"""The frozen pass on the GPUs of a Ray cluster; the bodies run on CPUs that Ray takes for GPUs, too."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from ray_nodes import Nodes, start_nodes
from torch import Tensor, nn

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features import remote_gpus, remote_pass, segment
from graftline.features.cache import ActivationRequest, Features
from graftline.features.engine import Batches, Engine, gpu_engine
from graftline.features.frozen_pass import ImageBatcher
from graftline.features.remote_gpus import find_gpus, gpu_of_worker, spread_over_gpus
from graftline.features.remote_pass import tasks_of
from graftline.files import sha256_file
from graftline.ray_cluster import AHEAD, RayCluster, Slots, wait_for_one

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is missing: make test-extras installs it")
TWO_GPUS = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees no two GPUs here")]
SECONDS = 60.0  # within which Ray gives back the GPU of what has ended

PREPROCESSING = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
WIDTH = 4 * 16 * 16
TAIL = nn.Linear(WIDTH, 3)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster to which each test adds its nodes."""
    import ray

    ray.shutdown()
    with start_nodes() as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MAX_SHARD_IMAGES", 8)
    monkeypatch.setattr(remote_pass, "BATCHES", 1)


@pytest.fixture
def wanted(color_folder: Path) -> list[ActivationRequest]:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    samples = Samples(paths, np.zeros(len(paths), np.int64), None, [sha256_file(Path(path)) for path in paths])
    return [ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {"network": "conv"})]


def make_trunk() -> nn.Module:
    """Return a trunk whose activations float16 cannot hold, so that nothing is compiled, which takes a minute."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    convolution.weight.data *= 1e6
    return nn.Sequential(convolution, nn.ReLU(), nn.Flatten())


def open_all(folder: Path, wanted: list[ActivationRequest], make: Callable[[Tensor], Engine]) -> np.ndarray:
    (opened,) = Features(directory=str(folder)).open(wanted, make, TAIL, WIDTH)
    return np.asarray(opened.array)


def wait_for_gpus(number: int) -> None:
    """Wait until so many GPUs of the cluster are free."""
    import ray

    deadline = time.monotonic() + SECONDS
    while (free := ray.available_resources().get("GPU", 0)) != number:
        assert time.monotonic() < deadline, f"{free} GPUs are free"
        time.sleep(0.1)


@pytest.mark.extras
@needs_ray
@pytest.mark.parametrize("on", ["cpu", pytest.param("gpu", marks=TWO_GPUS)])
def test_gpus_give_what_one_gives(nodes: Nodes, wanted: list[ActivationRequest], tmp_path: Path, on: str) -> None:
    nodes.add(1, num_cpus=2, num_gpus=2)
    ray_cluster, trunk = RayCluster(nodes.address), make_trunk()
    slots = ray_cluster.gpu_slots()
    assert slots == Slots(2, 1, 1.0)
    there, here = (Execution, Execution()) if on == "cpu" else (gpu_of_worker, Execution("cuda:0"))

    def spread(images: Tensor) -> Engine:
        return spread_over_gpus(ray_cluster, slots, trunk, images, WIDTH, there)

    actual = open_all(tmp_path / "spread", wanted, spread)
    wait_for_gpus(2)
    expected = open_all(tmp_path / "here", wanted, lambda images: gpu_engine(trunk.eval(), images, here))
    np.testing.assert_array_equal(actual, expected)
    nodes.remove_all()


@pytest.mark.extras
@needs_ray
def test_a_node_that_is_killed_changes_nothing(nodes: Nodes, wanted: list[ActivationRequest], tmp_path: Path) -> None:
    added, places = nodes.add(2, num_gpus=1), tmp_path / "places"
    places.mkdir()
    ray_cluster, trunk = RayCluster(nodes.address), make_trunk()
    taken = given = 0

    def there() -> Execution:
        import ray

        (places / ray.get_runtime_context().get_node_id()).touch()
        return Execution()

    def spread(images: Tensor) -> Engine:
        engine = spread_over_gpus(ray_cluster, Slots(2, 1, 1.0), trunk, images, WIDTH, there)
        assert engine.run_all is not None
        run_all = engine.run_all

        def take(batches: Batches) -> Batches:
            nonlocal taken
            for batch in batches:
                taken += 1
                yield batch

        def run(batches: Batches) -> Iterator[np.ndarray]:
            nonlocal given
            for activations in run_all(take(batches)):
                assert taken - given <= 2 * AHEAD, "activations of few batches wait for their turn"
                yield activations
                given += 1
                if given == 3:  # of the GPU that began first, which has been given more
                    first = min(places.iterdir(), key=lambda place: place.stat().st_mtime).name
                    nodes.kill(next(node for node in added if node.node_id == first))

        return replace(engine, run_all=run)

    actual = open_all(tmp_path / "spread", wanted, spread)
    assert given == -(-60 // 8), "no batch twice"
    expected = open_all(tmp_path / "here", wanted, lambda images: gpu_engine(trunk.eval(), images, Execution()))
    np.testing.assert_array_equal(actual, expected)
    assert len([*places.iterdir()]) == 2, "the other one has gone on"
    wait_for_gpus(1)
    nodes.remove_all()


@pytest.mark.extras
@needs_ray
def test_two_processes_fill_a_cache_with_one_gpu(
    nodes: Nodes, wanted: list[ActivationRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one holds the GPU when the second one claims shards; threads stand for them."""
    monkeypatch.setattr(remote_gpus, "SECONDS_TO_BEGIN", 0.5)  # after which the second one waits on
    nodes.add(1, num_gpus=1)
    claimed, results = Event(), dict[str, np.ndarray]()

    def spread(images: Tensor) -> Engine:
        slots = Slots(1, 1, 1.0)
        return spread_over_gpus(RayCluster(nodes.address), slots, make_trunk(), images, WIDTH, Execution)

    def spread_first(images: Tensor) -> Engine:
        engine = spread(images)
        assert engine.run_all is not None
        run_all = engine.run_all

        def run(batches: Batches) -> Iterator[np.ndarray]:
            for number, activations in enumerate(run_all(batches)):
                if number == 1:  # the first shard is on the disk
                    second.start()
                    assert claimed.wait(SECONDS)
                yield activations

        return replace(engine, run_all=run)

    def spread_second(images: Tensor) -> Engine:
        claimed.set()  # the shard whose images these are
        return spread(images)

    def fill(name: str, make: Callable[[Tensor], Engine]) -> None:
        results[name] = open_all(tmp_path / "cache", wanted, make)

    first = Thread(target=fill, args=("first", spread_first), daemon=True)
    second = Thread(target=fill, args=("second", spread_second), daemon=True)
    first.start()
    first.join(SECONDS)
    second.join(SECONDS)
    np.testing.assert_array_equal(results["first"], results["second"])
    wait_for_gpus(1)
    nodes.remove_all()


@pytest.mark.extras
@needs_ray
def test_no_more_gpus_are_taken_than_there_are_tasks(nodes: Nodes, wanted: list[ActivationRequest]) -> None:
    nodes.add(1, num_cpus=3, num_gpus=3)
    images = ImageBatcher(wanted[0])
    slots = Slots(3, 1, 1.0)
    engine = spread_over_gpus(RayCluster(nodes.address), slots, make_trunk(), images([0]), WIDTH, Execution)
    assert engine.run_all is not None
    assert [len(activations) for activations in engine.run_all([(images, [0, 1])])] == [2]
    time.sleep(2.0)  # in which Ray would have given GPUs to others that were started
    wait_for_gpus(2)
    engine.end()
    wait_for_gpus(3)
    nodes.remove_all()


@pytest.mark.extras
@needs_ray
def test_a_gpu_that_cannot_do_as_the_first_one_is_told(
    nodes: Nodes, wanted: list[ActivationRequest], tmp_path: Path
) -> None:
    """The first one takes float16, which is too inexact for the second one; neither compiles, which takes a minute."""
    nodes.add(1, num_cpus=2, num_gpus=2)
    mark = tmp_path / "first"

    def there() -> Execution:
        from graftline.features import engine

        vars(engine)["MAX_RELATIVE_DIFFERENCE"] = 0.0 if mark.exists() else 1.0
        vars(torch)["compile"] = lambda *_, **__: None
        mark.touch()
        return Execution()

    def batches() -> Iterator[tuple[ImageBatcher, list[int]]]:
        for _ in range(3000):  # until the second one has begun
            time.sleep(0.1)
            yield images, [0, 1]

    images = ImageBatcher(wanted[0])
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten())
    made = spread_over_gpus(RayCluster(nodes.address), Slots(2, 1, 1.0), trunk, images([0, 1]), WIDTH, there)
    assert made.run_all is not None
    with pytest.raises(
        UserError, match="in float32, but cannot run it in float16, as another one does: use GPUs of one"
    ):
        deque(made.run_all(batches()), maxlen=0)
    wait_for_gpus(2)
    nodes.remove_all()


@pytest.mark.extras
@needs_ray
def test_it_says_that_it_waits_for_a_gpu_and_what_went_wrong_first(
    nodes: Nodes,
    wanted: list[ActivationRequest],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import ray

    def fail(_: Any) -> None:
        raise ray.exceptions.RaySystemError("The connection is gone.")

    monkeypatch.setattr(wait_for_one.__module__ + ".SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setattr(wait_for_one.__module__ + ".SECONDS_WITHOUT_NODE", 0.1)
    monkeypatch.setattr(remote_gpus, "SECONDS_TO_BEGIN", 0.1)
    monkeypatch.setattr(ray, "kill", fail)
    images = ImageBatcher(wanted[0])
    made = spread_over_gpus(RayCluster(nodes.address), Slots(1, 1, 1.0), make_trunk(), images([0]), WIDTH)
    assert made.run_all is not None
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(UserError, match="no node of the Ray cluster has had a core and a GPU"),
    ):
        deque(made.run_all([(images, [0, 1])]), maxlen=0)
    assert sum("has started no worker with a GPU" in message for message in caplog.messages) == 1


CPU, GPU = Execution(), Execution("cuda:0")
THERE = "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("nodes", "cluster", "execution", "number"),
    [
        ([{"CPU": 8.0}], RayCluster(THERE), CPU, None),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 1.0}], RayCluster(THERE), CPU, 1),
        ([{"CPU": 8.0, "GPU": 1.0}], RayCluster(THERE), GPU, None),  # its own does as well
        ([{"CPU": 8.0, "GPU": 4.0}], RayCluster(), GPU, 4),
        ([{"CPU": 8.0, "GPU": 4.0}], RayCluster(), replace(GPU, world_size=4), None),  # each of them has one
        ([{"CPU": 8.0, "GPU": 4.0}], RayCluster(), CPU, None),  # torch sees none of them
        ([{"CPU": 8.0, "GPU": 4.0}], RayCluster(THERE), Execution.local("cpu"), None),
        ([{"CPU": 8.0, "GPU": 4.0}], RayCluster(THERE, num_workers=2), CPU, 2),
        ([{"CPU": 8.0, "GPU": 2.0}], RayCluster(THERE, num_workers=8), CPU, 2),
        ([{"GPU": 2.0}, {"CPU": 8.0}], RayCluster(THERE), CPU, None),  # no core to decode
    ],
)
def test_gpus_are_used_where_there_are_more(
    nodes: list[dict[str, float]],
    cluster: RayCluster,
    execution: Execution,
    number: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RayCluster, "resources", lambda _: nodes)
    slots = find_gpus(cluster, execution)
    assert (None if slots is None else slots.number) == number
    assert slots is None or slots.gpus == 1.0


@pytest.mark.parametrize(("place", "most", "sizes"), [("/shared", 9, [4, 4, 2]), ("https://host/0.tar", 9, [9, 1])])
def test_a_task_has_what_there_is_of_a_shard_at_a_url(
    place: str, most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_pass, "BATCHES", 4)
    monkeypatch.setattr(RayCluster, "check_paths", lambda *_: None)
    paths = [f"{place}/{512 * number:011}+3+1f2e3d4c/1.jpg" for number in range(20)]
    samples = Samples(paths, np.zeros(20, np.int64), None, ["0" * 64] * 20)
    images = ImageBatcher(ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {}))
    batches: Any = [(images, [row, row + 1]) for row in range(0, 20, 2)]
    tasks = list(tasks_of(RayCluster(), batches, most))
    assert [len(of_task) for _, of_task in tasks] == sizes
    assert [path for request, _ in tasks for path in request.samples.paths] == paths
