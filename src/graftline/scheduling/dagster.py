"""Dagster: a file for each schedule, of which pipeline/dagster/definitions.py makes assets, a clock and a sensor."""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from graftline.data.references import find_url
from graftline.errors import UserError
from graftline.files import write_text
from graftline.scheduling.job import Job
from graftline.scheduling.times import Times

HOME = ".dagster"  # in the working directory; Dagster's DAGSTER_HOME
SCHEDULES = "schedules"  # in the home, a file for each
LOOK_SECONDS = 60  # between two looks at the source


@dataclass(frozen=True)
class DagsterOptions:
    """What of a schedule in Dagster can be chosen (Hydra target of the node ``dagster``).

    Attributes:
        new_images: so many new files in the source start a run between the times of the clock.
        hours: a new file that has waited for so long starts one, too.
        address: of MLflow's pages, to link to.
    """

    new_images: int = 100
    hours: float = 24.0
    address: str = "http://127.0.0.1:5000"

    def __post_init__(self) -> None:
        if self.new_images < 1:
            raise UserError(f"DagsterOptions.new_images is {self.new_images}, it must be at least 1.")
        if not self.hours > 0:  # also catches NaN
            raise UserError(f"DagsterOptions.hours is {self.hours}, it must be above 0.")


def dagster_schedule(job: Job, times: Times, source: str | None, options: DagsterOptions, timezone: str) -> str:
    """Return the file of a schedule.

    Args:
        job: what runs.
        times: when.
        source: where the images are; no sensor looks at a URL, nor at a data set from a package: None.
        options: when new images start a run.
        timezone: of the times.
    """
    content = {
        "name": job.name,
        "stage": job.stage,
        "cron": times.as_cron(),
        "timezone": timezone,
        "command": job.words,
        "directory": str(job.directory),
        "variables": job.variables,
        "seconds": job.seconds,
        "log": str(job.log),
        "source": _watched(source, job.directory),
        "new_images": options.new_images,
        "age_hours": options.hours,
        "look_seconds": LOOK_SECONDS,
        "address": options.address,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _watched(source: str | None, directory: Path) -> str | None:
    """Return the path that a sensor looks at; None where there is none."""
    if source is None or find_url(source) is not None:
        return None
    return str(directory / Path(source).expanduser())


def file_name(job: Job) -> str:
    """Return the name of a schedule's file."""
    return f"{job.name}.json"


def install(job: Job, text: str, definitions: Path) -> None:
    """Put a schedule where Dagster finds it; a second time replaces it."""
    home = job.directory / HOME
    write_text(home / SCHEDULES / file_name(job), text, private=True)
    shutil.copyfile(definitions / "dagster.yaml", home / "dagster.yaml")


def command(directory: Path, definitions: Path) -> str:
    """Return the command that starts Dagster on the schedules of a directory."""
    words = ["dagster", "dev", "--python-file", str(definitions / "definitions.py")]
    words += ["--working-directory", str(definitions), "--host", "127.0.0.1", "--port", "3000"]
    return f"DAGSTER_HOME={shlex.quote(str(directory / HOME))} {shlex.join(words)}"


def remove(directory: str, name: str | None) -> list[str]:
    """Take the schedules of a directory, or the one of a name, away, and return their names; their runs stay."""
    files = sorted((Path(directory) / HOME / SCHEDULES).glob("*.json" if name is None else f"{name}.json"))
    for file in files:
        file.unlink()
    return [file.stem for file in files]
