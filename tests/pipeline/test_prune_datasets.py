"""Which dataset versions are removed, and that no image changes its split by it."""

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from past_retrainings import NAME, Past
from workplace import Workplace

from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import LOCK_FILE, TEST_SETS
from graftline.features.store import ActivationStore
from graftline.files import write_json
from graftline.locks import Lock
from graftline.pipeline.cli import compose
from graftline.pipeline.retrain import Retrain
from graftline.pipeline.retraining.keep import Keep
from graftline.pipeline.retraining.keep_datasets import OldDataset, find_old_datasets
from graftline.tracking.names import DATASET_DIGEST


@pytest.fixture
def data(past: Past) -> Path:
    """The folder of the dataset versions."""
    return past.place.root / "here" / "data"


def make_older(data: Path, days: float) -> None:
    """Let all versions be those of so many days before."""
    for file in data.glob("**/summary.json"):
        summary = json.loads(file.read_text())
        moment = datetime.fromisoformat(summary["ingested"]) - timedelta(days=days)
        write_json(file, {**summary, "ingested": moment.isoformat(timespec="microseconds")})


def find(past: Past, data: Path, runs: int) -> list[OldDataset]:
    return find_old_datasets(Keep(runs=runs, outputs=str(past.place.root / "outputs")), past.tracking, data)


def splits_of(version: DatasetVersion) -> dict[str, str]:
    return dict(version.history()[["sha256", "split"]].itertuples(index=False, name=None))


def grow_versions(past: Past) -> dict[str, str]:
    """Make one version after the other, each of three images more; return what is done with it → its digest."""
    client, root = past.place.mlflow, past.place.root
    made = dict[str, str]()

    def grow(name: str) -> str:
        shown = 12 + 3 * len(made)
        past.paint(shown, shown + 3)
        made[name] = past.look().version.digest
        return made[name]

    grow("promoted")
    past.retrain("promoted")
    grow("looked at")
    grow("refused")
    past.retrain("refused")
    grow("begun")
    past.begin(KeyboardInterrupt())
    write_json(root / "outputs/a/dataset.json", {"digest": grow("of an output directory")})
    card = {"dataset_digest": grow("of a bundle")}
    write_json(root / "outputs/b/bundle/bundle.json", {"digest": "0123456789abcdef", "card": card})
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", root.as_uri(), tags={DATASET_DIGEST: grow("registered by hand")})
    (experiment,) = client.search_experiments(filter_string=f"name = '{NAME}'")
    client.create_run(experiment.experiment_id, tags={DATASET_DIGEST: grow("of a run that goes on")})
    grow("last")
    past.retrain("refused")
    for number in ("2", "3"):
        client.delete_model_version(NAME, number)
    grow("newest but one")
    grow("newest")
    return made


def test_versions_that_nothing_needs_go_and_images_keep_their_splits(past: Past, data: Path) -> None:
    made, root = grow_versions(past), past.place.root
    assert find(past, data, runs=0) == [], "they are young"
    make_older(data, 100)
    names = {digest: name for name, digest in made.items()}
    assert [names[one.version.digest] for one in find(past, data, runs=1)] == ["newest but one", "refused", "looked at"]
    found = find(past, data, runs=2)
    assert [names[one.version.digest] for one in found] == ["refused", "looked at"]
    assert all(one.bytes > 3000 and 100 < one.days < 101 for one in found)
    shutil.rmtree(next((root / "outputs").glob("begun-*")))
    found = find(past, data, runs=0)
    assert [names[one.version.digest] for one in found] == ["newest but one", "begun", "refused", "looked at"]

    known, before = splits_of(past.look().version), splits_of(found[1].version)
    store = ActivationStore(root / "cache", 1e9)
    assert [one.remove(store) for one in found] == [True] * 4
    assert {path.name for path in (data / NAME).iterdir()} == {
        *(digest for name, digest in made.items() if name not in ("newest but one", "begun", "refused", "looked at")),
        "checked.parquet",
    }
    past.remove(12, 27)
    fewer = past.look().version
    assert (len(fewer.table()), splits_of(fewer)) == (3 * (12 + 3 * len(made) - 15), known)
    past.paint(12, 24)
    again = past.look().version
    now = dict(again.table()[["sha256", "split"]].itertuples(index=False, name=None))
    assert set(before) <= set(now), "the images of one that is gone are back"
    assert now == {sha256: known[sha256] for sha256 in now}


def test_the_versions_of_another_chain_stay(past: Past, data: Path) -> None:
    """Which alone know in which split an image was that has left them, and what was decided on it."""
    for last in (15, 18):
        past.paint(last - 3, last)
        assert past.look().version
    replace(past.look().data, parent="none", split=Split(seed=1)).run()
    make_older(data, 100)
    assert find(past, data, runs=0) == []


def test_a_version_that_is_needed_by_now_stays(past: Past, data: Path) -> None:
    first = past.look().version
    past.paint(12, 15)
    past.retrain("promoted")
    make_older(data, 100)
    (found,) = find(past, data, runs=0)
    assert found.path == first.directory
    store = ActivationStore(past.place.root / "cache", 1e9)
    with Lock(data / NAME / LOCK_FILE, shared=False, temporary=True):
        assert not found.remove(store), "an ingest may be about to grow from it"
    past.remove(12, 15)
    assert past.look().version.digest == first.digest
    assert not found.remove(store), "it is the newest"
    assert DatasetVersion.load(first.directory).table().equals(first.table())


def test_a_damaged_version_keeps_those_of_its_data_set(
    past: Past, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = past.look().version
    past.paint(12, 15)
    past.retrain("promoted")
    make_older(data, 100)
    (first.directory / "manifest.parquet").rename(first.directory / "elsewhere")
    assert find(past, data, runs=0) == []
    assert f"! Dataset version {first.digest} of {NAME} stays (" in capsys.readouterr().out
    (first.directory / "summary.json").write_text("{")
    assert find(past, data, runs=0) == []
    assert f"! Dataset versions of {NAME} stay (" in capsys.readouterr().out


def test_a_damaged_version_of_a_test_keeps_all_others_too(past: Past, data: Path) -> None:
    first = past.look().version
    past.paint(12, 15)
    past.retrain("promoted")
    make_older(data, 100)
    assert [one.version.digest for one in find(past, data, runs=0)] == [first.digest]
    damaged = data / NAME / TEST_SETS / ("0" * 16)
    damaged.mkdir(parents=True)
    (damaged / "summary.json").write_text("{")
    assert find(past, data, runs=0) == []


def test_versions_that_were_only_tested_on_go_too(past: Past, data: Path, tmp_path: Path) -> None:
    """As of `make evaluate` on images of another place; none grows from them."""
    version = past.look().version
    others = replace(past, place=Workplace(tmp_path / "others"))

    def test_on(last: int) -> DatasetVersion:
        others.paint(100, last)
        tested = replace(past.look().data, path=str(others.images))
        result, _ = tested.run_as_test(version.class_names, [version.digest, version.test_digest])
        return result.version

    first, second, third = (test_on(last) for last in (104, 108, 112))
    assert first.directory.parent == data / NAME / TEST_SETS
    assert find(past, data, runs=0) == [], "they are young"
    make_older(data, 100)
    past.retrain("promoted")
    write_json(past.place.root / "outputs" / "a" / "dataset.json", {"digest": second.digest})
    assert find(past, data, runs=3) == []
    (found,) = find(past, data, runs=1)
    assert found.path == first.directory, "an output directory is of the second one"
    store = ActivationStore(past.place.root / "cache", 1e9)
    with Lock(data / NAME / LOCK_FILE, shared=False, temporary=True):
        assert not found.remove(store), "an ingest may be about to write it again"
    assert found.remove(store)
    assert sorted((data / NAME / TEST_SETS).iterdir()) == sorted([second.directory, third.directory])


def test_prune_lists_them_and_a_retraining_removes_its_own(
    past: Past, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(past.place.root)
    first = past.look().version
    past.paint(12, 15)
    past.retrain("promoted")
    make_older(data, 100)
    shutil.copytree(data / NAME, data / "others")
    listed = compose("prune", ["keep.runs=0", "datasets=here/data", "dry_run=true"]).run().facts["removed"]
    assert [(one["kind"], Path(one["path"])) for one in listed] == [
        ("dataset versions", data / name / first.digest) for name in (NAME, "others")
    ]
    assert f"here/data/{NAME}/{first.digest}" in capsys.readouterr().out
    typed = ["data=folder", "data.path=images", f"data.name={NAME}", "data.directory=here/data", "keep.runs=0"]
    stage = compose("retrain", [*typed, f"tracking.uri={past.tracking.uri}"]).stage
    assert isinstance(stage, Retrain)
    stage._tidy(trained=False)
    assert first.directory.exists(), "there are no more than before"
    stage._tidy(trained=True)
    assert not first.directory.exists()
    assert "Removed, as old and needed by no model in use: 1 x dataset versions (" in capsys.readouterr().out
    (removed,) = compose("prune", ["keep.runs=0", "datasets=here/data"]).run().facts["removed"]
    assert Path(removed["path"]) == data / "others" / first.digest
    assert not Path(removed["path"]).exists()
