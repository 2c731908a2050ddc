"""What Ray costs: `python benchmarks/ray_cluster.py`, with the extra: `pip install graftline[ray]`.

First, the frozen pass of EfficientNet-Lite0 over images of ELPV, by threads of one process (cluster=none) and by tasks
of a Ray of this machine's own (cluster=ray), in turn; the ratio is of the medians. With --workers 8, work that sleeps
on so many workers: how much of the ideal speed-up is left of Ray's own work.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

from graftline.augment.policy import EvalTransform
from graftline.backbones.backbone import Backbone
from graftline.console import print_table, say
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split
from graftline.data.version import Samples
from graftline.execution import Execution
from graftline.features.cut import cut
from graftline.features.engine import Engine, make_engine
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher, run
from graftline.features.remote_pass import spread_over
from graftline.ray_cluster import RayCluster

SECONDS = 1.0  # of a made-up task
TASKS = 20  # per worker


class Passes:
    """The frozen pass over some images, here and on Ray."""

    def __init__(self, images: int, folder: Path, ray_cluster: RayCluster) -> None:
        split = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)
        version = Ingest("elpv", None, Elpv(threshold=0.5), split, directory=str(folder / "data")).run().version
        samples = version.samples("train")
        graft = Backbone("tf_efficientnet_lite0").build(len(version.class_names))
        head = [name for name, _ in graft.network.named_parameters() if name.startswith("classifier")]
        graft.network.requires_grad_(requires_grad=False)
        parts = cut(graft.network, frozenset(head), graft.preprocessing.image_size, graft.preprocessing.channels)
        rows = range(min(images, len(samples.paths)))
        part = Samples(samples.paths[: len(rows)], samples.labels[: len(rows)], None, samples.sha256[: len(rows)])
        self.rows = rows
        self.batcher = ImageBatcher(ActivationRequest(part, EvalTransform(graft.preprocessing), 0, {}))
        first, exported = self.batcher(range(4)), folder / "trunk.onnx"
        here = make_engine(parts.trunk, exported, first, Execution())
        self.engines = {"local": here, "ray": spread_over(ray_cluster, here, exported, parts.width)}

    def seconds(self, engine: Engine) -> float:
        """Return how long an engine takes for all images."""
        size, start = engine.batch_size, time.perf_counter()
        batches = ((self.batcher, self.rows[first : first + size]) for first in range(0, len(self.rows), size))
        assert sum(len(activations) for activations in run(engine, batches)) == len(self.rows)
        return time.perf_counter() - start


def measure_pass(images: int, repetitions: int) -> None:
    """Print the seconds of the frozen pass, here and on Ray, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        passes = Passes(images, Path(folder), RayCluster())
        times: dict[str, list[float]] = {name: [] for name in passes.engines}
        passes.seconds(passes.engines["ray"])  # starts the workers
        for _ in range(repetitions):
            for name, engine in passes.engines.items():
                times[name].append(passes.seconds(engine))
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = [(name, f"{median:.2f} s", f"{median / medians['local']:.2f}") for name, median in medians.items()]
    print_table(f"frozen pass over {len(passes.rows):,} images", ("engine", "median", "ratio"), rows)


def sleep(seconds: float) -> int:
    """Do nothing for some seconds, which looks like work from Ray's point of view; returns the worker's number."""
    time.sleep(seconds)
    return os.getpid()


def measure_sleep(workers: int) -> None:
    """Print what is left of the ideal speed-up on so many workers."""
    ray_cluster = RayCluster(num_workers=workers)
    while len(set(ray_cluster.map(sleep, ((4 * SECONDS,) for _ in range(2 * workers))))) < workers:
        say("The workers are still starting.")
    start = time.perf_counter()
    done = len(list(ray_cluster.map(sleep, ((SECONDS,) for _ in range(TASKS * workers)))))
    seconds = time.perf_counter() - start
    share = done * SECONDS / workers / seconds
    say(f"{workers} workers: {done:,} tasks of {SECONDS} s in {seconds:.1f} s, {share:.0%} of ideal")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--workers", type=int, help="only the work that sleeps, on so many workers")
    arguments = parser.parse_args()
    if arguments.workers is None:
        measure_pass(arguments.images, arguments.repetitions)
    else:
        measure_sleep(arguments.workers)
