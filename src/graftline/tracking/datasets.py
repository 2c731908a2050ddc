"""Describe a dataset version as MLflow's inputs of a run."""

import json
from typing import Any

from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # MLflow makes it at import
from mlflow.types import ColSpec, DataType, Schema

from graftline.data.version import DatasetVersion

_SCHEMA = Schema([ColSpec(DataType.string, name) for name in ("path", "label", "split")])


class ManifestDataset(MetaDataset):
    """Describe some splits of a dataset version: the manifest's path and the number of images by class."""

    def __init__(self, version: DatasetVersion, name: str, splits: tuple[str, ...]) -> None:
        counts = version.counts()
        self._counts = {split: counts[split] for split in splits if split in counts}
        source = LocalArtifactDatasetSource((version.directory / "manifest.parquet").resolve().as_uri())
        super().__init__(source, name=name, digest=version.digest, schema=_SCHEMA)

    @property
    def profile(self) -> dict[str, dict[str, int]]:
        """The number of images by split and class."""
        return self._counts

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of MLflow's entity."""
        return {**super().to_dict(), "profile": json.dumps(self._counts)}


def dataset_inputs(version: DatasetVersion) -> list[dict[str, Any]]:
    """Return the fields of a "dataset" record: what the run trained on, and what it is tested on.

    The two have different names since MLflow knows a dataset by name and digest, and keeps one context for each.
    """
    training = ManifestDataset(version, version.name, ("train", "validation"))
    test = ManifestDataset(version, f"{version.name}/test", ("test",))
    return [{"context": "training", **training.to_dict()}, {"context": "test", **test.to_dict()}]
