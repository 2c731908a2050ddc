"""Where runs are tracked, by its URI: a local database, a remote one or a server. It is light to import: no MLflow."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from graftline.errors import UserError

_SQLITE = "sqlite:///"
# Before the host, a slash in it included; what follows the name of an HTTP server may be its port and a path. Or in the
# query of a database's URI.
_PASSWORD = re.compile(r"((?<!http)(?<!https)://[^/\s:@]*:|https?://[^/\s:@]*:(?!\d+[/?#]))[^\s@]+(?=@)")
_QUERY_PASSWORD = re.compile(r"([?&]password=)[^&\s]+")


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
        UserError: it is a folder, which MLflow no longer writes to, or in place of a database's file.
    """
    if (file := sqlite_file(uri)) is not None:
        if file.is_dir():  # MLflow would try to open it for minutes
            inside = _SQLITE + str(file / "mlflow.db")
            raise UserError(f"Tracking.uri is {uri}, a folder: give the file of a database in it, as {inside}.")
        return _SQLITE + str(file.resolve())
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
