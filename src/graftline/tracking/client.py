"""Connect to MLflow, quietly and within bounded times.

Everything in this package talks to MLflow through `MlflowClient`; nothing relies on MLflow's global active run or URI.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from graftline.errors import UnreachableError, UserError, no_room
from graftline.locks import Lock
from graftline.tracking.mlflow_errors import is_refusal, no_answer
from graftline.tracking.uri import sqlite_file

logger = logging.getLogger(__name__)

T = TypeVar("T")

# MLflow prints a link at the end of each run, progress bars of its own, and copies a uv.lock that happens to be in the
# working directory into every model.
for _name, _value in (
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_UV_AUTO_DETECT", "false"),
):
    os.environ.setdefault(_name, _value)
if "MLFLOW_LOGGING_LEVEL" not in os.environ:
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs, with traceback, what it raises anyway

START_SECONDS = 9.0  # a run that cannot start says so within this time
_START_REQUEST_SECONDS = 4
_CHANGE_REQUEST_SECONDS = 20  # it has answered a moment before
_DATABASE_SECONDS = 60.0  # a remote database may have to make its tables first

_NUM_NEWEST = 3  # runs that a message lists

_limits_lock = threading.Lock()
_limits_depth = 0
_limits_before: dict[str, str | None] = {}


@contextmanager
def request_limit(seconds: float) -> Iterator[None]:
    """Let MLflow's HTTP calls in the block fail after ``seconds`` without an answer, and not be repeated by MLflow.

    MLflow reads both from the environment at each call, so that calls on other threads share the limit meanwhile; the
    former values come back when the last block ends.
    """
    global _limits_depth, _limits_before
    limits = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(round(seconds)), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    with _limits_lock:
        if _limits_depth == 0:
            _limits_before = {name: os.environ.get(name) for name in limits}
        _limits_depth += 1
        os.environ.update(limits)
    try:
        yield
    finally:
        with _limits_lock:
            _limits_depth -= 1
            if _limits_depth == 0:
                for name, value in _limits_before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value


def connect(uri: str) -> MlflowClient:
    """Return a client for tracking and registry at ``uri``."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def connect_checked(uri: str, ask: Callable[[MlflowClient], T]) -> tuple[MlflowClient, T]:
    """Connect and ask a first question, within a bounded time.

    Args:
        uri: as `absolute_uri` returns it.
        ask: a call that changes nothing.

    Returns:
        The client and the answer.

    Raises:
        UnreachableError: MLflow does not answer within `START_SECONDS`, or with an error.
        UserError: the disk is full, or ``ask`` raises one.
    """

    def connect_and_ask() -> tuple[MlflowClient, T]:
        client = connect(uri)
        return client, ask(client)

    file = sqlite_file(uri)
    try:
        if file is not None:
            with _one_creates(file):
                return connect_and_ask()
        is_server = urlsplit(uri).scheme in ("http", "https")
        with request_limit(_START_REQUEST_SECONDS):
            return _within(START_SECONDS if is_server else _DATABASE_SECONDS, connect_and_ask)
    except UserError:
        raise
    except Exception as error:  # MLflow and SQLAlchemy raise a dozen kinds for "not there"
        raise _explained(uri, error) from error


@contextmanager
def change_at(uri: str) -> Iterator[None]:
    """Let what is changed in MLflow during the block fail within a bounded time, with a sentence.

    MLflow by itself would ask a server that has gone away again for four minutes.

    Raises:
        UnreachableError: the server does not answer or does not let us do this, or a local database is locked.
        UserError: the disk of a local database is full.
    """
    try:
        with request_limit(_CHANGE_REQUEST_SECONDS):
            yield
    except UserError:
        raise
    except Exception as error:
        if is_refusal(error):
            raise
        raise _explained(uri, error) from error


@contextmanager
def _one_creates(file: Path) -> Iterator[None]:
    """Let one process alone create a database; MLflow's own lock does not keep two from making the same tables.

    The lock file is beside the database from before its creation until it is complete.
    """
    lock_file = file.with_name(f".{file.name}.lock")
    if file.exists() and not lock_file.exists():
        yield
        return
    with Lock(lock_file, shared=False, on_wait=lambda: None, temporary=True):
        if not file.exists():
            logger.info(f"Creating the tracking database {file} (once)")
            from graftline.tracking.database import create_database  # it loads Alembic, for this once

            create_database(file)
        yield


def find_run(client: MlflowClient, run_id: str, store: str) -> MlflowRun:
    """Return a run.

    Args:
        client: where to look.
        run_id: MLflow's id of the run.
        store: `store_name` of where ``client`` looks, for the message.

    Raises:
        UserError: there is no such run, or it is deleted; the newest runs are listed.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"There is no run {run_id} in the {store}{_newest_runs(client)}.") from error
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"Run {run_id} in the {store} is deleted: restore it with `mlflow runs restore --run-id {run_id}`, "
            f"or take another{_newest_runs(client)}."
        )
    return run


def known_run(client: MlflowClient, run_id: str) -> MlflowRun | None:
    """Return a run, be it deleted; None where there is none, as after ``mlflow gc``."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _newest_runs(client: MlflowClient) -> str:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=_NUM_NEWEST, order_by=["attributes.start_time DESC"])
    names = ", ".join(f"{run.info.run_id} ({run.info.run_name})" for run in runs)
    return f"; the newest are {names}" if names else ", which has none"


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Return ``function()``, or raise TimeoutError. Looking up a host's name has no time limit of its own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="connect").start()
    return future.result(timeout=seconds)


def _explained(uri: str, error: Exception) -> UserError:
    full = no_room(error)
    return UnreachableError(no_answer(uri, error)) if full is None else UserError(full)
