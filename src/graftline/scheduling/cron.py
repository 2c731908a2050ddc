"""cron: a line of the user's crontab, between two comments that tell whose it is.

The line is one for ``/bin/sh``, from which cron takes ``%`` for itself unless a backslash stands before it
(crontab(5)). Debian's cron also makes one backslash of two. Its quotes keep all else.
"""

import logging
import re
import shutil
import subprocess

from graftline.errors import UserError
from graftline.scheduling.job import MARK, Job, shell_word
from graftline.scheduling.times import Times

logger = logging.getLogger(__name__)

LONGEST_COMMAND = 998  # characters that Debian's cron takes (MAX_COMMAND of its cron.h, with the newline and the end)
GRACE_SECONDS = 60  # between SIGTERM, at which a run says that it was killed, and SIGKILL
_BEGIN, _END = "# {mark}: made by make schedule, which removes it with remove=true", "# {mark}: end"


def cron_line(job: Job, times: Times) -> str:
    """Return the line that runs a job.

    Raises:
        UserError: it is longer than cron takes.
    """
    variables = [f"{name}={shell_word(value)}" for name, value in job.variables.items()]
    words = [
        *("cd", shell_word(str(job.directory)), "&&", "mkdir", "-p", shell_word(str(job.log.parent)), "&&"),
        *(("env", *variables) if variables else ()),
        # --close: what a killed run leaves behind is not to keep the next one from starting
        *("flock", "--close", "--nonblock", shell_word(str(job.log.with_suffix(".lock")))),
        *("timeout", f"--kill-after={GRACE_SECONDS}", str(job.seconds)),
        *map(shell_word, job.words),
        *(">>", shell_word(str(job.log)), "2>&1"),
    ]
    # a backslash stands in single quotes: no sign that cron reads with it may follow
    command = re.sub(r"\\(?=[\\%])", r"\\''", " ".join(words)).replace("%", r"\%")
    if len(command.encode()) > LONGEST_COMMAND:
        raise UserError(
            f"The command has {len(command.encode()):,} bytes and cron takes {LONGEST_COMMAND}: put the overrides into "
            "a file conf/experiment/mine.yaml and give experiment=mine, or take engine=systemd."
        )
    return f"{times.as_cron()} {command}"


def cron_block(job: Job, times: Times) -> str:
    """Return the lines that are installed: the job's, between two that tell whose it is."""
    return "\n".join([_BEGIN.format(mark=job.mark), cron_line(job, times), _END.format(mark=job.mark), ""])


def with_block(crontab: str, block: str) -> str:
    """Return a crontab with a block in it, in the place of an earlier one of the same mark, else at the end.

    Every other line stays as it is, and so does a block of another number of lines, which somebody has changed.
    """
    begin, *_, end = block.splitlines()
    pattern = rf"^{re.escape(begin)}\n.*\n{re.escape(end)}\n"
    if re.search(pattern, crontab, re.MULTILINE):
        return re.sub(pattern, lambda _: block, crontab, count=1, flags=re.MULTILINE)
    return crontab + ("" if crontab.endswith("\n") or not crontab else "\n") + block


def without_blocks(crontab: str, directory: str, name: str | None) -> tuple[str, list[str]]:
    """Return a crontab without the blocks of a directory, or the one of a name, and the names of those removed."""
    end = rf"# {MARK} (?P=name) in {re.escape(directory)}: end\n"
    block = re.compile(rf"{_begin(directory, name)}.*\n.*\n{end}", re.M)
    return block.sub("", crontab), [match["name"] for match in block.finditer(crontab)]


def changed_blocks(crontab: str, directory: str, name: str | None) -> list[str]:
    """Return the names of the blocks that `without_blocks` leaves: somebody has changed their lines."""
    rest, _ = without_blocks(crontab, directory, name)
    return [match["name"] for match in re.finditer(_begin(directory, name), rest, re.M)]


def install(job: Job, times: Times) -> None:
    """Put a job into the user's crontab; a second time replaces it.

    Raises:
        UserError: there is no cron, or it does not take the line.
    """
    block = cron_block(job, times)
    if missing := [name for name in ("crontab", "flock", "timeout") if shutil.which(name) is None]:
        raise UserError(
            f"{missing[0]} is missing: install cron, util-linux and coreutils (Debian: apt-get install cron), or take "
            "another engine."
        )
    after = with_block(_read(), block)
    _write(after)
    _warn_of_changed(after, str(job.directory), job.name)


def remove(directory: str, name: str | None) -> list[str]:
    """Take the jobs of a directory, or the one of a name, out of the user's crontab, and return their names."""
    if shutil.which("crontab") is None:
        return []
    before = _read()
    after, names = without_blocks(before, directory, name)
    if names:
        _write(after)
    _warn_of_changed(after, directory, name)
    return names


def _begin(directory: str, name: str | None) -> str:
    """Return a pattern of the begin of a block's first line, with a group for the name."""
    wanted = r"[\w.-]+" if name is None else re.escape(name)
    return rf"^# {MARK} (?P<name>{wanted}) in {re.escape(directory)}: made by"


def _warn_of_changed(crontab: str, directory: str, name: str | None) -> None:
    for changed in changed_blocks(crontab, directory, name):
        logger.warning(
            f"Lines of the schedule {changed} in the crontab were changed by hand and stay, so that cron may still run "
            "them: take them out with crontab -e."
        )


def _read() -> str:
    """Return the user's crontab; any bytes in it survive."""
    done = subprocess.run(["crontab", "-l"], capture_output=True, check=False)
    if done.returncode and b"no crontab" not in done.stderr:
        raise UserError(f"crontab -l: {done.stderr.decode(errors='replace').strip()}: ask who runs this machine.")
    return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else ""


def _write(text: str) -> None:
    command = ["crontab", "-"] if text else ["crontab", "-r"]
    done = subprocess.run(command, input=text.encode(errors="surrogateescape"), capture_output=True, check=False)
    if done.returncode:
        raise UserError(
            f"cron does not take it ({done.stderr.decode(errors='replace').strip()}); the crontab is as it was."
        )
