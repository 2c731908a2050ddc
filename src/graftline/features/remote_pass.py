"""The frozen pass spread over a Ray cluster: tasks of a few batches each, on the exported trunk.

A batch has the images that it would have here, and the engine is the same, on one core: so are the activations, bit for
bit, on processors of one kind.

Letters: B batch, F numbers per image that the trunk gives.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from graftline.backbones.onnx import open_session
from graftline.data.references import file_of, shard_url
from graftline.data.version import Samples
from graftline.features.engine import CPU_BATCH, Batches, Engine
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher
from graftline.ray_cluster import AHEAD, Homes, RayCluster

logger = logging.getLogger(__name__)

AHEAD_BYTES = 2_000_000_000  # of activations that wait for their turn, on all nodes
SHARDS_PER_NODE = 4  # at least, so that nodes with fewer shards than others do not stand idle for long
BATCHES = 8  # of a task: seconds of work, beside which a few milliseconds of Ray's do not count


def spread_over(ray_cluster: RayCluster, engine: Engine, exported: Path, width: int) -> Engine:
    """Return an engine whose batches are computed by the cluster.

    Args:
        ray_cluster: the cluster.
        engine: as it would run here; one that is not ONNX Runtime stays here.
        exported: the trunk as an ONNX file.
        width: F.
    """
    if not engine.is_exported:
        logger.warning(f"The frozen network runs on {engine.runs_on}, which is not spread over Ray.")
        return engine
    content = exported.read_bytes()
    workers, homes = ray_cluster.workers, Homes()

    def place_of(trunk: Any, request: ActivationRequest, sizes: Sequence[int]) -> Any:  # noqa: ARG001 - as `compute` has
        """Return where a task runs: on the node that has read its shard."""
        return homes.of(shard_url(request.samples.paths[0]) or "")

    def run_all(batches: Batches) -> Iterator[np.ndarray]:
        batches = iter(batches)
        if (first := next(batches, None)) is None:
            return
        ahead = _count_ahead(ray_cluster, first[0].request.samples.paths, width)
        place = None if ahead is None else place_of
        trunk = ray_cluster.share(content)
        tasks = ((trunk, *task) for task in tasks_of(ray_cluster, chain([first], batches)))
        for activations in ray_cluster.map(compute, tasks, place=place, ahead=ahead):
            yield from activations

    return replace(engine, runs_on=f"{engine.runs_on}, spread over {workers} workers of Ray", run_all=run_all)


def _count_ahead(ray_cluster: RayCluster, paths: Sequence[str], width: int) -> int | None:
    """Return how many tasks are to be under way so that each node reads shards of its own, and each core has work.

    None where nothing is gained: not all images lie in shards at URLs, these are too few to give each node as many, or
    their activations too large to wait for their turn.
    """
    nodes = sum(node.get("CPU", 0) >= 1 for node in ray_cluster.resources())
    if nodes < 2 or ray_cluster.num_workers is not None or shard_url(paths[0]) is None:
        return None
    images = Counter(shard_url(path) for path in paths)
    if None in images or len(images) < SHARDS_PER_NODE * nodes:
        return None
    of_task = BATCHES * CPU_BATCH
    of_shard = -(-max(images.values()) // of_task)
    ahead = max(nodes + 1, -(-AHEAD * ray_cluster.workers // of_shard)) * of_shard
    return ahead if ahead * of_task * 4 * width <= AHEAD_BYTES else None


def tasks_of(
    ray_cluster: RayCluster, batches: Batches, most: int | None = None
) -> Iterator[tuple[ActivationRequest, list[int]]]:
    """Yield a request for the images of several batches at a time, and how many each has.

    They are of the same request and, at a URL, of the same shard.

    Args:
        ray_cluster: whose nodes need to see the first of the images.
        batches: of images.
        most: how many batches a task has at most; None: `BATCHES`, which is the most anyway where no URL is read.

    Raises:
        UserError: a node does not see the image.
    """
    is_checked = False
    for (images, url), group in groupby(batches, key=lambda one: (one[0], shard_url(_path(*one)))):
        parts = (rows for _, rows in group)
        number = BATCHES if most is None else most if url is not None else min(most, BATCHES)
        while some := list(islice(parts, number)):
            request = _part(images.request, [row for rows in some for row in rows])
            if not is_checked:
                file = file_of(request.samples.paths[0])
                ray_cluster.check_paths([] if file is None else [file])
                is_checked = True
            yield request, [len(rows) for rows in some]


def _path(images: ImageBatcher, rows: Sequence[int]) -> str:
    """Return the path of a batch's first image."""
    return images.request.samples.paths[rows[0]]


def _part(request: ActivationRequest, rows: Sequence[int]) -> ActivationRequest:
    """Return the request for some of its images."""
    all_samples = request.samples
    samples = Samples(
        [all_samples.paths[row] for row in rows],
        all_samples.labels[list(rows)],
        None,
        [all_samples.sha256[row] for row in rows],
        all_samples.decoding,
    )
    return replace(request, samples=samples, key={})


def batches_of(request: ActivationRequest, sizes: Sequence[int]) -> Iterator[tuple[ImageBatcher, range]]:
    """Yield the batches of some sizes into which a request is divided."""
    images = ImageBatcher(request)
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        yield images, range(end - size, end)


def compute(trunk: bytes, request: ActivationRequest, sizes: Sequence[int]) -> list[np.ndarray]:
    """Return the activations (B, F) float32 of each batch of a request; runs on a worker."""
    session = _session(trunk)
    return [session.run(None, {"image": images(rows).numpy()})[0] for images, rows in batches_of(request, sizes)]


@lru_cache(maxsize=1)
def _session(trunk: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trunk.onnx"
        file.write_bytes(trunk)
        return open_session(file, threads=1)
