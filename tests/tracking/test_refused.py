"""Refused versions that nobody needs go with their files; models in use and the ledger stay."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server

from graftline.features.store import ActivationStore
from graftline.files import digest_directory
from graftline.pipeline.cli import compose
from graftline.pipeline.retraining.keep import Keep, find_old_versions
from graftline.tracking.client import connect
from graftline.tracking.ledger import ChampionDecision, Kind
from graftline.tracking.promotions import Promotions, author
from graftline.tracking.tracking import Tracking

AGES = {1: 110, 2: 109, 3: 108, 4: 107, 5: 106, 6: 105, 7: 20}  # version → days since it was decided on
KINDS: dict[int, Kind] = {1: "promoted", 2: "promoted", **dict.fromkeys(range(3, 8), "refused")}


@pytest.fixture(params=["database", pytest.param("server", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest) -> Iterator[Tracking]:
    if request.param == "database":
        yield request.getfixturevalue("tracking")
        return
    server: Server = request.getfixturevalue("server")
    yield Tracking(uri=server.uri, system_metrics=False)


def days_ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


@pytest.fixture
def model(place: Tracking, directory: Path, bundle: Path, photo: bytes) -> str:
    """Nine versions: a champion and the one before, refused ones, of which an alias has one, and two of no decision."""
    name = f"refused-{directory.parent.parent.name}"
    for number in range(1, 10):
        with place.start(run_name="", experiment=name, directory=directory / str(number), tags={}) as run:
            assert run.log_model(bundle, registered_name=name, input_example=photo, metrics={})
    promotions = Promotions(place, name)
    for number, kind in KINDS.items():
        standing = promotions.read_sound()
        before = standing.champion
        after = before if kind == "refused" else number
        decision = ChampionDecision(name, kind, number, before, after, author(), days_ago(AGES[number]), before)
        promotions.finish(promotions.append(standing, decision))
    connect(place.uri).set_registered_model_alias(name, "shadow", "4")
    return name


def test_what_was_refused_long_ago_goes_with_its_files(
    place: Tracking, model: str, bundle: Path, directory: Path, photo: bytes, tmp_path: Path
) -> None:
    registry, store = place.registry(), ActivationStore(tmp_path / "cache", 1e9)
    assert [one.version.version for one in find_old_versions(Keep(runs=2), place, model)] == [5, 3]
    found = find_old_versions(Keep(runs=0), place, model)
    assert [one.version.version for one in found] == [6, 5, 3], "neither champions, nor what has an alias, nor 7"
    assert all(one.bytes > 4000 for one in found)
    there = {version.version: registry.bundle(version.uri, tmp_path / "there") for version in registry.versions(model)}
    connect(place.uri).set_registered_model_alias(model, "late", "5")
    assert [one.remove(store) for one in found] == [True, False, True]
    assert [version.version for version in registry.versions(model)] == [1, 2, 4, 5, 7, 8, 9]
    if place.uri.startswith("sqlite"):
        assert [number for number, folder in there.items() if not folder.exists()] == [3, 6]
    for version in registry.versions(model):
        assert digest_directory(registry.bundle(version.uri, tmp_path / "again")) == digest_directory(bundle)
    standing = Promotions(place, model).read()
    assert (standing.champion, standing.damage, len(standing.lines)) == (2, None, 7)
    shutil.rmtree(directory / "1")
    with place.start(run_name="", experiment=model, directory=directory / "1", tags={}) as run:
        registered = run.log_model(bundle, registered_name=model, input_example=photo, metrics={})
    assert registered == f"models:/{model}/10"


def test_a_model_registered_by_hand_keeps_its_files(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    """They may be all files of a run."""
    source = tmp_path / "files"
    source.mkdir()
    (source / "file").write_text("mine")
    client.create_registered_model("pets")
    promotions = Promotions(tracking, "pets")
    run = client.create_run("0").info.run_id
    for number in (1, 2):
        client.create_model_version("pets", source.as_uri(), run, await_creation_for=0)
        decision = ChampionDecision("pets", "refused", number, None, None, author(), days_ago(100))
        promotions.append(promotions.read_sound(), decision)
    (found,) = find_old_versions(Keep(runs=0), tracking)
    assert found.remove(ActivationStore(tmp_path / "cache", 1e9))
    assert [version.version for version in tracking.registry().versions("pets")] == [2]
    assert (source / "file").exists()


def test_where_the_ledger_was_changed_nothing_goes(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    client.create_registered_model("pets")
    promotions = Promotions(tracking, "pets")
    for number in (1, 2):
        client.create_model_version("pets", tmp_path.as_uri(), await_creation_for=0)
        decision = ChampionDecision("pets", "refused", number, None, None, author(), days_ago(100))
        line = promotions.append(promotions.read_sound(), decision)
    run = promotions.read().ledger_run
    assert run is not None
    client.log_param(run, "000003", line.text)
    assert find_old_versions(Keep(runs=0), tracking) == []
    client.delete_run(run)  # nor where it is gone: other models' versions are looked at all the same
    assert find_old_versions(Keep(runs=0), tracking) == []


@pytest.mark.long
def test_prune_lists_them_before_they_go(
    tracking: Tracking, directory: Path, bundle: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    name = _five_refused(tracking, directory, bundle, photo)
    typed = ["keep.runs=0", f"tracking.uri={tracking.uri}"]
    old = [f"models:/{name}/{number}" for number in (5, 4, 3, 2)]
    assert [one["path"] for one in compose("prune", [*typed, "dry_run=true"]).run().facts["removed"]] == old
    assert len(tracking.registry().versions(name)) == 6
    assert [one["path"] for one in compose("prune", typed).run().facts["removed"]] == old
    assert [(one.version, one.aliases) for one in tracking.registry().versions(name)] == [
        (1, ("champion",)),
        (6, ("challenger",)),
    ]
    assert digest_directory(tracking.registry().bundle(f"models:/{name}@champion")) == digest_directory(bundle)
    assert compose("history", [f"model={name}", f"tracking.uri={tracking.uri}"]).run().facts["lines"] == 6


def _five_refused(tracking: Tracking, directory: Path, bundle: Path, photo: bytes) -> str:
    promotions = Promotions(tracking, "pets")
    for number in range(1, 7):
        with tracking.start(run_name="", experiment="pets", directory=directory / str(number), tags={}) as run:
            assert run.log_model(bundle, registered_name="pets", input_example=photo, metrics={})
        standing = promotions.read_sound()
        kind: Kind = "promoted" if number == 1 else "refused"
        decision = ChampionDecision(
            "pets", kind, number, standing.champion, 1, author(), days_ago(100), standing.champion
        )
        promotions.set_challenger(number)
        promotions.finish(promotions.append(standing, decision))
    return "pets"
