"""What every run in MLflow is told of what it is made of: configuration, code and images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from graftline.data.version import DatasetVersion
from graftline.pipeline.runs.directory import RunDirectory

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


def log_setup(run: "Run", version: DatasetVersion, first: Mapping[str, str | int | float | bool] | None = None) -> None:
    """Log the configuration of a run's output directory, the code's state and the images.

    Args:
        run: that is told.
        version: the images.
        first: parameters that MLflow shows before those of the configuration.
    """
    config = OmegaConf.load(RunDirectory(run.directory).config)
    nested = OmegaConf.to_container(config, resolve=True)
    assert isinstance(nested, dict)
    run.log_params({**(first or {}), **{str(key): value for key, value in nested.items()}}, OmegaConf.to_yaml(config))
    run.log_environment()
    run.log_dataset(version)
