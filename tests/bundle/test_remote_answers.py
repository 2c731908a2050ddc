"""Batch prediction on a Ray cluster of two nodes: the rows of one process, also where a worker or a node is killed."""

import re
import shutil
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from ray_nodes import Nodes, start_nodes

from conftest import COLORS, paint
from graftline.bundle import remote_answers
from graftline.bundle.batch import BatchJob
from graftline.bundle.predictor import Predictor
from graftline.bundle.remote_answers import stream_over
from graftline.data.image_list import ImageLister
from graftline.errors import UserError
from graftline.ray_cluster import RayCluster

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with start_nodes() as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: Nodes) -> Iterator[Nodes]:
    """Two nodes, of which a test may kill one."""
    cluster.add(2)
    yield cluster
    cluster.remove_all()


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_answers, "IMAGES", 16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """100 images, two of which cannot be read; so large that 16 of them take a while."""
    root = tmp_path / "photos"
    root.mkdir()
    for number, color in enumerate(COLORS.values()):
        paint(color, number, size=600).save(root / f"{number:03}.png")
    for number in range(3, 100):
        shutil.copyfile(root / f"{number % 3:03}.png", root / f"{number:03}.png")
    (root / "005.png").write_bytes(b"")
    (root / "077.png").write_text("no image")
    return root


def read(job: BatchJob) -> pd.DataFrame:
    return pd.concat([pd.read_csv(part) for part in sorted(job.folder.glob("part-*.csv"))], ignore_index=True)


@pytest.mark.parametrize("what", ["worker", "node"])
def test_rows_are_those_of_one_process_also_where_something_is_killed(
    what: str, nodes: Nodes, bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths start here, for the workers too
    images = ImageLister().read(Path("photos"), tmp_path)
    here = BatchJob(Predictor.from_directory(bundle), images, tmp_path / "here", part_rows=40)
    stream = partial(stream_over, RayCluster(nodes.address), bundle, "onnx")
    spread = BatchJob(here.predictor, images, tmp_path / "spread", part_rows=40, stream=stream)
    killed = list[psutil.Process]()

    def kill_once(_: int) -> None:
        if not killed:
            node, worker = nodes.find_running("answer")
            killed.append(worker)
            if what == "node":
                nodes.kill(node)
            else:
                worker.kill()

    assert spread.run(kill_once) == here.run()
    assert killed
    pd.testing.assert_frame_equal(read(spread), read(here), atol=1e-6)


def test_a_node_that_lacks_some_images_is_named(cluster: Nodes, bundle: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, photos / "further")
    with cluster.without(photos / "further"):
        images = ImageLister().read(photos, tmp_path)
        stream = partial(stream_over, RayCluster(cluster.address), bundle, "onnx")
        job = BatchJob(Predictor.from_directory(bundle), images, tmp_path / "rows", part_rows=40, stream=stream)
        told = (
            rf"was away while .*further/\d+\.png, out of reach on node {re.escape(socket.gethostname())}\): what was "
        )
        with pytest.raises(UserError, match=told):
            job.run()


def test_those_who_watch_are_shown_the_embeddings(nodes: Nodes, bundle: Path, photos: Path) -> None:
    paths = [str(photos / f"{number:03}.png") for number in range(20)]
    predictor = Predictor.from_directory(bundle)
    (whole,) = predictor.stream(paths, embed=True)
    parts = list(stream_over(RayCluster(nodes.address), bundle, "onnx", paths, embed=True))
    assert [len(part.probabilities) for part in parts] == [16, 4]
    embeddings = np.concatenate([part.embeddings for part in parts if part.embeddings is not None])
    assert whole.embeddings is not None
    np.testing.assert_allclose(embeddings, whole.embeddings, atol=1e-5)
