"""What becomes of a mistake, a fault or Ctrl-C: one clear sentence and an exit code."""

import os
import signal
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from graftline.console import console, logged, say
from graftline.errors import UserError

if TYPE_CHECKING:
    from pipeline.cli.composed_stage import ComposedStage

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 130


def guarded(composed: "ComposedStage") -> int:
    """Run a stage, and turn what goes wrong into one clear sentence and an exit code.

    Returns:
        0 done, 1 a mistake or a fault, 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler that stops us is the same as Ctrl-C
    composed.directory.mkdir(parents=True, exist_ok=True)
    with logged(composed.directory / "log.txt"):
        try:
            composed.run()
        except (Exception, KeyboardInterrupt) as error:
            if find(error, KeyboardInterrupt):  # also at a moment that a library made an error of its own of
                say(f"Interrupted. {composed.directory}")
                return EXIT_INTERRUPTED
            report_error(error, composed.directory)
            return EXIT_MISTAKE
    return EXIT_DONE


def report_error(error: BaseException, directory: Path | None = None) -> None:
    """Print one sentence for a mistake; for a fault of ours the sentence, and where the traceback lies.

    ``GRAFTLINE_DEBUG=1`` prints the traceback in any case.
    """
    if os.environ.get("GRAFTLINE_DEBUG") == "1":
        console.print("".join(traceback.format_exception(error)), markup=False)
    if (cause := find(error, UserError)) is not None:
        console.print(str(cause), style="red", markup=False, soft_wrap=True)
        return
    where = ""
    if directory is not None:
        file = directory / "traceback.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f" The traceback lies in {file}."
    text = f"{type(error).__name__}: {error or 'no message'}".strip()
    console.print(f"graftline failed: {text}{where}", style="red", markup=False, soft_wrap=True)


def find(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind behind an error (Hydra and Lightning wrap what is raised inside of them)."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    raise KeyboardInterrupt
