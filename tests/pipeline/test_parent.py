"""A parent may be a run in MLflow: a data set then grows on a machine that has no versions of it."""

from pathlib import Path

import pytest
from manifest import manifest
from workplace import Workplace

from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.errors import UserError
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.tracking.tracking import Tracking


def made_up(folder: Path, indices: range, parent: DatasetVersion | None = None) -> DatasetVersion:
    table = manifest(
        ["ab"[index % 2] for index in indices],
        ["train" if index % 3 else "test" for index in indices],
        path=[f"/images/{index}.png" for index in indices],
        sha256=[f"{index:064x}" for index in indices],
    )
    return write_version(folder, "set", table, ("a", "b"), parent=parent)[0]


def test_a_run_stands_for_the_version_that_it_was_trained_on(workplace: Workplace) -> None:
    tmp_path = workplace.root
    version = made_up(tmp_path / "set", range(2, 12), parent=made_up(tmp_path / "set", range(10)))
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", system_metrics=False)
    with tracking.start(run_name="one", experiment="set", directory=tmp_path / "outputs", tags={}) as run:
        run.log_dataset(version)
    data = Ingest("set", None, Folder(), Split())
    for reference in (run.id, f"runs:/{run.id}"):
        parent = DatasetVersion.load(
            Path(with_parent(Ingest("set", None, Folder(), Split(), reference), tracking).parent)
        )
        assert (parent.digest, parent.parent) == (version.digest, version.parent)
        assert parent.history().equals(version.history())  # also of the images that are not there any more
    assert with_parent(data, tracking) is data
    for reference, message in (
        ("models:/set@champion", "no registered model 'set'"),
        ("0" * 32, "no run 0000"),
        ("champion", "data.parent=champion is no version: give newest, .* an MLflow run's id or models:/NAME@ALIAS"),
    ):
        with pytest.raises(UserError, match=message):
            with_parent(Ingest("set", None, Folder(), Split(), reference), tracking)
