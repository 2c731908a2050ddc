"""Hugging Face datasets from disk: splits, names of classes and files as they are."""

import io
from pathlib import Path
from typing import Any

import pytest
from ingested import ingest
from PIL import Image

from graftline.data.references import open_image
from graftline.data.sources.hugging_face import HuggingFace
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


def test_what_is_no_dataset_is_one_sentence(tmp_path: Path, source: HuggingFace) -> None:
    with pytest.raises(UserError, match=r"is not a folder of save_to_disk \(.*\): give another Ingest\.path"):
        source.read(tmp_path)
    make(4).save_to_disk(tmp_path / "pets")
    with pytest.raises(UserError, match=r"no column 'image' of that kind: set HuggingFace\.image to one of picture"):
        HuggingFace(image="image", cache=source.cache).read(tmp_path / "pets")
