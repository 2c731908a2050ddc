"""Small real images on disk, and in shards, also on a server."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import serve
from PIL import Image

from graftline.data import remote
from graftline.data.ingest import Ingest
from graftline.data.shards.write import write_shards
from graftline.data.sources.folder import Folder
from graftline.data.split import Split

MakeImage = Callable[..., Path]
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_image() -> MakeImage:
    """Write an image; the same seed gives the same content."""

    def make(path: Path, seed: int, size: tuple[int, int] = (16, 12)) -> Path:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def make_folder(make_image: MakeImage) -> MakeFolder:
    """Write class folders; each image is another, by ``first_seed``."""

    def make(root: Path, first_seed: int = 0, **counts: int) -> Path:
        seed = first_seed
        for label, count in counts.items():
            for number in range(count):
                make_image(root / label / f"{number:03}.png", seed)
                seed += 1
        return root

    return make


@pytest.fixture
def remote_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of what lies at URLs, as on a new machine; broken connections are tried again at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01))
    remote.statuses.clear()


@pytest.fixture
def shards(tmp_path: Path, make_folder: MakeFolder) -> Path:
    """A folder of small shards with 31 images of cats and dogs; those lie in a folder beside it."""
    folder = make_folder(tmp_path / "pets", cat=20, dog=11)
    listing = Ingest("pets", str(folder), Folder(), Split()).list_images()
    images, class_names = listing.images, listing.class_names
    write_shards(images, class_names, tmp_path / "out", "pets", 20_000, 1)
    return tmp_path / "out"


@pytest.fixture
def served(shards: Path) -> Iterator[str]:
    """The URL of those shards on a server."""
    pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
    with serve(shards.parent) as url:
        yield f"{url}/{shards.name}"
