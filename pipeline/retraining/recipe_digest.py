"""What a retraining depends on beside the images: configuration, code and libraries, as one digest."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graftline.files import digest, sha256_file
from graftline.pipeline.runs.code_digest import code_digest
from graftline.tracking.environment import MAIN_LIBRARIES

# packages whose code decides what a training gives; the rest shows, tracks or serves it
CODE = (
    *("augment", "backbones", "bundle", "data", "evaluation", "execution.py", "features", "freezing", "training"),
    # of the stages, what trains a model and what it learns after that
    *("pipeline/train.py", "pipeline/searching/winner.py", "pipeline/retraining/challengers.py"),
    *("pipeline/training/bundle.py", "pipeline/training/calibration.py", "pipeline/training/decisions.py"),
)
# nodes and keys that do not: where it runs and is tracked, where its files lie and how many they may be, how sure its
# scores are; images have a digest of their own
OTHERS = {
    *("cluster", "data", "name", "tracking", "backbone.weights_dir"),
    *("evaluation.batch_size", "evaluation.resamples", "evaluation.seed"),
    *("features.directory", "features.max_gb", "features.shared"),
    *("train.checkpoint_minutes", "train.workers"),
}


def recipe_digest(config: Mapping[str, Any], start: str) -> str:
    """Return 16 hex digits for all that a retraining on given images depends on.

    Args:
        config: nodes of the composed configuration.
        start: what trainings begin with.
    """
    used = {key: _used(key, node) for key, node in config.items() if key not in OTHERS}
    weights = _weights_digest(used.get("backbone", {}).get("file"))
    return digest(
        {"config": used, "start": start, "weights": weights, "code": code_digest(CODE), "libraries": _libraries()}
    )


def _used(key: str, node: Any) -> Any:
    """Return a node without the keys that change nothing of a model."""
    if not isinstance(node, Mapping):
        return node
    return {name: value for name, value in node.items() if f"{key}.{name}" not in OTHERS}


def _weights_digest(file: str | None) -> str | None:
    """Return a digest of a file of weights, which may become another one of the same name; None where there is none."""
    path = None if file is None else Path(file).expanduser()
    return sha256_file(path) if path is not None and path.is_file() else None


def _libraries() -> dict[str, str]:
    found = {}
    for name in MAIN_LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # a torch that the system gives may have no metadata
            found[name] = ""
    del found["graftline"]  # its code says more
    return found
