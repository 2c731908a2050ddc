"""What a person is told of a mistake or a fault: one clear sentence; and the exit codes."""

import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from graftline.console import console
from graftline.errors import UserError, find_cause, no_access, no_room
from graftline.files import write_text

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 130


class Outcome(NamedTuple):
    """How a run ended."""

    code: int  # exit code: 0 done, 1 a mistake, a fault or a bad finding, 130 interrupted
    told: str = ""  # the sentence that says what went wrong
    result: Mapping[str, Any] | None = None  # of a run on another machine: its result.json


def report_error(error: BaseException, directory: Path | None = None) -> str:
    """Print one sentence for a mistake; for a fault of ours the sentence, and where the traceback lies; returns it.

    ``GRAFTLINE_DEBUG=1`` prints the traceback in any case.
    """
    if os.environ.get("GRAFTLINE_DEBUG") == "1":
        console.print("".join(traceback.format_exception(error)), markup=False)
    sentence = describe_error(error, directory)
    console.print(sentence, style="red", markup=False, soft_wrap=True)
    return sentence


def describe_error(error: BaseException, directory: Path | None = None) -> str:
    """Return the sentence for an error; the traceback of a fault of ours goes to the directory, if one is given."""
    mistake = find_cause(error, UserError)
    if (sentence := _explain(error) if mistake is None else str(mistake)) is not None:
        return sentence
    where = ""
    if directory is not None:
        with suppress(OSError):  # which may be the fault itself
            write_text(directory / "traceback.txt", "".join(traceback.format_exception(error)))
            where = f" The traceback lies in {directory / 'traceback.txt'}."
    text = f"{type(error).__name__}: {error or 'no message'}".strip()
    return f"graftline failed: {text}{where}"


def _explain(error: BaseException) -> str | None:
    """Return a sentence if the surroundings are behind an error: a disk that is full or closed, or a locale."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and find_cause(error, UnicodeEncodeError) is not None:
        return (
            f"The locale says that names of files are in {encoding}, and one is not: set PYTHONUTF8=1, or a locale of "
            "UTF-8 such as LC_ALL=C.UTF-8."
        )
    return no_room(error) or no_access(error) or _no_right(error)


def _no_right(error: BaseException) -> str | None:
    """Return a sentence if a tracking server does not let us in, or not do what was asked of it."""
    if "mlflow.exceptions" not in sys.modules:  # nothing was asked of MLflow
        return None
    from mlflow.exceptions import MlflowException

    from graftline.tracking.mlflow_errors import no_right

    refusal = find_cause(error, MlflowException)
    return None if refusal is None else no_right("tracking server", refusal)
