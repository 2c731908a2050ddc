"""MLflow, made quiet and impatient: where it lies, whether it answers, and what its errors mean.

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
from mlflow.exceptions import MlflowException

from graftline.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# MLflow prints a link at the end of each run, progress bars of its own, and copies a uv.lock that happens to lie in the
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
_DATABASE_SECONDS = 60.0  # a remote database may have to make its tables first

_SQLITE = "sqlite:///"
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+@")

# What the server will refuse again, however often it is sent. All else (no connection, no answer, no right, 5xx, a
# locked database) may pass.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_HTTP_REFUSALS = {400, 413, 422}

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
    """
    return _PASSWORD.sub(r"\1***@", text)


def absolute_uri(uri: str) -> str:
    """Return ``uri`` so that it means the same from every working directory.

    Raises:
        UserError: MLflow no longer writes to such a place.
    """
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).resolve())
    if urlsplit(uri).scheme in ("", "file"):
        raise UserError(
            f"tracking.uri={uri} is a folder, which MLflow no longer writes to: "
            "give a database such as sqlite:///mlflow.db, or the address of a server."
        )
    return uri


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a local database, None for a server."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def place(uri: str) -> str:
    """Name the place at ``uri`` for a person.

    >>> place("http://me:secret@host:5000")
    'tracking server http://me:***@host:5000'
    """
    return ("tracking database " if sqlite_file(uri) else "tracking server ") + without_password(uri)


def connect(uri: str) -> MlflowClient:
    """Return a client for tracking and registry at ``uri``."""
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def first_contact(uri: str, ask: Callable[[MlflowClient], T]) -> tuple[MlflowClient, T]:
    """Connect and ask a first question.

    Args:
        uri: as `absolute_uri` returns it.
        ask: a call that changes nothing.

    Returns:
        The client and the answer.

    Raises:
        UserError: no answer within `START_SECONDS`, or one that is no answer.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        logger.info(f"Creating the tracking database {file} (once, takes some seconds)")

    def connect_and_ask() -> tuple[MlflowClient, T]:
        client = connect(uri)
        return client, ask(client)

    try:
        if file is not None:
            return connect_and_ask()
        is_server = urlsplit(uri).scheme in ("http", "https")
        with request_limit(_START_REQUEST_SECONDS):
            return _within(START_SECONDS if is_server else _DATABASE_SECONDS, connect_and_ask)
    except Exception as error:  # MLflow and SQLAlchemy raise a dozen kinds for "not there"
        raise UserError(_no_contact(uri, error)) from error


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Return ``function()``, or raise TimeoutError; a name server that is silent has no time limit of its own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="first-contact").start()
    return future.result(timeout=seconds)


def _no_contact(uri: str, error: Exception) -> str:
    if "out-of-date database schema" in str(error):
        return (
            f"The {place(uri)} was made by another MLflow: "
            f"copy it, then bring it up to date with `mlflow db upgrade {without_password(uri)}`."
        )
    if sqlite_file(uri) is not None:
        return f"The {place(uri)} cannot be used ({reason(error)}): give another with tracking.uri=…"
    return (
        f"The {place(uri)} does not answer ({reason(error)}): "
        "start it, give another with tracking.uri=…, or track on this machine with tracking=local."
    )


def is_refusal(error: Exception) -> bool:
    """Whether sending the same again is pointless."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _HTTP_REFUSALS
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSALS
    return isinstance(error, FileNotFoundError)


def is_unclear(error: Exception) -> bool:
    """Whether the value can be at fault, or the server."""
    if isinstance(error, MlflowException):
        return error.error_code in _UNCLEAR
    return isinstance(error, ValueError | TypeError)


def reason(error: BaseException) -> str:
    """Return the gist of an error in a few words."""
    text = str(error)
    for sign, meaning in (
        ("timed out", "no answer in time"),
        ("timeout exception", "no answer in time"),
        ("Connection refused", "connection refused"),
        ("Failed to resolve", "no such host"),
        ("Name or service not known", "no such host"),
    ):
        if sign in text:
            return meaning
    if isinstance(error, TimeoutError):
        return "no answer in time"
    first_line = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return without_password(first_line.strip()[:200])
