"""The frozen pass on the GPUs of a Ray cluster: an actor on each of them keeps the trunk there, and is given tasks.

A batch has the images that it would have on a GPU here, and all GPUs run the trunk in the way that the first of them
has found sound: so are the activations, bit for bit, those of one GPU, on GPUs of one kind.

Actors, not tasks: Ray ends a process after each task on a GPU, as the next one may be given another GPU, which torch
would not notice. An actor keeps its process and its GPU, and leaves nothing on it when it ends.

Letters: B batch, C channels, H height, W width, F numbers per image that the trunk gives.
"""

import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor, nn

from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features.engine import GPU_BATCH, Batches, Engine, HowOnGpu, gpu_engine
from graftline.features.frozen_pass import ActivationRequest, run
from graftline.features.remote_pass import AHEAD_BYTES, batches_of, tasks_of
from graftline.ray_cluster import AHEAD, MOST_RETRIES, SECONDS_BETWEEN_LOOKS, RayCluster, Slots, wait_for_one
from graftline.ray_connection import OBJECT_STORE_BYTES, LostError, get_result

logger = logging.getLogger(__name__)

CALLS = 2  # tasks that a GPU is given at a time: the images of one are decoded while it computes the other
SECONDS_TO_BEGIN = 60.0  # of the first of them, before it is said that we wait
TASK_BYTES = 64_000_000  # of activations of a task, unless a single batch has more

Task = tuple[ActivationRequest, list[int]]  # a request, and the sizes of the batches into which it is divided


def find_gpus(ray_cluster: RayCluster, execution: Execution) -> Slots | None:
    """Return the GPUs that are to do the frozen pass; None: it is done without those of the cluster.

    Args:
        ray_cluster: a Ray of this machine's own has only GPUs that this process sees, too.
        execution: where it would be done without a cluster: on GPUs of its own, if these are as many.
    """
    if execution.cpu_only or not (execution.is_cuda or ray_cluster.address is not None):
        return None
    slots, own = ray_cluster.gpu_slots(), execution.world_size if execution.is_cuda else 0
    return slots if slots is not None and slots.number > own else None


def gpu_of_worker() -> Execution:
    """Return where a worker runs that Ray has given a GPU.

    Raises:
        UserError: torch sees none.
    """
    execution = Execution.local()
    if not execution.is_cuda:
        raise UserError(
            f"Ray says that node {socket.gethostname()} has a GPU, but torch sees none there: give it a torch for its "
            "GPU, start Ray there with --num-gpus=0, or take accelerator=cpu, with which cores do the frozen pass."
        )
    return execution


def spread_over_gpus(
    ray_cluster: RayCluster,
    slots: Slots,
    trunk: nn.Module,
    images: Tensor,
    width: int,
    execution: Callable[[], Execution] = gpu_of_worker,
) -> Engine:
    """Return an engine whose batches are computed by the GPUs of a cluster.

    Args:
        ray_cluster: the cluster.
        slots: how many GPUs, and what a worker has beside its own.
        trunk: on the CPU; put into eval mode here.
        images: the first real ones (B, C, H, W), on which a GPU compares the ways to run it.
        width: F.
        execution: returns, on a worker, where it runs.
    """
    limit = OBJECT_STORE_BYTES // 2 if ray_cluster.address is None else AHEAD_BYTES
    ahead, most = _limit_tasks(slots.number, 4 * width * GPU_BATCH, limit)
    devices = _Devices(ray_cluster, slots, ahead, trunk.eval(), images, execution)

    def run_all(batches: Batches) -> Iterator[np.ndarray]:
        for activations in devices.run(tasks_of(ray_cluster, batches, most)):
            yield from activations

    def run_here(_: Tensor) -> np.ndarray:
        raise NotImplementedError("Images are decoded where the GPUs are.")

    runs_on = f"torch on GPUs of the Ray cluster, {slots.number} at a time"
    return Engine(run_here, runs_on, slots.number, GPU_BATCH, run_all=run_all, end=devices.end)


def _limit_tasks(gpus: int, batch_bytes: int, limit: int) -> tuple[int, int]:
    """Return how many tasks per GPU are under way, and how many batches a task has at most.

    Their activations come to no more than a limit in bytes, unless a GPU that always has something to do needs more.

    >>> _limit_tasks(8, 1_000_000, 2_000_000_000), _limit_tasks(64, 1_000_000, 2_000_000_000)
    ((3, 64), (3, 10))
    >>> _limit_tasks(64, 32_000_000, 2_000_000_000)
    (2, 1)
    """
    ahead = min(AHEAD, max(CALLS, limit // (gpus * batch_bytes)))
    return ahead, max(1, min(TASK_BYTES, limit // (gpus * ahead)) // batch_bytes)


class _Device:
    """Keeps the trunk on a GPU; an actor of Ray's."""

    def prepare(
        self, trunk: nn.Module, images: Tensor, execution: Callable[[], Execution], how: HowOnGpu | None
    ) -> HowOnGpu | None:
        """Take the trunk, and return how it is run.

        Raises:
            UserError: there is no GPU, or it cannot run it so.
        """
        self._engine = gpu_engine(trunk, images, execution(), how)
        return self._engine.how

    def compute(self, request: ActivationRequest, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return the activations (B, F) float32 of each batch of a request."""
        return list(run(self._engine, batches_of(request, sizes)))


class _Devices:
    """Actors with a GPU each, and what they have been given to do. Those that are lost are replaced."""

    def __init__(
        self,
        ray_cluster: RayCluster,
        slots: Slots,
        ahead: int,
        trunk: nn.Module,
        images: Tensor,
        execution: Callable[[], Execution],
    ) -> None:
        self._ray_cluster = ray_cluster
        self._slots = slots
        self._ahead = ahead  # tasks per GPU that are under way, those included whose activations wait for their turn
        self._given = ray_cluster.share(trunk), images, execution
        self._how: HowOnGpu | None = None  # once the first of them is ready
        self._devices: list[Any] = []
        self._calls: dict[Any, tuple[Any, int | None]] = {}  # → of which of them, the task's number; None: it prepares
        self._lost = Counter[int | None]()

    def run(self, tasks: Iterable[Task]) -> Iterator[list[np.ndarray]]:
        """Yield the activations of each task's batches, in order.

        Raises:
            UserError: a task raised it, or was lost for good, or no node has a GPU any more.
        """
        waiting = enumerate(tasks)
        begun, due, ended = dict[int, Task](), deque[int](), dict[int, list[np.ndarray]]()
        self._lost.clear()
        look_at = 0.0
        try:
            while True:
                if time.monotonic() >= look_at:  # nodes may have come or gone
                    self._slots = self._ray_cluster.gpu_slots() or self._slots
                    look_at = time.monotonic() + SECONDS_BETWEEN_LOOKS
                while len(begun) < self._ahead * self._slots.number and (item := next(waiting, None)) is not None:
                    begun[item[0]] = item[1]
                    due.append(item[0])
                if not begun:
                    return
                self._start(len(begun) - len(ended))
                for device in self._free():
                    if not due:
                        break
                    number = due.popleft()
                    self._calls[device.compute.remote(*begun[number])] = device, number
                first = next(iter(begun))
                if first in ended:
                    yield ended.pop(first)
                    del begun[first]
                elif (one := self._wait()) is not None:
                    number, activations = one
                    if activations is None:
                        due.appendleft(number)
                    else:
                        ended[number] = activations
        finally:
            if begun:
                self.end()

    def _start(self, tasks: int) -> None:
        """Start those that are missing for some tasks; until the first one knows how to run the trunk, only that."""
        import ray

        number = 1 if self._how is None else min(self._slots.number, tasks)  # each costs a start, and may compile
        missing: list[Any] = [
            ray.remote(_Device).options(**self._slots.options, max_concurrency=CALLS).remote()
            for _ in range(number - len(self._devices))
        ]
        begun = [device.__ray_ready__.remote() for device in missing]
        self._calls |= {device.prepare.remote(*self._given, self._how): (device, None) for device in missing}
        is_first = missing and not self._devices
        self._devices += missing
        if is_first and not ray.wait(begun, timeout=SECONDS_TO_BEGIN)[0]:
            logger.info(
                f"The Ray cluster has started no worker with a GPU for {SECONDS_TO_BEGIN:.0f} s: others may have taken "
                "all of them. Waiting for one."
            )

    def _free(self) -> Iterator[Any]:
        """Yield each of them as often as it can be given a task, those first that have none."""
        for most in range(CALLS):
            for device in self._devices:
                given = [number for other, number in self._calls.values() if other is device]
                if len(given) <= most and None not in given:
                    yield device

    def _wait(self) -> tuple[int, list[np.ndarray] | None] | None:
        """Wait until one call has ended; returns the task's number and what it has given, None if it was lost."""
        (ended,) = set(self._calls) - set(wait_for_one([*self._calls], self._slots))
        device, number = self._calls.pop(ended)
        try:
            result = get_result(ended)
        except LostError:
            self._lost[number] += 1
            if self._lost[number] > MOST_RETRIES:
                raise
            self._devices = [other for other in self._devices if other is not device]
            _kill(device)
            return None if number is None else (number, None)
        if number is not None:
            return number, result
        if self._how is None:
            logger.info(f"Each GPU runs it {result}, as the first one does.")
        self._how = result
        return None

    def end(self) -> None:
        """End all of them, so that others can have their GPUs, until they are to do something again."""
        devices, self._devices, self._calls = self._devices, [], {}
        for device in devices:
            _kill(device)


def _kill(device: Any) -> None:
    """End an actor, which gives back its GPU; where Ray itself cannot, what went wrong before is what is to be told."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.kill(device)
