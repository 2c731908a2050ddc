"""What all stages share: how one is run, what it leaves behind, and what becomes of a mistake, a fault or Ctrl-C."""

import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from graftline.console import console, print_facts, say
from graftline.errors import UserError
from graftline.files import write_json

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 1, 130


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes:
        facts: goes into ``result.json`` (``dataset_digest``, ``run_id``, ``model_uri`` where there is one).
        metrics: name → ``{"value", "low", "high"}``.
        table: rows of the short table at the end.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    table: Sequence[tuple[str, str]] = ()


class Stage(Protocol):
    """A stage: the object that a configuration at the root of conf/ describes."""

    def run(self, directory: Path) -> StageResult:
        """Do the stage's work, with ``directory`` for its files."""
        ...


def run_stage(name: str, stage: Stage, directory: Path) -> None:
    """Run a stage; write ``result.json``, print the short table and, last, the output directory."""
    start = time.perf_counter()
    result = stage.run(directory)
    seconds = round(time.perf_counter() - start, 1)
    content = {"stage": name, "seconds": seconds, **result.facts, "metrics": result.metrics}
    write_json(directory / "result.json", content)
    console.print()
    print_facts(f"{name}: done in {seconds:.0f} s", result.table)
    say(str(directory))


def guarded(name: str, stage_from_config: Any, directory: Path) -> int:
    """Build and run a stage, and turn what goes wrong into one clear sentence and an exit code.

    Args:
        name: of the stage.
        stage_from_config: called without arguments, returns the stage.
        directory: where it writes.

    Returns:
        0 done, 1 a mistake or a fault, 130 interrupted.
    """
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler that stops us is the same as Ctrl-C
    try:
        run_stage(name, stage_from_config(), directory)
    except KeyboardInterrupt:
        say(f"Interrupted. {directory}")
        return EXIT_INTERRUPTED
    except Exception as error:
        if _find(error, KeyboardInterrupt):  # Ctrl-C at a moment that a library made an error of its own of
            say(f"Interrupted. {directory}")
            return EXIT_INTERRUPTED
        report_error(error, directory)
        return EXIT_MISTAKE
    finally:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "log.txt").write_text(console.export_text(), encoding="utf-8")
    return EXIT_DONE


def report_error(error: BaseException, directory: Path | None = None) -> None:
    """Print one sentence for a mistake; for a fault of ours the sentence, and where the traceback lies.

    ``GRAFTLINE_DEBUG=1`` prints the traceback in any case.
    """
    cause = _find(error, UserError)
    if os.environ.get("GRAFTLINE_DEBUG") == "1":
        console.print("".join(traceback.format_exception(error)), markup=False)
    if cause is not None:
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


def _find(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind behind an error (Hydra and Lightning wrap what is raised inside of them)."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _interrupt(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
    raise KeyboardInterrupt
