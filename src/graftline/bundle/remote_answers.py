"""A model's answers from a Ray cluster: tasks of some hundred images each, on a copy of the bundle that nodes are sent.

The answers are those of one process on one core, in the order of the images. Nodes need the images, not the bundle.
"""

import os
import socket
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from graftline.bundle.answers import Answers, join_answers
from graftline.bundle.engines import EngineName
from graftline.bundle.ensemble import AnyPredictor, load_predictor
from graftline.data.decoding import NO_FILE, OUT_OF_REACH
from graftline.data.references import file_of, find_url
from graftline.execution import Execution
from graftline.ray_cluster import RayCluster

IMAGES = 256  # of a task: seconds of work, beside which a few milliseconds of Ray's do not count

Files = tuple[tuple[str, bytes], ...]  # of a bundle: names below its directory, and contents


def stream_over(
    ray_cluster: RayCluster, directory: Path, engine: EngineName, images: Iterable[str], *, embed: bool = False
) -> Generator[Answers, None, None]:
    """As ``Predictor.stream``, but the cluster's cores answer.

    Args:
        ray_cluster: the cluster, whose nodes see the images at the same place.
        directory: of the bundle.
        engine: what runs the network.
        images: paths, or references into archives.
        embed: whether the answers are to have embeddings, where the network gives some.

    Raises:
        UserError: a node does not see the images, or lost its task for good.
    """
    bundle = ray_cluster.share(_read(directory))
    sent = deque[list[str]]()  # images of tasks whose answers have not come

    def tasks() -> Iterator[tuple[Any, ...]]:
        waiting, is_checked = map(_absolute, images), False
        while paths := list(islice(waiting, IMAGES)):
            if not is_checked and (seen := _first_there(paths)) is not None:
                ray_cluster.check_paths([seen])
                is_checked = True
            sent.append(paths)
            yield bundle, engine, paths, embed

    for host, answers in ray_cluster.map(answer, tasks()):
        yield answers._replace(reasons=_with_host(answers.reasons, sent.popleft(), host))


def _with_host(reasons: Mapping[int, str], images: Sequence[str], host: str) -> dict[int, str]:
    """Return why images have no answer, with the node where it does not see those that this machine sees."""
    told = dict[int, str]()
    for row, reason in reasons.items():
        is_here = reason == NO_FILE and _first_there([images[row]]) is not None
        told[row] = OUT_OF_REACH if is_here else reason
        if told[row].startswith(OUT_OF_REACH):
            told[row] += f" on node {host}"
    return told


def _read(directory: Path) -> Files:
    files = (file for file in sorted(directory.rglob("*")) if file.is_file())
    return tuple((file.relative_to(directory).as_posix(), file.read_bytes()) for file in files)


def _first_there(images: Iterable[str]) -> Path | None:
    """Return the file of the first image that this machine sees."""
    files = (file_of(image) for image in images)
    return next((file for file in files if file is not None and file.exists()), None)


def _absolute(image: str) -> str:
    """Return a path that leads to the same file from any directory."""
    return image if find_url(image) is not None else os.path.abspath(image)  # noqa: PTH100 - odd names stay as they are


def answer(bundle: Files, engine: EngineName, images: Sequence[str], embed: bool) -> tuple[str, Answers]:
    """Return the name of this machine, and the answers to some images, at least one; runs on a worker."""
    return socket.gethostname(), join_answers(list(_predictor(bundle, engine).stream(images, embed=embed)))


@lru_cache(maxsize=1)
def _predictor(bundle: Files, engine: EngineName) -> AnyPredictor:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in bundle:
            file = Path(folder) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return load_predictor(Path(folder), engine, Execution(threads=1))
