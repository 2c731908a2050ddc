"""The frozen pass spread over a Ray cluster: tasks of a few batches each, on the exported trunk.

A batch has the images that it would have here, and the engine is the same, on one core: so are the activations, bit for
bit, on processors of one kind.

Letters: B batch, F numbers per image that the trunk gives, n images of a task.
"""

import logging
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from graftline.backbones.onnx import open_session
from graftline.data.references import file_of
from graftline.data.version import Samples
from graftline.features.engine import Batches, Engine
from graftline.features.frozen_pass import ActivationRequest, ImageBatcher
from graftline.ray_cluster import RayCluster

logger = logging.getLogger(__name__)

BATCHES = 8  # of a task: seconds of work, beside which a few milliseconds of Ray's do not count


def spread_over(ray_cluster: RayCluster, engine: Engine, exported: Path) -> Engine:
    """Return an engine whose batches are computed by the cluster.

    Args:
        ray_cluster: the cluster.
        engine: as it would run here; one that is not ONNX Runtime stays here.
        exported: the trunk as an ONNX file.
    """
    if not engine.is_exported:
        logger.warning(f"The frozen network runs on {engine.runs_on}, which is not spread over Ray.")
        return engine
    content = exported.read_bytes()
    workers = ray_cluster.workers

    def run_all(batches: Batches) -> Iterator[np.ndarray]:
        sizes: deque[list[int]] = deque()
        trunk = ray_cluster.share(content)

        def tasks() -> Iterator[tuple[Any, ActivationRequest, list[int]]]:
            for images, parts in _in_tasks(batches):
                if not sizes:
                    file = file_of(images.request.samples.paths[parts[0][0]])
                    ray_cluster.check_paths([] if file is None else [file])
                sizes.append([len(rows) for rows in parts])
                yield trunk, _part(images.request, [row for rows in parts for row in rows]), sizes[-1]

        for activations in ray_cluster.map(compute, tasks()):
            yield from np.split(activations, np.cumsum(sizes.popleft())[:-1])

    return replace(engine, runs_on=f"{engine.runs_on}, spread over {workers} workers of Ray", run_all=run_all)


def _in_tasks(batches: Batches) -> Iterator[tuple[ImageBatcher, list[Sequence[int]]]]:
    """Yield several batches of the same request at a time."""
    for images, group in groupby(batches, key=lambda batch: batch[0]):
        rows = (rows for _, rows in group)
        while part := [one for _, one in zip(range(BATCHES), rows, strict=False)]:
            yield images, part


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


def compute(trunk: bytes, request: ActivationRequest, sizes: Sequence[int]) -> np.ndarray:
    """Return the activations (n, F) float32 of a request, computed in batches of some sizes; runs on a worker."""
    session, images = _session(trunk), ImageBatcher(request)
    ends = np.cumsum(sizes)
    parts = [range(end - size, end) for end, size in zip(ends.tolist(), sizes, strict=True)]
    return np.concatenate([session.run(None, {"image": images(rows).numpy()})[0] for rows in parts])


@lru_cache(maxsize=1)
def _session(trunk: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trunk.onnx"
        file.write_bytes(trunk)
        return open_session(file, threads=1)
