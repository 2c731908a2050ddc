"""What each stage does first, whatever it is for: imported by the process that warm processes are forked from.

It sets up what takes its time once in a process: graftline's modules and those that they import, the parser of
overrides, the tables of MLflow's database, fonts, templates, the libraries' versions. It starts no thread and opens no
file or database, which a fork would share.
"""

import gc
from importlib import import_module
from pkgutil import walk_packages

import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import onnxruntime  # noqa: F401 - is to be there
import onnxscript  # noqa: F401
import pyarrow.dataset  # noqa: F401
import sklearn.metrics  # noqa: F401
import unsynced  # noqa: F401 - nothing waits for the disk
from sqlalchemy.orm import configure_mappers
from workplace import TINY

import graftline
from graftline.pipeline.cli.hydra_conf import session
from graftline.pipeline.cli.validate import validate
from graftline.report.page import _environment
from graftline.report.style import new_figure, png
from graftline.tracking.environment import versions

for module in walk_packages(graftline.__path__, "graftline."):
    import_module(module.name)
configure_mappers()
with session("train"):
    validate("train", [*TINY, "data=folder", "data.path=images"])
versions()
png(new_figure(3, 2, "a title", "a subtitle"))
for template in _environment().list_templates(extensions=["j2"]):
    _environment().get_template(template)
gc.freeze()  # what is imported stays: no process is to look at it, or write to its pages
