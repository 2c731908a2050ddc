"""graftline grafts a new head onto a pretrained vision network and keeps the result in production."""

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graftline.pipeline.api import compare, load, train

__all__ = ["__version__", "compare", "load", "train"]

# MLflow puts the few modules that lie in a registered model first on the path of the process that loads it: the rest of
# graftline, where it is installed, is still to be found, by processes that this one starts too.
__path__ = pkgutil.extend_path(__path__, __name__)

# No phone-home: each dependency's update check and telemetry is off unless the user turned it on.
for _name in ("NO_ALBUMENTATIONS_UPDATE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

# Threads of torch that wait for one another sleep instead of spinning: where other processes run too, the core that a
# thread spins on is the one that another waits for (docs/accuracy.md has numbers). OpenMP reads it as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what trains, compares and loads models when it is asked for: ``import graftline`` takes no time."""
    if name in ("compare", "load", "train"):
        return getattr(importlib.import_module("graftline.pipeline.api"), name)
    raise AttributeError(f"module 'graftline' has no attribute '{name}'")
