"""Columns that a source gives beside ours are kept where they tell images apart, and change nothing else."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from ingested import ingest

from graftline.data.further_columns import from_json, keep_few_valued, to_json
from graftline.data.ingest import Ingest
from graftline.data.sources.shards import Shards
from graftline.data.sources.table import Table
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.pipeline.shard import Shard

from .conftest import MakeFolder, MakeImage

COPIES = {"dog/009.png", "dog/copy.png"}  # of one content


def values(columns: pd.DataFrame) -> dict[str, list[str | None]]:
    """Return columns as lists, with None where a value is missing."""
    return {str(name): columns[name].astype(object).where(columns[name].notna(), None).tolist() for name in columns}


def test_columns_of_few_values_become_categories(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    number = np.arange(42)
    table = pd.DataFrame(
        {
            "camera": np.where(number < 21, "left", " left\u200b"),  # one name
            "site": ["Bern"] * 21 + [None] * 21,  # one value
            "shift": pd.Categorical([f"{hour:02}" for hour in number % 20]),
            "crowd": number % 21,
            "binned": np.where(number % 3 == 0, np.nan, number % 2),
            "flag": number % 2 == 0,
            "seen": np.where(number == 0, " ", np.where(number < 21, "by day", "by night")),
            "boxes": [[1, 2]] * 42,
            "empty": pd.Series([None] * 42, dtype="str"),
        },
        index=number // 2,  # not unique
    )
    kept = keep_few_valued(table)
    assert list(kept) == ["shift", "binned", "flag", "seen"]
    assert all(isinstance(dtype, pd.CategoricalDtype) for dtype in kept.dtypes)
    assert kept.index.equals(table.index)
    assert kept["shift"].tolist() == table["shift"].tolist()
    assert values(kept)["binned"][:6] == [None, "1", "0", None, "0", "1"]
    assert kept["flag"].tolist() == ["True", "False"] * 21
    assert values(kept)["seen"] == [None, *["by day"] * 20, *["by night"] * 21]
    assert caplog.messages == [
        (
            "Scores are also reported by the values of shift, binned, flag, seen "
            "(crowd, boxes left out: more than 20 values)."
        )
    ]


def test_columns_pass_through_json() -> None:
    columns = keep_few_valued(pd.DataFrame({"a": ["x", None, "y", "x", None], "b \u00e9": ["1", None, "2", None, "2"]}))
    texts = to_json(columns)
    assert [json.loads(text) for text in texts[:3]] == [{"a": "x", "b \u00e9": "1"}, {}, {"a": "y", "b \u00e9": "2"}]
    pd.testing.assert_frame_equal(from_json(texts), columns)
    assert from_json(pd.Series([None, None], dtype="str")).shape == (2, 0)


@pytest.fixture
def table(tmp_path: Path, make_folder: MakeFolder, make_image: MakeImage) -> Path:
    """Twenty images whose names tell the camera, a broken one, and one that is there twice."""
    make_folder(tmp_path / "pets", cat=10, dog=10)
    make_image(tmp_path / "pets/dog/copy.png", seed=19)
    (tmp_path / "pets/cat/000.png").write_bytes(b"broken")
    paths = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "pets").rglob("*.png"))
    cameras = ["twin" if path.endswith("copy.png") else camera_of(path) for path in paths]
    rows = {"path": paths, "label": [path.split("/")[1] for path in paths], "camera": cameras, "id": range(len(paths))}
    pd.DataFrame({**rows, "id": [f"image {number}" for number in rows["id"]], "sha256": "x"})[::-1].to_csv(
        tmp_path / "pets.csv", index=False
    )
    return tmp_path / "pets.csv"


def camera_of(path: str) -> str:
    return "odd" if int(Path(path).stem) % 2 else "even"


def cameras(version: DatasetVersion) -> dict[str, str | None]:
    """Return what a version tells of its images, by name; a copy has what the first has."""
    contents = version.table().sample(frac=1, random_state=0).drop_duplicates("sha256")
    told = version.further_columns(contents["sha256"])
    assert list(told) == ["camera"]
    names = [f"{Path(path).parent.name}/{Path(path).name}" for path in contents["path"]]
    return dict(zip(names, values(told)["camera"], strict=True))


def test_a_version_has_the_columns_of_its_table(tmp_path: Path, table: Path) -> None:
    version = ingest(tmp_path, table, Table()).version
    found = cameras(version)
    assert len(found) == 19
    assert {found[name] for name in COPIES & set(found)} == {"odd"}
    assert all(camera == camera_of(name) for name, camera in found.items() if name not in COPIES)
    assert version.directory / "columns.parquet" in version.files
    unknown = version.further_columns(["f" * 64])
    assert unknown["camera"].isna().all()

    divided = version.divided(dict.fromkeys(version.table()["sha256"][5:12], "test"))
    assert {name: found[name] for name in cameras(divided)} == cameras(divided)


def test_they_do_not_name_the_version(tmp_path: Path, table: Path) -> None:
    """Without them it is the same version, and reads; whoever told them last is believed."""
    bare = tmp_path / "bare.csv"
    pd.read_csv(table)[["path", "label"]].to_csv(bare, index=False)
    first = ingest(tmp_path, bare, Table())
    version = first.version
    assert version.further_columns(version.table()["sha256"]).shape == (20, 0)
    assert not (version.directory / "columns.parquet").exists()
    summary = json.loads((version.directory / "summary.json").read_text())

    second = ingest(tmp_path, table, Table())
    assert (second.version, second.is_new) == (version, False)
    assert json.loads((version.directory / "summary.json").read_text()) == summary
    told = cameras(version)
    assert set(told.values()) == {"odd", "even"}

    ingest(tmp_path, bare, Table())
    assert cameras(version) == told
    pd.read_csv(table).replace({"camera": {"odd": "left"}}).to_csv(table, index=False)
    ingest(tmp_path, table, Table())
    assert set(cameras(version).values()) == {"left", "even"}


def test_a_version_inherits_them_where_its_source_tells_none(
    tmp_path: Path, table: Path, make_image: MakeImage
) -> None:
    before = cameras(ingest(tmp_path, table, Table()).version)
    make_image(tmp_path / "pets/cat/new.png", seed=99)
    (tmp_path / "pets/cat/000.png").unlink()
    grown = ingest(tmp_path, tmp_path / "pets")
    assert grown.is_new
    after = cameras(grown.version)
    assert after.pop("cat/new.png") is None
    assert after == {name: before.get(name, "odd") for name in after}
    assert len(after) == 19
    fresh = ingest(tmp_path / "other", tmp_path / "pets").version
    assert not (fresh.directory / "columns.parquet").exists()


def test_columns_that_the_table_uses_or_ignores_are_none(tmp_path: Path, table: Path) -> None:
    content = pd.read_csv(table).assign(split="train", stratum=["a", "b", "b"] * 7).rename(columns={"label": "kind"})
    content.assign(label=["fine", "coarse", "coarse"] * 7).to_csv(table, index=False)
    read = Table(label="kind", split=None, stratum=None).read(table)
    assert list(read) == ["path", "label", "camera", "id", "sha256"]
    content.set_index(pd.Index([0, 1, 1] * 7)).to_parquet(tmp_path / "pets.parquet")  # an index that is not unique
    assert len(Table(label="kind").read(tmp_path / "pets.parquet")) == 21
    table.write_text(",path,label,a,a\n0,pets/cat/001.png,cat,1,2\n")
    assert list(Table().read(table)) == ["path", "label"]


def test_shards_keep_them(tmp_path: Path, table: Path) -> None:
    data = Ingest("pets", str(table), Table(), Split())
    assert Shard(data, str(tmp_path / "out"), shard_mb=0.01, workers=1).run(tmp_path).facts["shards"] > 1
    read = Shards(workers=1).read(tmp_path / "out")
    before = Table().read(table)
    assert read["camera"].value_counts().to_dict() == before["camera"].value_counts().to_dict()
    version = ingest(tmp_path / "shards", tmp_path / "out", Shards(workers=1)).version
    found = cameras(version)  # of copies in any order
    assert len(found) == 19
    assert all(camera == camera_of(name) for name, camera in found.items() if name not in COPIES)

    files = sorted((tmp_path / "out").glob("*.index.parquet"))
    contents = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    pd.testing.assert_frame_equal(Shards(workers=1).read(tmp_path / "out"), read)
    assert [file.read_bytes() for file in files] == contents
    for file in files:  # as they were before there were such columns
        pq.write_table(pq.read_table(file).drop_columns(["columns"]), file)
    pd.testing.assert_frame_equal(Shards(workers=1).read(tmp_path / "out"), read.drop(columns="camera"))
