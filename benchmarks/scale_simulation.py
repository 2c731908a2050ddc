"""Simulate the frozen pass and the fit on many workers: `python benchmarks/scale_simulation.py`.

The frozen pass: workers take tasks of some images from a queue. A task reads its images from a storage that all share,
decodes them and runs the trunk. A worker may be slow for a task (straggler) or be lost, whose task is then done again.
The fit: all workers take a step together, as the slowest allows, and exchange gradients by a ring (Patarasu and Yuan
2009: 2 (N - 1) / N times their size passes each link). A lost worker takes all back to the last epoch.

With --check, the simulation is held against runs on this machine: tasks that sleep, some of them for longer and one
that is lost, on 8 and 64 workers; the frozen pass of EfficientNet-Lite0 in 1 and in 2 processes; the fit of a head in 2
processes of gloo, and one whose steps sleep in 4, in both of which a step in twenty takes three times as long.
"""

import argparse
import heapq
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np

from graftline.console import print_table

IMAGES_PER_TASK = 64  # as the frozen pass on Ray
DETECTED = 5.0  # s until a lost worker is noticed, and another has its place: assumed


@dataclass(frozen=True)
class Work:
    """What an image takes; all of it is assumed."""

    read_mb: float = 0.1  # a photograph of 100 kB
    decode_s: float = 0.005  # of a core
    trunk_s: float = 0.010  # of a core; a GPU takes 0.0004
    head_s: float = 0.000_05  # of the fit on cached activations, forward and backward
    parameters_mb: float = 0.2  # that are trained: gradients of a head, 1,280 numbers for each of 40 classes


@dataclass(frozen=True)
class Cluster:
    """What the work is done by; all of it is assumed."""

    workers: int
    storage_mb_s: float = 2_000.0  # for all together
    worker_mb_s: float = 500.0  # for one at most
    link_mb_s: float = 1_000.0
    latency_s: float = 0.000_1
    straggling: float = 0.01  # share of the tasks or steps that take `slow` times as long
    slow: float = 3.0
    lost_per_hour: float = 0.001  # of each worker


def simulate_pass(images: int, work: Work, cluster: Cluster, seed: int = 0) -> tuple[float, int]:
    """Return the seconds of a frozen pass, and how many tasks were done again."""
    count = min(cluster.workers, -(-images // IMAGES_PER_TASK))
    rate = min(cluster.worker_mb_s, cluster.storage_mb_s / count)
    size = IMAGES_PER_TASK * (work.read_mb / rate + work.decode_s + work.trunk_s)
    generator = np.random.default_rng(seed)
    tasks = -(-images // IMAGES_PER_TASK)
    factors = np.where(generator.random(tasks) < cluster.straggling, cluster.slow, 1.0)
    lost_after = generator.exponential(3600 / max(cluster.lost_per_hour, 1e-12), count)
    return run_queue(size * factors, count, lost_after)


def run_queue(seconds: np.ndarray, workers: int, lost_after: np.ndarray) -> tuple[float, int]:
    """Return when tasks are done that workers take from a queue, and how many were done again.

    Args:
        seconds: of each task.
        workers: how many.
        lost_after: seconds after which each worker is lost, once.
    """
    free = [(0.0, worker) for worker in range(workers)]
    heapq.heapify(free)
    pending, again, end = list(seconds[::-1]), 0, 0.0
    losses = dict(enumerate(lost_after))
    while pending:
        start, worker = heapq.heappop(free)
        task = pending.pop()
        done = start + task
        if start <= losses.get(worker, np.inf) < done:
            pending.append(task)
            again += 1
            heapq.heappush(free, (losses.pop(worker) + DETECTED, worker))
            continue
        end = max(end, done)
        heapq.heappush(free, (done, worker))
    return end, again


def simulate_fit(
    images: int, epochs: int, batch: int, work: Work, cluster: Cluster, seed: int = 0
) -> tuple[float, int]:
    """Return the seconds of a fit, and how many epochs were begun again."""
    generator = np.random.default_rng(seed)
    steps = images // (batch * cluster.workers)
    exchange = 2 * (cluster.workers - 1) / cluster.workers * work.parameters_mb / cluster.link_mb_s
    exchange += 2 * (cluster.workers - 1) * cluster.latency_s
    has_straggler = 1 - (1 - cluster.straggling) ** cluster.workers
    step = batch * work.head_s + exchange
    seconds, again, epoch = 0.0, 0, 0
    while epoch < epochs:
        slowed = generator.binomial(steps, has_straggler)
        takes = steps * step + slowed * (cluster.slow - 1) * batch * work.head_s
        lost = generator.exponential(3600 / max(cluster.lost_per_hour * cluster.workers, 1e-12))
        if lost < takes and again < 1000:
            seconds, again = seconds + lost + 60, again + 1  # a minute until the others have ended, cluster.md
            continue
        seconds, epoch = seconds + takes, epoch + 1
    return seconds, again


def check_queue(workers: int, tasks: int) -> tuple[float, float]:
    """Return the seconds of tasks that sleep, one of them done again as its worker is lost, and the simulated ones."""
    generator = np.random.default_rng(workers)
    seconds = np.where(generator.random(tasks) < 0.05, 3.0, 1.0) * 0.5
    queue: SimpleQueue[float] = SimpleQueue()
    for one in seconds:
        queue.put(float(one))

    def work(number: int) -> None:
        if number == 0:  # lost in its first task, which another does again
            one = queue.get()
            time.sleep(0.25)
            queue.put(one)
            time.sleep(DETECTED)
        while True:
            try:
                time.sleep(queue.get_nowait())
            except Empty:
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    measured = time.perf_counter() - start
    lost_after = np.full(workers, np.inf)
    lost_after[0] = 0.25
    return measured, run_queue(seconds, workers, lost_after)[0]


def check_pass(images: int) -> tuple[float, float]:
    """Return the seconds of the frozen pass of real images in 2 processes, and what is simulated from those in 1."""
    from graftline.augment.policy import EvalTransform
    from graftline.backbones.backbone import Backbone
    from graftline.data.ingest import Ingest
    from graftline.data.sources.elpv import Elpv
    from graftline.data.split import Split
    from graftline.execution import Execution
    from graftline.features.cut import cut
    from graftline.features.engine import make_engine
    from graftline.features.frozen_pass import ActivationRequest, ImageBatcher
    from graftline.features.remote_pass import _part, compute

    with tempfile.TemporaryDirectory() as folder:
        version = Ingest("elpv", None, Elpv(), Split(), directory=folder).run().version
        graft = Backbone("tf_efficientnet_lite0").build(2)
        head = frozenset(name for name, _ in graft.network.named_parameters() if name.startswith("classifier"))
        graft.network.requires_grad_(requires_grad=False)
        parts = cut(graft.network, head, graft.preprocessing.image_size, graft.preprocessing.channels)
        request = ActivationRequest(version.samples("train"), EvalTransform(graft.preprocessing), 0, {})
        batcher, exported = ImageBatcher(request), Path(folder) / "trunk.onnx"
        make_engine(parts.trunk, exported, batcher(range(4)), Execution())
        trunk = exported.read_bytes()
        rows = range(IMAGES_PER_TASK)
        tasks = [_part(request, [(first + row) % 1500 for row in rows]) for first in range(0, images, len(rows))]
        found = []
        for processes in (1, 2):
            context = get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context) as pool:
                list(pool.map(compute, [trunk] * 2, tasks[:2], [[len(rows)]] * 2))  # until all have imported theirs
                start = time.perf_counter()
                list(pool.map(compute, [trunk] * len(tasks), tasks, [[len(rows)]] * len(tasks)))
                measured = time.perf_counter() - start
            found.append(measured)
        work = Work(read_mb=0, decode_s=0, trunk_s=found[0] / images)  # as one process alone has it
        still = Cluster(2, straggling=0, lost_per_hour=0)
        return found[1], simulate_pass(images, work, still)[0]


FEATURES, CLASSES, BATCH = 1280, 40, 256  # of a head on EfficientNet-Lite0
GRADIENTS = CLASSES * (FEATURES + 1)  # numbers that a step exchanges


class Fitted(NamedTuple):
    """What a process of a fit has measured."""

    step_s: float  # a step with nobody to exchange gradients with
    latency_s: float  # of a message
    link_mb_s: float  # of a message as large as the gradients: small ones are slower per MB than large ones
    fit_s: float  # all steps, with all processes


def run_fit(rank: int, processes: int, meeting: str, steps: int, sleep_s: float | None) -> Fitted:
    """Train a head, or sleep in place of each step's computation, as one of several processes of gloo."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    head = nn.Linear(FEATURES, CLASSES)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.001)
    features, labels = torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,))

    def step(network: nn.Module) -> None:
        if sleep_s is not None:
            time.sleep(sleep_s)
        optimizer.zero_grad()
        inputs, target = (features, labels) if sleep_s is None else (features[:1], labels[:1])
        nn.functional.cross_entropy(network(inputs), target).backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()

    def time_of(numbers: int, times: int) -> float:
        message = torch.zeros(numbers)
        dist.all_reduce(message)
        start = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(message)
        return (time.perf_counter() - start) / times

    groups = [dist.new_group([one]) for one in range(processes)]
    alone, network = [], DistributedDataParallel(head, process_group=groups[rank])
    for turn in range(processes):  # one after the other, as in a fit of one process
        if turn == rank:
            for _ in range(max(steps // 4, 5)):
                start = time.perf_counter()
                step(network)
                alone.append(time.perf_counter() - start)
        dist.barrier()
    step_s = statistics.median(alone)
    small, large = time_of(1, 200), time_of(GRADIENTS, 200)
    network, generator = DistributedDataParallel(head), np.random.default_rng(rank)
    step(network)
    dist.barrier()
    start = time.perf_counter()
    for is_slow in generator.random(steps) < 0.05:
        if is_slow:
            time.sleep(2 * step_s)
        step(network)
    fit_s = time.perf_counter() - start
    dist.destroy_process_group()
    link_mb_s = 2 * (processes - 1) / processes * 4e-6 * GRADIENTS / max(large - small, 1e-9)
    return Fitted(step_s, small / (2 * (processes - 1)), link_mb_s, fit_s)


def check_fit(processes: int, steps: int, sleep_s: float | None = None) -> tuple[float, float]:
    """Return the seconds of a fit in some processes, and what is simulated from a step alone and single messages."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool,
    ):
        ranks = [pool.submit(run_fit, n, processes, f"{folder}/meeting", steps, sleep_s) for n in range(processes)]
        fitted = [rank.result() for rank in ranks]
    step_s, latency_s, link_mb_s, fit_s = (statistics.median(values) for values in zip(*fitted, strict=True))
    work = Work(head_s=step_s / BATCH, parameters_mb=4e-6 * GRADIENTS)
    cluster = Cluster(processes, link_mb_s=link_mb_s, latency_s=latency_s, straggling=0.05, lost_per_hour=0)
    return fit_s, simulate_fit(steps * BATCH * processes, 1, BATCH, work, cluster)[0]


def main(given: Sequence[str] | None = None) -> None:
    """Print what is to be expected of 1 to 256 workers, or how far off it is here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=float, default=1e8)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(given)
    if arguments.check:
        checks = [(f"{count} workers that sleep", *check_queue(count, 8 * count)) for count in (8, 64)]
        checks.append(("frozen pass, 2 processes", *check_pass(512)))
        checks.append(("fit of a head, 2 processes", *check_fit(2, 1000)))
        checks.append(("fit that sleeps, 4 processes", *check_fit(4, 200, sleep_s=0.02)))
        table = [
            (name, f"{real:.1f}", f"{simulated:.1f}", f"{simulated / real - 1:+.0%}")
            for name, real, simulated in checks
        ]
        print_table("Against this machine", ("", "seconds here", "simulated", "off"), table)
        return
    images, rows = int(arguments.images), []
    for name, work in (("CPU cores", Work()), ("GPUs", replace(Work(), trunk_s=0.0004, decode_s=0.0006))):
        for workers in (1, 8, 64, 256):
            cluster = Cluster(workers)
            sample = min(images, workers * IMAGES_PER_TASK * 500)  # a queue that long tells the rate
            runs = [simulate_pass(sample, work, cluster, seed) for seed in range(5)]
            hours = statistics.median(seconds for seconds, _ in runs) * images / sample / 3600
            fit, again = simulate_fit(images, 10, 256, work, cluster)
            ideal = images * (work.read_mb / cluster.worker_mb_s + work.decode_s + work.trunk_s) / workers / 3600
            rows.append((name, f"{workers}", f"{hours:,.1f}", f"{ideal / hours:.0%}", f"{fit / 3600:,.2f}", f"{again}"))
    columns = ("", "workers", "frozen pass, h", "of ideal", "fit, h", "epochs again")
    print_table(f"{images:,} images", columns, rows)


if __name__ == "__main__":
    main()
