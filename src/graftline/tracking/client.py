"""Connect to MLflow, quietly and within bounded times, and explain its errors.

Everything in this package talks to MLflow through `MlflowClient`; nothing relies on MLflow's global active run or URI.
"""

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds

from graftline.errors import UnreachableError, UserError, find_cause, no_room
from graftline.locks import Lock

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

_SQLITE = "sqlite:///"
# Before the host, a slash in it included; what follows the name of an HTTP server may be its port and a path. Or in the
# query of a database's URI.
_PASSWORD = re.compile(r"((?<!http)(?<!https)://[^/\s:@]*:|https?://[^/\s:@]*:(?!\d+[/?#]))[^\s@]+(?=@)")
_QUERY_PASSWORD = re.compile(r"([?&]password=)[^&\s]+")

# What the server will refuse again, however often it is sent. All else (no connection, no answer, no right, 5xx, a
# locked database) may pass.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_HTTP_REFUSALS = {400, 413, 422}

# What a server with a login says: HTTP's 401 and 403.
_LOGIN, _PERMISSION = "UNAUTHENTICATED", "PERMISSION_DENIED"
_HOST_REFUSED = "Invalid Host header"

# What MLflow says both when its database will not take a value and when its database is out of order.
_UNCLEAR = {"BAD_REQUEST", "INTERNAL_ERROR"}

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


def without_password(text: str) -> str:
    """Hide the passwords of URIs in ``text``.

    >>> without_password("uri: postgresql://me:secret@host/db")
    'uri: postgresql://me:***@host/db'
    >>> without_password("postgresql://me:a/b@host/db"), without_password("postgresql://host/db?user=me&password=secret")
    ('postgresql://me:***@host/db', 'postgresql://host/db?user=me&password=***')
    >>> without_password("http://host:5000/#/models/pets@champion and sqlite:////home/me@work/mlflow.db")
    'http://host:5000/#/models/pets@champion and sqlite:////home/me@work/mlflow.db'
    """
    return _QUERY_PASSWORD.sub(r"\1***", _PASSWORD.sub(r"\1***", text))


def absolute_uri(uri: str) -> str:
    """Return ``uri`` so that it means the same from every working directory.

    Raises:
        UserError: it is a folder, which MLflow no longer writes to.
    """
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).resolve())
    if urlsplit(uri).scheme in ("", "file"):
        raise UserError(
            f"Tracking.uri is {uri}, a folder, which MLflow no longer writes to: "
            "give a database such as sqlite:///mlflow.db, or the address of a server."
        )
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a local database, None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def store_name(uri: str) -> str:
    """Name the database or server at ``uri`` in a message.

    >>> store_name("http://me:secret@host:5000")
    'tracking server http://me:***@host:5000'
    """
    return ("tracking database " if sqlite_file(uri) else "tracking server ") + without_password(uri)


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


def no_answer(uri: str, error: Exception) -> str:
    """Return a sentence for an error that a first question ended with, and the way out."""
    if (sentence := no_right(store_name(uri), error)) is not None:
        return sentence
    if "out-of-date database schema" in str(error):
        return (
            f"The {store_name(uri)} was made by another MLflow: "
            f"copy it, then bring it up to date with `mlflow db upgrade {without_password(uri)}`."
        )
    if "No module named 'psycopg'" in str(error):  # SQLAlchemy 2.1 takes it where the address names no driver
        return f"The {store_name(uri)} is reached by psycopg2: give Tracking.uri as postgresql+psycopg2://…."
    if "database is locked" in str(error):
        return (
            f"The {store_name(uri)} is locked by another process that writes into it for longer than we wait: run the "
            "same command again once it has ended."
        )
    if sqlite_file(uri) is not None:
        return f"The {store_name(uri)} cannot be used ({reason(error)}): give another Tracking.uri."
    return (
        f"The {store_name(uri)} does not answer ({reason(error)}): "
        "start it, or give another Tracking.uri; sqlite:///mlflow.db tracks on this machine."
    )


def no_right(store: str, error: BaseException) -> str | None:
    """Return a sentence if a server does not let us in, or not do what was asked of it; None for another error.

    Args:
        store: `store_name` of the server.
        error: what was raised.
    """
    if _HOST_REFUSED in str(error):
        return f"The {store} does not answer to this name: let its --allowed-hosts have it, or call it by another."
    user = read_mlflow_creds().username
    code = _lacking_right(error)
    if code == _LOGIN:
        told = f"does not take the login of '{user}'" if user else "wants a login"
        return (
            f"The {store} {told}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write both to "
            "~/.mlflow/credentials."
        )
    if code == _PERMISSION:
        return (
            f"The {store} does not allow this to '{user or 'nobody'}', as it belongs to another user: ask its "
            "administrator for the right to edit it, or take another Tracking.experiment and Ingest.name."
        )
    return None


def lacks_right(error: BaseException) -> bool:
    """Return whether a server did not let us in, or not do what was asked of it."""
    return _lacking_right(error) is not None


def _lacking_right(error: BaseException) -> str | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return {401: _LOGIN, 403: _PERMISSION}.get(error.response.status_code)
    code = error.error_code if isinstance(error, MlflowException) else None
    return code if code in (_LOGIN, _PERMISSION) else None


def is_refusal(error: Exception) -> bool:
    """Return whether MLflow would refuse the same again."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _HTTP_REFUSALS
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, FileNotFoundError)


def is_unclear(error: Exception) -> bool:
    """Return whether the value may be at fault, or the server: the error fits both."""
    if isinstance(error, MlflowException):
        return error.error_code in _UNCLEAR
    return isinstance(error, ValueError | TypeError)


def is_of_an_upload(error: Exception) -> bool:
    """Return whether the line or the server's own store may be at fault where a file was sent: that may pass."""
    return find_cause(error, requests.RequestException) is not None and not is_refusal(error)


def reason(error: BaseException) -> str:
    """Return an error as a few words, without passwords."""
    if (code := _lacking_right(error)) is not None:
        return {_LOGIN: "the login is not taken", _PERMISSION: "no permission"}[code]
    text = str(error)
    for sign, meaning in (
        ("timed out", "no answer in time"),
        ("timeout exception", "no answer in time"),
        ("Connection refused", "connection refused"),
        ("Connection aborted", "the connection broke"),
        ("Connection reset", "the connection broke"),
        ("Broken pipe", "the connection broke"),
        ("error responses", "an error inside the server"),
        ("Failed to resolve", "no such host"),
        ("Name or service not known", "no such host"),
    ):
        if sign in text:
            return meaning
    if isinstance(error, TimeoutError):
        return "no answer in time"
    first_line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return without_password(first_line.strip()[:200])
