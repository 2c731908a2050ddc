"""Keep records in a file, one JSON line each, and note how many of them have been sent."""

import json
import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

from graftline.errors import UserError
from graftline.files import atomic_file
from graftline.locks import Lock
from graftline.tracking.names import LEARNING_RATE

Record = dict[str, Any]
"""One thing to send: its "kind" and the fields of that kind; see `graftline.tracking.delivery`."""

_READ_BYTES = 256 * 1024  # at a time, so that a long run without a server does not fill the memory when it is back


class JournalEntry(NamedTuple):
    """A record in the journal."""

    record: Record
    number: int  # of the record in the journal, from 0
    end: int  # the byte after it


class Journal:
    """Keep records in the order of `append`, across crashes of this process.

    One process at a time has it open: a lock, which the system frees when its holder dies, shows whether
    a run is still going.

    Attributes:
        path: the file.
        total: the number of records.
        num_sent: how many of them have been sent.
    """

    def __init__(self, directory: Path) -> None:
        """Open the journal in ``directory``; make it if there is none.

        Raises:
            UserError: another process, or another part of this one, has it open.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "journal.jsonl"
        self._mark = directory / "sent"
        try:
            self._process_lock = Lock(directory / "lock", shared=False)
        except BlockingIOError as error:
            raise UserError(f"The run in {directory.parent} is still going: it sends its values itself.") from error
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._append_lock = threading.Lock()
        self._drop_torn_line()
        self._sent_bytes, self.num_sent = map(int, self._mark.read_text().split()) if self._mark.exists() else (0, 0)
        with self.path.open("rb") as file:
            self.total = sum(1 for _ in file)

    @property
    def num_unsent(self) -> int:
        """The number of records still to be sent."""
        return self.total - self.num_sent

    def append(self, record: Record) -> int:
        """Add a record and return its number; once this returns, the record outlives this process."""
        line = json.dumps(record).encode() + b"\n"
        with self._append_lock:
            start = os.fstat(self._file).st_size
            try:
                while line:
                    line = line[os.write(self._file, line) :]
            except OSError:  # the disk is full
                os.ftruncate(self._file, start)
                raise
            self.total += 1
            return self.total - 1

    def unsent(self) -> list[JournalEntry]:
        """Return the next records to be sent, as many as are read at once."""
        entries: list[JournalEntry] = []
        end = self._sent_bytes
        with self.path.open("rb") as file:
            file.seek(end)
            while end - self._sent_bytes < _READ_BYTES and (line := file.readline()).endswith(b"\n"):
                end += len(line)
                entries.append(JournalEntry(json.loads(line), self.num_sent + len(entries), end))
        return entries

    def flush_to_disk(self) -> None:
        """Let the records outlive the machine too. Slow on some disks, so `append` does not do it."""
        os.fsync(self._file)

    def mark_sent(self, entry: JournalEntry) -> None:
        """Note that ``entry`` and all before it have been sent."""
        with atomic_file(self._mark) as temporary:
            temporary.write_text(f"{entry.end} {entry.number + 1}\n")
        self._sent_bytes, self.num_sent = entry.end, entry.number + 1

    def last(self) -> Record | None:
        """Return the latest record."""
        *_, line = self.path.read_bytes().splitlines() or [b"null"]
        record: Record | None = json.loads(line)
        return record

    def metric_steps(self) -> set[tuple[str, int]]:
        """Return the metrics in the journal, sent or not, each with the steps it was logged at; not what began anew."""
        steps: set[tuple[str, int]] = set()
        with self.path.open("rb") as file:
            for record in (json.loads(line) for line in file if b'"metrics"' in line or b'"anew"' in line):
                if record["kind"] == "metrics":
                    steps |= {(name, record["step"]) for name in record["values"]}
                elif record["kind"] == "anew":
                    steps = steps_before(steps, record["step"])
        return steps

    def close(self) -> None:
        """Close the files, and let another process open the journal."""
        os.close(self._file)
        self._process_lock.close()

    def _drop_torn_line(self) -> None:
        """Cut off what a process wrote when it died within a line."""
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            os.ftruncate(self._file, content.rfind(b"\n") + 1)


def steps_before(steps: set[tuple[str, int]], first_step: int) -> set[tuple[str, int]]:
    """Return the metrics, each with a step, that were logged before a phase began at its first step.

    At that step lie the last epoch of the phase before and the learning rates of the phase itself.

    >>> sorted(steps_before({("val/loss", 10), ("lr/head", 10), ("val/loss", 20)}, 10))
    [('val/loss', 10)]
    """
    return {
        (name, step)
        for name, step in steps
        if step < first_step or (step == first_step and not name.startswith(LEARNING_RATE))
    }
