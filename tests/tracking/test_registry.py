"""What was logged and registered is found again: by version and alias, on this machine and on one that has nothing."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow.artifacts
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow_server import Server

from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.files import digest_directory
from graftline.locks import Lock
from graftline.pipeline.bundles.source import find_bundle
from graftline.tracking.client import connect
from graftline.tracking.names import LEASE, PARENT_VERSION
from graftline.tracking.registry import RegisteredVersion, Registry
from graftline.tracking.run_bundle import bundle_of_run
from graftline.tracking.tracking import Tracking


def register(
    uri: str, directory: Path, bundle: Path, photo: bytes, *, name: str = "pets", version: DatasetVersion | None = None
) -> str:
    """Log a run with a registered model, and return the run's id."""
    tracking = Tracking(uri=uri, system_metrics=False)
    with tracking.start(run_name="first", experiment="pets", directory=directory, tags={}) as run:
        if version is not None:
            run.log_dataset(version)
        assert run.log_model(bundle, registered_name=name, input_example=photo, metrics={}, tags={"seen": "by me"})
    return run.id


def test_versions_aliases_and_tags(uri: str, directory: Path, bundle: Path, photo: bytes) -> None:
    name = f"pets-{directory.parent.parent.name}"  # the server lives longer than this test
    ids = [register(uri, directory / str(number), bundle, photo, name=name) for number in range(2)]
    client = connect(uri)
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_alias(name, "last-good", "1")
    client.set_registered_model_alias(name, "challenger", "2")
    registry = Tracking(uri=uri).registry()
    assert registry == Registry(uri)
    versions = registry.versions(name)
    assert [(version.version, version.run_id, version.aliases) for version in versions] == [
        (1, ids[0], ("champion", "last-good")),
        (2, ids[1], ("challenger",)),
    ]
    assert registry.version(f"models:/{name}@champion") == registry.version(f"models:/{name}/1") == versions[0]
    assert versions[1].uri == f"models:/{name}/2"
    assert versions[1].description == f"test_efficientnet with 2 classes, trained by run {ids[1]}."
    assert {"seen": "by me", "graftline.run_id": ids[1]}.items() <= versions[1].tags.items()
    assert versions[1].tags["graftline.bundle_files"] == digest_directory(bundle)


def test_the_champion_of_the_time_is_the_parent_of_a_version(
    tracking: Tracking, client: MlflowClient, directory: Path, bundle: Path, photo: bytes
) -> None:
    for number, champion in enumerate((None, "1", "2")):
        if champion is not None:
            client.set_registered_model_alias("pets", "champion", champion)
        register(tracking.uri, directory / str(number), bundle, photo)
    client.set_registered_model_alias("pets", "champion", "3")
    versions = tracking.registry().versions("pets")
    assert [version.tags.get(PARENT_VERSION) for version in versions] == [None, "1", "2"]


def test_a_bundle_in_place(tracking: Tracking, directory: Path, bundle: Path, photo: bytes, cache: Path) -> None:
    register(tracking.uri, directory, bundle, photo)
    path = tracking.registry().bundle("models:/pets/1", cache)
    assert digest_directory(path) == digest_directory(bundle)
    assert path.is_relative_to(Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts")
    assert not cache.exists()
    (path / "model.onnx").write_bytes(b"another")
    with pytest.raises(UserError, match=rf"{path} is not the bundle that was logged as models:/pets/1: put"):
        tracking.registry().bundle("models:/pets/1")
    shutil.rmtree(path)
    with pytest.raises(UserError, match=rf"has files in {path}, which is not on this machine"):
        tracking.registry().bundle("models:/pets/1")


def test_a_bundle_is_downloaded_once(
    server: Server, directory: Path, bundle: Path, photo: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(server.uri, directory, bundle, photo, name="downloaded")
    connect(server.uri).set_registered_model_alias("downloaded", "champion", "1")
    download, downloads = mlflow.artifacts.download_artifacts, []

    def count(*arguments: str, **keywords: str) -> str:
        downloads.append(arguments)
        return download(*arguments, **keywords)

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", count)
    paths: list[Path] = []
    ask = [
        threading.Thread(target=lambda: paths.append(Registry(server.uri).bundle("models:/downloaded@champion", cache)))
        for _ in range(3)
    ]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert len(downloads) == 1
    assert paths == [paths[0]] * 3
    assert digest_directory(paths[0]) == digest_directory(bundle)
    assert digest_directory(bundle) in str(paths[0].relative_to(cache))


def test_the_bundle_of_a_run_whose_directory_is_on_another_machine(
    server: Server,
    directory: Path,
    bundle: Path,
    photo: bytes,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = register(server.uri, directory, bundle, photo, name="elsewhere")
    changed = tmp_path / "changed" / "bundle"
    shutil.copytree(bundle, changed)
    (changed / "note.txt").write_text("of the same run, resumed")
    tracking = Tracking(uri=server.uri, system_metrics=False)
    with tracking.start(run_name="x", experiment="pets", directory=directory, tags={}, resume_run_id=run_id) as run:
        assert run.log_model(changed, registered_name=None, input_example=photo, metrics={})
    shutil.rmtree(directory)
    path = bundle_of_run(tracking.registry(), run_id, cache)
    assert digest_directory(path) == digest_directory(changed)
    assert bundle_of_run(tracking.registry(), run_id, cache) == path
    (path / "model.onnx").write_bytes(b"another")
    with pytest.raises(UserError, match=f"is not the bundle that run {run_id} has logged: remove that folder"):
        bundle_of_run(tracking.registry(), run_id, cache)
    with tracking.start(run_name="none", experiment="pets", directory=directory, tags={}) as run:
        pass
    with pytest.raises(UserError, match=rf"Run {run.id} has its output in .*: its bundle is neither here nor in the"):
        bundle_of_run(tracking.registry(), run.id, cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert digest_directory(find_bundle(run_id, tracking)) == digest_directory(changed), "what is here is another run's"


@pytest.mark.long
def test_downloads_that_nobody_asks_for_go(
    server: Server, directory: Path, bundle: Path, photo: bytes, cache: Path
) -> None:
    registry = Registry(server.uri)
    for number in range(4):
        register(server.uri, directory / str(number), bundle, photo, name="nightly")
    register(server.uri, directory / "other", bundle, photo, name="weekly")

    def ask(version: int, name: str = "nightly") -> Path:
        return registry.bundle(f"models:/{name}/{version}", cache).parent

    first, second, third, another = ask(1), ask(2), ask(3), ask(1, "weekly")
    for path, days in ((first, 30), (second, 20), (third, 10), (another, 30)):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    assert ask(1) == first, "which is asked for by that"
    assert (second.exists(), third.exists()) == (False, True), "what is last of the others stays"
    assert not second.with_name(f".{second.name}.lock").exists()
    os.utime(third, (time.time() - 10 * 86_400,) * 2)
    with Lock(third.with_name(f".{third.name}.lock"), shared=False):
        fourth = ask(4)
    assert third.exists(), "another process asks for it"
    ask(4)
    assert {path.name for path in fourth.parent.glob("[!.]*")} == {fourth.name, first.name}
    assert another.exists()
    assert digest_directory(ask(2) / "bundle") == digest_directory(bundle), "and comes back"


def test_downloaded_data_sets_that_nobody_asks_for_go(
    server: Server, directory: Path, bundle: Path, photo: bytes, version: DatasetVersion, cache: Path
) -> None:
    ids = [
        register(server.uri, directory / str(number), bundle, photo, name="monthly", version=version)
        for number in range(3)
    ]
    registry = Registry(server.uri)
    folders = [registry.dataset(run_id, cache).parent for run_id in ids]
    for folder, days in zip(folders, (30, 20, 10), strict=True):
        os.utime(folder, (time.time() - days * 86_400,) * 2)
    assert registry.dataset(ids[2], cache).parent == folders[2]
    assert [folder.exists() for folder in folders] == [False, True, True], "what is last of the others stays"


def test_a_download_that_breaks_off_leaves_nothing(
    server: Server, directory: Path, bundle: Path, photo: bytes, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(server.uri, directory, bundle, photo, name="broken")
    with monkeypatch.context() as patch:

        def break_off(_source: str, *, dst_path: str, tracking_uri: str) -> str:
            (Path(dst_path) / "bundle").mkdir()
            (Path(dst_path) / "bundle" / "bundle.json").write_text("{")
            raise ConnectionError("Connection refused")

        patch.setattr("mlflow.artifacts.download_artifacts", break_off)
        with pytest.raises(UserError, match=r"cannot be downloaded by way of the .* \(connection refused\)"):
            Registry(server.uri).bundle("models:/broken/1", cache)
    assert not list(cache.rglob("bundle.json"))
    assert digest_directory(Registry(server.uri).bundle("models:/broken/1", cache)) == digest_directory(bundle)


def test_a_fresh_machine_finds_the_data_set_of_a_model(
    uri: str, directory: Path, bundle: Path, photo: bytes, version: DatasetVersion, cache: Path
) -> None:
    name = f"data-{directory.parent.parent.name}"
    run_id = register(uri, directory, bundle, photo, name=name, version=version)
    connect(uri).set_registered_model_alias(name, "champion", "1")
    table = version.table()
    shutil.rmtree(version.directory)
    registry = Registry(uri)
    folders = {
        registry.dataset(reference, cache)
        for reference in (run_id, f"runs:/{run_id}", f"models:/{name}/1", f"models:/{name}@champion")
    }
    (folder,) = folders
    logged = DatasetVersion.load(folder)
    assert (logged.name, logged.digest, logged.class_names) == (version.name, version.digest, version.class_names)
    pd.testing.assert_frame_equal(logged.table(), table)


Question = Callable[[Registry], object]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda registry: registry.version("pets"), "pets refers to no registered model: give models:/NAME/VERSION or"),
        (lambda registry: registry.version("models:/pets/latest"), "models:/pets/latest refers to no registered model"),
        (lambda registry: registry.versions("cars"), r"There is no registered model 'cars': there is pets\."),
        (lambda registry: registry.version("models:/pets/7"), r"'pets' has no version 7: there are 1, 3\."),
        (lambda registry: registry.version("models:/pets/2"), r"'pets' has no version 2: there are 1, 3\."),  # deleted
        (
            lambda registry: registry.bundle("models:/pets@champion"),
            r"'pets' has no alias 'champion': there is 'challenger' \(version 3\)\.",
        ),
        (lambda registry: registry.dataset("models:/pets@best"), "'pets' has no alias 'best'"),
        (lambda registry: registry.version("models:/pets@latest"), "'pets' has no alias 'latest'"),  # MLflow has one
        (
            lambda registry: registry.dataset("0" * 32),
            r"There is no run 0* in the tracking database .*; the newest are",
        ),
        (lambda registry: registry.dataset("runs:/x"), "There is no run x in the tracking database"),
        (lambda registry: registry.dataset("models:/pets/3"), r"Run \w+ in the .* is deleted: restore it"),
        (lambda registry: registry.dataset("models:/pets/1"), r"Run \w+ has no data/manifest\.parquet in the tracking"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(
    tracking: Tracking, client: MlflowClient, directory: Path, bundle: Path, photo: bytes, ask: Question, sentence: str
) -> None:
    ids = [register(tracking.uri, directory / str(number), bundle, photo) for number in range(3)]
    client.delete_model_version("pets", "2")
    client.set_registered_model_alias("pets", "challenger", "3")
    client.delete_run(ids[2])
    client.create_registered_model(f"pets{LEASE}")
    with pytest.raises(UserError, match=sentence) as caught:
        ask(tracking.registry())
    assert str(caught.value).endswith(".")


def test_a_reference_to_nothing_on_a_server(server: Server) -> None:
    registry = Registry(server.uri)
    with pytest.raises(UserError, match="There is no registered model 'nothing': there "):
        registry.bundle("models:/nothing@champion")
    with pytest.raises(UserError, match=f"There is no run x in the tracking server {server.uri}"):
        registry.dataset("x")


def test_a_model_of_others(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    client.create_registered_model("foreign")
    with pytest.raises(UserError, match=r"'foreign' has no version 1: there is none\."):
        tracking.registry().version("models:/foreign/1")
    source = tmp_path / "foreign"
    (source / "artifacts" / "bundle").mkdir(parents=True)
    client.create_model_version("foreign", source=source.as_uri())
    version = tracking.registry().version("models:/foreign/1")
    assert version == RegisteredVersion("foreign", 1, None, {}, (), "", source.as_uri())
    with pytest.raises(UserError, match="models:/foreign/1 has no bundle in"):
        tracking.registry().bundle("models:/foreign/1")
    with pytest.raises(UserError, match="models:/foreign/1 was registered without a run"):
        tracking.registry().dataset("models:/foreign/1")


def test_no_database_and_no_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no tracking database sqlite:///.*/mlflow\.db: give"):
        Registry(f"sqlite:///{tmp_path / 'mlflow.db'}").versions("pets")
    assert list(tmp_path.iterdir()) == []
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(UserError, match=r"does not answer \(no answer in time\)"),
    ):
        Registry(f"http://127.0.0.1:{silent.getsockname()[1]}").bundle("models:/pets/1")


def test_it_is_light_to_import() -> None:
    script = "import graftline.tracking.registry, graftline.tracking.tracking, sys; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
