"""systemd: a service that runs a job once, and a timer that starts it, for the user's own systemd.

In a unit ``%`` begins a specifier and is doubled, and a word in double quotes has C's escapes (systemd.syntax(7),
systemd.unit(5)). The colon before the program keeps ``$`` as it is (systemd.service(5), "Command lines").
"""

import os
import shutil
import subprocess
from pathlib import Path

from graftline.errors import UserError
from graftline.files import write_text
from graftline.scheduling.job import MARK, Job
from graftline.scheduling.times import Times

SERVICE = """\
# {mark}: made by make schedule, which removes it with remove=true
[Unit]
Description=graftline {stage}: {name}

[Service]
Type=oneshot
WorkingDirectory={directory}
{environment}ExecStart={command}
TimeoutStartSec={seconds}
TimeoutStopSec=60
"""
TIMER = """\
# {mark}: made by make schedule, which removes it with remove=true
[Unit]
Description=graftline {stage}: {name}

[Timer]
{events}
Persistent=true

[Install]
WantedBy=timers.target
"""


def service_unit(job: Job) -> str:
    """Return the service that runs a job."""
    # a shell, since systemd makes no folder for StandardOutput=append; what it says itself is in the journal
    script = f'mkdir -p {job.log.parent} && exec "$@" >>"$0" 2>&1'
    words = [":/bin/sh", "-c", script, str(job.log), *job.words]
    variables = [f"Environment={_quoted(f'{name}={value}')}\n" for name, value in job.variables.items()]
    return SERVICE.format(
        mark=job.mark,
        stage=job.stage,
        name=job.name,
        directory=_percent(str(job.directory)),
        environment="".join(variables),
        command=" ".join(map(_quoted, words)),
        seconds=job.seconds,
    )


def timer_unit(job: Job, times: Times) -> str:
    """Return the timer that starts the service of the same name; a time that was slept through is made up for."""
    events = "\n".join(f"OnCalendar={event}" for event in times.as_systemd())
    return TIMER.format(mark=job.mark, stage=job.stage, name=job.name, events=events)


def units_folder() -> Path:
    """Return the folder of the user's own units."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def install(job: Job, times: Times) -> str:
    """Write the units into the user's folder and start the timer; a second time replaces them.

    Returns:
        A sentence: what was done, and what is left to do where no systemd of the user's runs.

    Raises:
        UserError: units of that name are another directory's, or nobody's that we know.
    """
    folder = units_folder()
    units = {f"{job.slug}.service": service_unit(job), f"{job.slug}.timer": timer_unit(job, times)}
    for file in (folder / name for name in units):
        if file.exists() and not _first_line(file).startswith(f"# {job.mark}: "):
            raise UserError(f"{file} is there and not of this schedule: give this one a name with JobOptions.name.")
    for name, text in units.items():
        write_text(folder / name, text, private=True)
    timer = f"{job.slug}.timer"
    problem = _systemctl("daemon-reload") or _systemctl("enable", timer) or _systemctl("restart", timer)
    if problem is None:
        return f"{timer} runs; loginctl enable-linger lets it run while you are logged out."
    return (
        f"The units lie in {folder}, but no systemd of yours loaded them ({problem}): where one runs, type "
        f"systemctl --user daemon-reload && systemctl --user enable --now {timer}"
    )


def remove(directory: str, name: str | None) -> list[str]:
    """Stop and remove the units of a directory, or those of a name, and return the names of their schedules."""
    names = []
    for timer in sorted(units_folder().glob("graftline-*.timer")):
        mark, _, rest = _first_line(timer).removeprefix(f"# {MARK} ").partition(" in ")
        if not rest.startswith(f"{directory}: ") or name not in (None, mark):
            continue
        _systemctl("disable", "--now", timer.name)
        for file in (timer, timer.with_suffix(".service")):
            file.unlink(missing_ok=True)
        names.append(mark)
    if names:
        _systemctl("daemon-reload")
    return names


def _systemctl(*words: str) -> str | None:
    """Tell the user's systemd something; returns what went wrong."""
    if shutil.which("systemctl") is None:
        return "systemctl is missing"
    done = subprocess.run(["systemctl", "--user", *words], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip() or "it says nothing").splitlines()[0]


def _first_line(file: Path) -> str:
    return (file.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[0]


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Return a word of a command line or an assignment as a unit has it."""
    escaped = _percent(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
