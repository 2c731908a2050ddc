"""What an error of MLflow means: whether it may pass, whether a right is missing; and in words, with the way out."""

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import read_mlflow_creds

from graftline.errors import find_cause
from graftline.tracking.uri import sqlite_file, store_name, without_password

# What the server will refuse again, however often it is sent. All else (no connection, no answer, no right, 5xx, a
# locked database) may pass.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_HTTP_REFUSALS = {400, 413, 422}

# What a server with a login says: HTTP's 401 and 403.
_LOGIN, _PERMISSION = "UNAUTHENTICATED", "PERMISSION_DENIED"
_HOST_REFUSED = "Invalid Host header"

# What MLflow says both when its database will not take a value and when its database is out of order.
_UNCLEAR = {"BAD_REQUEST", "INTERNAL_ERROR"}


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
