"""graftline grafts a new head onto a pretrained vision network and keeps the result in production."""

import os
import pkgutil

# MLflow puts the few modules that lie in a registered model first on the path of the process that loads it: the rest of
# graftline, where it is installed, is still to be found, by processes that this one starts too.
__path__ = pkgutil.extend_path(__path__, __name__)

# No phone-home: each dependency's update check and telemetry is off unless the user turned it on.
for _name in ("NO_ALBUMENTATIONS_UPDATE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")

__version__ = "0.1.0"
