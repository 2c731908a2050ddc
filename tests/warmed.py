"""What each stage does first, whatever it is for: imported by the process that warm processes are forked from.

It sets up what takes its time once in a process: the parser of overrides, the tables of MLflow's database, fonts, the
libraries' versions. It starts no thread and opens no file or database, which a fork would share.
"""

import gc

import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import onnxruntime  # noqa: F401 - is to be there
import onnxscript  # noqa: F401
import pyarrow.dataset  # noqa: F401
from sqlalchemy.orm import configure_mappers

import graftline.pipeline.cli.composed_stage
import graftline.pipeline.train
import graftline.tracking.run  # noqa: F401
from graftline.pipeline.cli.hydra_conf import session
from graftline.pipeline.cli.validate import validate
from graftline.report.style import new_figure, png
from graftline.tracking.environment import versions

configure_mappers()
with session("train"):
    validate("train", ["seed=0"])
versions()
png(new_figure(3, 2, "a title", "a subtitle"))
gc.freeze()  # what is imported stays: no process is to look at it, or write to its pages
