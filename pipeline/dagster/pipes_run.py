"""The process that Dagster starts for a run: graftline in its own environment, and its result handed over by Pipes.

It belongs to Dagster's environment and imports nothing of graftline's; the command comes with the run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dagster_pipes import open_dagster_pipes

SCHEDULER = "GRAFTLINE_SCHEDULER"  # variable: what started the job, for the ledger
RESULT = "result.json"  # in a run's output directory, which it prints last
GRACE_SECONDS = 60.0  # between SIGTERM, at which a run says that it was killed, and SIGKILL


def main() -> int:
    """Run the command, hand its result over, and return its exit code."""
    with open_dagster_pipes() as pipes:
        job = pipes.extras
        code, last_line, directory = _run(job, pipes.run_id)
        if code != 0:
            pipes.log.error(f"graftline ended with exit code {code}: {last_line}")
            return code
        result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
        pipes.log.info(f"{result.get('outcome', 'done')}: {result.get('reason', directory)}")
        pipes.report_custom_message({"result": result, "directory": str(directory)})
    return code


def _run(job: dict[str, Any], run_id: str) -> tuple[int, str, Path]:
    """Run graftline as a run of Dagster's, and return its exit code, the last line and the output directory.

    The directory is the last line that names one with a result: an interpreter may warn after it, as it ends.
    """
    log = Path(job["directory"]) / job["log"]
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        job["command"],
        cwd=job["directory"],
        env=_environment(job["variables"]) | {SCHEDULER: f"dagster run {run_id}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    for signum in (signal.SIGINT, signal.SIGTERM):  # Dagster's way to end a run
        signal.signal(signum, lambda *_: process.send_signal(signal.SIGINT))
    timers = [threading.Timer(job["seconds"], process.terminate)]
    timers.append(threading.Timer(job["seconds"] + GRACE_SECONDS, process.kill))
    for timer in timers:
        timer.daemon = True
        timer.start()
    last, directory = "", Path(job["directory"])
    assert process.stdout is not None
    with log.open("a", encoding="utf-8") as kept:
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            kept.write(line)
            last = line.strip() or last
            found = Path(job["directory"], last)
            if os.path.isfile(found / RESULT):  # noqa: PTH113 - also of a line that is too long for a path
                directory = found
    return process.wait(), last, directory


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """Return the variables of the run: ours, without what Dagster set for itself."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("DAGSTER", "VIRTUAL_ENV"))}
    return {**ours, **variables}


if __name__ == "__main__":
    sys.exit(main())
