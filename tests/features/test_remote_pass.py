"""The frozen pass on a Ray cluster of two nodes, one of which is killed: bit for bit what one process gives."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
from file_server import serve
from ingested import ingest
from ray_nodes import Nodes, start_nodes
from torch import Tensor, nn

from conftest import COLORS, paint
from graftline.augment.policy import Augment, EvalTransform, Policy
from graftline.augment.preprocess import Preprocessing
from graftline.data.ingest import Ingest
from graftline.data.shards.write import write_shards
from graftline.data.sources.folder import Folder
from graftline.data.sources.shards import Shards
from graftline.data.split import Split
from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.features import remote_pass, segment
from graftline.features.cache import ActivationRequest, Features
from graftline.features.engine import CPU_BATCH, Batches, Engine, make_engine
from graftline.features.remote_pass import SHARDS_PER_NODE, spread_over
from graftline.files import sha256_file
from graftline.ray_cluster import RayCluster

pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

PREPROCESSING = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
FLIPPED = Policy("flipped", None, {"flip": albumentations.HorizontalFlip(p=0.5)})
TAIL = nn.Linear(4 * 16 * 16, 3)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster to which each test adds its nodes."""
    with start_nodes() as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MAX_SHARD_IMAGES", 20)
    monkeypatch.setattr(remote_pass, "BATCHES", 1)


@pytest.fixture
def samples(color_folder: Path) -> Samples:
    paths = sorted(str(path) for path in color_folder.rglob("*.png"))
    return Samples(paths, np.zeros(len(paths), np.int64), None, [sha256_file(Path(path)) for path in paths])


def requests(samples: Samples) -> list[ActivationRequest]:
    """Return those for the images as they are, and for an augmented view of them."""
    plain = ActivationRequest(samples, EvalTransform(PREPROCESSING), 0, {"network": "conv"})
    augment = Augment(FLIPPED, PREPROCESSING, 0)
    return [plain, ActivationRequest(samples, augment, 1, {"network": "conv", "view": 1})]


def test_a_node_that_is_killed_changes_nothing(nodes: Nodes, samples: Samples, tmp_path: Path) -> None:
    killed, _ = nodes.add(2)
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
    ray_cluster = RayCluster(nodes.address)
    given = 0

    def here(images: Tensor) -> Engine:
        return make_engine(trunk, tmp_path / "trunk.onnx", images, Execution(threads=1))

    def spread(images: Tensor) -> Engine:
        engine = spread_over(ray_cluster, here(images), tmp_path / "trunk.onnx", 4 * 16 * 16)
        assert engine.run_all is not None
        assert "2 workers of Ray" in engine.runs_on
        run_all = engine.run_all

        def run(batches: Batches) -> Iterator[np.ndarray]:
            nonlocal given
            for activations in run_all(batches):
                yield activations
                given += 1
                if given == 2:  # more tasks are under way on both nodes
                    nodes.kill(killed)

        return replace(engine, run_all=run)

    wanted = requests(samples)
    expected = Features(directory=str(tmp_path / "here")).open(wanted, here, TAIL, 4 * 16 * 16)
    actual = Features(directory=str(tmp_path / "spread")).open(wanted, spread, TAIL, 4 * 16 * 16)
    assert given == 2 * -(-20 // 8) * 3, "no batch twice"
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(ours.array), np.asarray(theirs.array))
    nodes.remove_all()


def test_what_a_task_raises_is_told(nodes: Nodes, samples: Samples, tmp_path: Path) -> None:
    nodes.add(1)
    ray_cluster = RayCluster(nodes.address)
    missing = str(tmp_path / "away.png")
    with pytest.raises(UserError, match=rf"Node {socket.gethostname()} .* does not see {missing}.* same place"):
        ray_cluster.check_paths([Path(missing)])
    one = replace(requests(samples)[0], samples=replace(samples, paths=[missing, *samples.paths[1:]]))
    file = tmp_path / "trunk.onnx"
    engine = make_engine(nn.Flatten(), file, torch.zeros(1, 3, 16, 16), Execution(threads=1))
    with pytest.raises(UserError, match=f"{missing} could be read at ingest but not now"):
        list(ray_cluster.map(remote_pass.compute, [(file.read_bytes(), one, [4])]))
    assert engine.is_exported
    nodes.remove_all()


@pytest.mark.parametrize(("cores", "ahead"), [(1, 3 * 4), (16, 3 * 32)])
def test_each_core_has_work_where_nodes_read_shards_of_their_own(
    cores: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes are given tasks of three shards at least, and three tasks per core."""
    monkeypatch.undo()  # tasks are as large as usual
    monkeypatch.setattr(RayCluster, "resources", lambda _: [{"CPU": cores}] * 2)
    monkeypatch.setattr(RayCluster, "workers", 2 * cores)
    of_shard = 4 * remote_pass.BATCHES * CPU_BATCH
    paths = [
        f"https://host/{shard}.tar/{512 * number:011}+3+1f2e3d4c/1.jpg"
        for shard in range(20)
        for number in range(of_shard)
    ]
    assert remote_pass._count_ahead(RayCluster(), paths, width=100) == ahead
    too_wide = remote_pass.AHEAD_BYTES // (ahead * remote_pass.BATCHES * CPU_BATCH * 4) + 1
    assert remote_pass._count_ahead(RayCluster(), paths, width=too_wide) is None


def test_each_shard_at_a_url_is_downloaded_by_one_node(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
    for number in range(400):
        file = tmp_path / "colors" / ("red", "blue")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        paint(COLORS[file.parent.name], number, size=16).save(file)
    listing = Ingest("colors", str(tmp_path / "colors"), Folder(), Split()).list_images()
    size = sum(Path(path).stat().st_size + 2048 for path in listing.images["path"])
    write_shards(listing.images, listing.class_names, tmp_path / "out", "colors", size // 9, 1)
    assert len([*tmp_path.glob("out/*.tar")]) >= 2 * SHARDS_PER_NODE
    caches = [tmp_path / name for name in ("first", "second")]
    for cache in caches:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        nodes.add(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    trunk = nn.Flatten()

    def here(images: Tensor) -> Engine:
        return make_engine(trunk, tmp_path / "trunk.onnx", images, Execution(threads=1))

    def spread(images: Tensor) -> Engine:
        return spread_over(RayCluster(nodes.address), here(images), tmp_path / "trunk.onnx", 3 * 16 * 16)

    with serve(tmp_path) as url:
        version = ingest(tmp_path / "data", Path(f"{url}/out"), Shards(workers=1)).version
        wanted = [ActivationRequest(version.samples("train"), EvalTransform(PREPROCESSING), 0, {"network": "flat"})]
        tail = nn.Linear(3 * 16 * 16, 3)
        (actual,) = Features(directory=str(tmp_path / "spread")).open(wanted, spread, tail, 3 * 16 * 16)
        (expected,) = Features(directory=str(tmp_path / "local")).open(wanted, here, tail, 3 * 16 * 16)
    np.testing.assert_array_equal(np.asarray(actual.array), np.asarray(expected.array))
    first, second = ({file.name for file in cache.glob("graftline/remote/*.tar")} for cache in caches)
    assert first
    assert second
    assert not first & second
    nodes.remove_all()
