"""What a person is told of a mistake or a fault: one clear sentence; and the exit codes."""

import os
import traceback
from contextlib import suppress
from pathlib import Path

from graftline.console import console
from graftline.errors import UserError, find_cause, no_room
from graftline.files import write_text

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 130


def report_error(error: BaseException, directory: Path | None = None) -> None:
    """Print one sentence for a mistake; for a fault of ours the sentence, and where the traceback lies.

    ``GRAFTLINE_DEBUG=1`` prints the traceback in any case.
    """
    if os.environ.get("GRAFTLINE_DEBUG") == "1":
        console.print("".join(traceback.format_exception(error)), markup=False)
    mistake = find_cause(error, UserError)
    if (sentence := no_room(error) if mistake is None else str(mistake)) is not None:
        console.print(sentence, style="red", markup=False, soft_wrap=True)
        return
    where = ""
    if directory is not None:
        with suppress(OSError):  # which may be the fault itself
            write_text(directory / "traceback.txt", "".join(traceback.format_exception(error)))
            where = f" The traceback lies in {directory / 'traceback.txt'}."
    text = f"{type(error).__name__}: {error or 'no message'}".strip()
    console.print(f"graftline failed: {text}{where}", style="red", markup=False, soft_wrap=True)
