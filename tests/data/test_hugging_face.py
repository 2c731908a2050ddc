"""Hugging Face datasets from disk: splits, names of classes and files as they are."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from file_server import serve
from ingested import ingest
from PIL import Image

from graftline.data.image_bytes import open_image
from graftline.data.sources.hugging_face import HuggingFace, _images
from graftline.errors import UserError

datasets = pytest.importorskip("datasets", reason="datasets is missing: make test-extras installs it")
pytestmark = pytest.mark.extras

NAMES = ["zebra", "ant"]


def files(count: int, kind: str = "PNG") -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        file = io.BytesIO()
        Image.effect_noise((16, 16), 50 + number).save(file, kind)
        found.append({"bytes": file.getvalue(), "path": None})
    return found


def make(count: int, kind: str = "PNG", label: Any = None) -> Any:
    features = datasets.Features({"picture": datasets.Image(), "kind": label or datasets.ClassLabel(names=NAMES)})
    kinds = [NAMES[number % 2] if label else number % 2 for number in range(count)]
    return datasets.Dataset.from_dict({"picture": files(count, kind), "kind": kinds}, features=features)


@pytest.fixture
def source(tmp_path: Path) -> HuggingFace:
    return HuggingFace(cache=str(tmp_path / "cache"))


def test_a_dataset_with_splits(tmp_path: Path, source: HuggingFace) -> None:
    parts = {"train": make(8), "validation": make(4), "test": make(6, "JPEG")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    images = source.read(tmp_path / "pets")
    assert images["split"].value_counts().to_dict() == {"train": 8, "validation": 4, "test": 6}
    assert list(images["label"].cat.categories) == NAMES
    of_test = images[images["split"] == "test"]
    raw = parts["test"].cast_column("picture", datasets.Image(decode=False))["picture"]
    assert [open_image(path).read() for path in of_test["path"]] == [one["bytes"] for one in raw]
    assert of_test["path"].str.endswith(".jpg").all()

    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")}
    assert len(source.read(tmp_path / "pets")) == 18
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")} == shards


def test_one_without_splits_is_divided_and_labels_may_be_text(tmp_path: Path, source: HuggingFace) -> None:
    make(20, label=datasets.Value("string")).save_to_disk(tmp_path / "pets")
    with pytest.raises(UserError, match=r"has 0 columns of ClassLabel: set HuggingFace\.label to one of picture"):
        source.read(tmp_path / "pets")
    result = ingest(tmp_path, tmp_path / "pets", HuggingFace(label="kind", cache=source.cache))
    assert result.version.class_names == ("ant", "zebra")
    assert {split: sum(of.values()) for split, of in result.version.counts().items()} == {
        "train": 12,
        "validation": 3,
        "test": 5,
    }


def test_images_that_are_known_by_their_paths_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a hub's dataset may be; `save_to_disk` has those of this machine with their content."""
    pytest.importorskip("aiohttp", reason="of the extra remote: pip install graftline[remote]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "downloaded"))
    photos = tmp_path / "photos"
    photos.mkdir()
    content = files(1)[0]["bytes"]
    (photos / "0.png").write_bytes(content)
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)})
    with serve(photos) as url:
        paths = [f"{folder}/{name}.png" for folder in (url, photos) for name in ("0", "gone")]
        rows = {"picture": [{"bytes": None, "path": path} for path in paths], "kind": [0] * 4}
        part = datasets.Dataset.from_dict(rows, features=features)
        found = list(_images(part, 0, "all", None, "picture", "kind"))
    assert [one for _, one in found] == [content, b"", content, b""]
    assert [known["source"] for known, _ in found] == paths

    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"by their paths alone, and {photos} is not there: bring the folder back"):
        list(_images(part.select([2]), 0, "all", None, "picture", "kind"))


def test_a_row_without_an_image_is_listed(tmp_path: Path, source: HuggingFace) -> None:
    images = [*files(20), None]
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)})
    rows = {"picture": images, "kind": [number % 2 for number in range(21)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "pets")
    result = ingest(tmp_path, tmp_path / "pets", source)
    assert len(result.version.table()) == 20
    empty = [finding.path.rpartition("/")[2] for finding in result.findings if finding.kind == "empty"]
    assert empty == ["000000020.jpg"]


def test_one_of_several_configurations_is_read(
    tmp_path: Path, source: HuggingFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    for name, count in (("small", 4), ("large", 9)):
        make(count).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("small", "large"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    of_the_hub = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, name: of_the_hub(str(tmp_path / "hub"), name))
    path = Path("someone/pets")
    assert len(replace(source, config="large").read(path)) == 9
    with pytest.raises(UserError, match=r"someone/pets is not .*Config.*configuration as HuggingFace\.config"):
        source.read(path)
    with pytest.raises(UserError, match=r"HuggingFace\.config is of a dataset of the hub, and .* is a folder"):
        replace(source, config="large").read(tmp_path)


def test_what_is_no_dataset_is_one_sentence(tmp_path: Path, source: HuggingFace) -> None:
    with pytest.raises(UserError, match=r"is not a folder of save_to_disk \(.*\): give another Ingest\.path"):
        source.read(tmp_path)
    make(4).save_to_disk(tmp_path / "pets")
    with pytest.raises(UserError, match=r"no column 'image' of that kind: set HuggingFace\.image to one of picture"):
        HuggingFace(image="image", cache=source.cache).read(tmp_path / "pets")
