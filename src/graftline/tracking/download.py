"""Bring a folder of artifacts onto this machine, whole or not at all, and remove what nobody asks for any more."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from graftline.errors import UserError
from graftline.files import atomic_directory
from graftline.locks import Lock
from graftline.tracking.uri import absolute_uri, store_name

_DOWNLOAD_SECONDS = 20  # without a byte from the server
_KEPT_SECONDS = 7 * 86_400  # since somebody asked; whoever has loaded a model needs its files no longer


def local_folder(uri: str, source: str, folder: Path) -> Path:
    """Return the path on this machine of a folder of artifacts, which is downloaded if need be.

    Downloads beside it that were not asked for within a week are removed.

    Args:
        uri: of MLflow, a database or a server.
        source: URI of the artifacts.
        folder: where a download is kept.

    Raises:
        UserError: the files are on another machine, or the download fails.
    """
    from graftline.tracking.client import request_limit
    from graftline.tracking.mlflow_errors import reason

    uri = absolute_uri(uri)
    if urlsplit(source).scheme in ("", "file"):
        path = Path(url2pathname(urlsplit(source).path))
        if not path.is_dir():
            raise UserError(f"The {store_name(uri)} has files in {path}, which is not on this machine.")
        return path

    from mlflow.artifacts import download_artifacts

    path = folder / source.rpartition("/")[2]
    try:
        with Lock(_lock_file(folder), shared=False, on_wait=lambda: None):
            if not path.exists():
                with request_limit(_DOWNLOAD_SECONDS), atomic_directory(folder) as temporary:
                    download_artifacts(source, dst_path=str(temporary), tracking_uri=uri)
            os.utime(folder)  # it was asked for
    except Exception as error:  # each artifact store has its own, and the disk may be full
        raise UserError(f"{source} cannot be downloaded by way of the {store_name(uri)} ({reason(error)}).") from error
    _remove_unasked(folder)
    return path


def _remove_unasked(folder: Path) -> None:
    """Remove what `local_folder` has downloaded beside a folder, but for what was asked for within a week.

    The last one beside it is kept in any case: it is what a rollback leads to.
    """
    with suppress(FileNotFoundError):  # another process removes them, too
        beside = [one for one in folder.parent.glob("[!.]*") if one.name != folder.name]
        for old in sorted(beside, key=lambda one: one.stat().st_mtime)[:-1]:
            _remove_if_unasked(old)


def _remove_if_unasked(folder: Path) -> None:
    with suppress(OSError), Lock(_lock_file(folder), shared=False, temporary=True):  # BlockingIOError: it is asked for
        if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
            gone = folder.rename(folder.with_name(f".{folder.name}.gone"))  # whole or not at all
            shutil.rmtree(gone, ignore_errors=True)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")
