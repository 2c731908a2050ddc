"""What the name of a registered model means: its champion, or what stands in for one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

from graftline.errors import UserError
from graftline.serving.origin import Origin, Registered
from graftline.tracking.client import connect
from graftline.tracking.names import BUNDLE_DIGEST, DECISION
from graftline.tracking.registry import Registry


@pytest.fixture
def registry(empty_database: Path, tmp_path: Path) -> Registry:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def client(registry: Registry) -> MlflowClient:
    client = connect(registry.uri)
    client.create_registered_model("pets")
    return client


def register(client: MlflowClient, number: int, folder: Path) -> None:
    for _ in range(number):
        client.create_model_version("pets", folder.as_uri())


def test_what_the_gate_has_refused_stands_in_for_no_champion(
    registry: Registry, client: MlflowClient, tmp_path: Path
) -> None:
    pets = Registered("pets", registry)
    with pytest.raises(UserError, match="'pets' has no version: train one"):
        pets.find()
    register(client, 3, tmp_path)
    for version, decision, found in (("1", "promoted (line 1)", 3), ("3", "refused (line 2)", 2)):
        client.set_model_version_tag("pets", version, DECISION, decision)
        origin = pets.find()
        assert (origin.version, origin.stands_in) == (found, True)
        assert f"version {found}, the newest that the gate has not refused, answers until" in str(pets.note(origin))
    client.set_registered_model_alias("pets", "champion", "3")
    champion = Origin("models:/pets/3", 3, "unknown")
    assert (pets.find(), pets.find().stands_in) == (champion, False), "whatever the gate has said"
    assert pets.note(pets.find()) is None
    client.delete_registered_model_alias("pets", "champion")
    for version in ("1", "2"):
        client.set_model_version_tag("pets", version, DECISION, "refused (line 3)")
    with pytest.raises(UserError, match=r"has refused all of its versions: .*, such as models:/pets/3\.$"):
        pets.find()
    assert Registered("models:/pets/3", registry).find().version == 3, "who names it means it"


def test_a_model_that_was_made_anew_is_another(registry: Registry, client: MlflowClient, tmp_path: Path) -> None:
    pets, found = Registered("models:/pets/1", registry), []
    for digest in ("1f2e", "3d4c"):
        client.create_model_version("pets", tmp_path.as_uri(), tags={BUNDLE_DIGEST: digest})
        found.append(pets.find())
        client.delete_registered_model("pets")
        client.create_registered_model("pets")
    assert [(origin.uri, origin.digest) for origin in found] == [("models:/pets/1", "1f2e"), ("models:/pets/1", "3d4c")]
    assert found[0] != found[1]


def test_a_look_reads_one_version_however_many_there_are(
    registry: Registry, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    describe: Callable[[Any], object] = SqlModelVersion.to_mlflow_entity

    def count(version: Any) -> object:
        read.append(version.version)
        return describe(version)

    looks: list[Callable[[], object]] = [
        Registered("pets", registry).find,
        Registered("models:/pets@champion", registry).find,
        Registered("models:/pets/1", registry).find,
    ]
    for more in (1, 20):
        register(client, more, tmp_path)
        client.set_registered_model_alias("pets", "champion", "1")
        for look in looks:
            with monkeypatch.context() as patch:
                patch.setattr(SqlModelVersion, "to_mlflow_entity", count)
                look()
            assert read == [1]
            read.clear()
