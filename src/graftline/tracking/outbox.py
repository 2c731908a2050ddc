"""Keep a run's values on disk, and send them to MLflow at its own pace, so that training never waits.

Its files:

    outputs/…/outbox/
        run.json        the run's id and MLflow's URI
        journal.jsonl   all values, in order
        sent            how far they have been sent
        models/         saved models until they are sent
        refused.jsonl   what MLflow would not take, and why (only if there is such)
"""

import logging
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftline.console import progress
from graftline.errors import UserError
from graftline.tracking.delivery import Delivery
from graftline.tracking.journal import Journal
from graftline.tracking.mlflow_errors import lacks_right, reason
from graftline.tracking.owner import FOLDER, Owner, owner_file, read_owner
from graftline.tracking.uri import store_name

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5  # seconds between two tries; doubled at each failure, up to the last
_LAST_PAUSE = 30.0
_HURRIED_PAUSE = 0.5  # while somebody waits for the outbox to become empty


class Outbox:
    """Keep records on disk and send them from a thread of its own.

    Attributes:
        journal: the records.
        delivery: what sends them.
        problem: why the last try failed, None if it did not.
    """

    def __init__(self, directory: Path, uri: str, run_id: str) -> None:
        """Open the outbox in a run's output directory; make it if there is none.

        Raises:
            UserError: the run in that directory is still going.
        """
        self._directory = directory
        self._store = store_name(uri)
        self.journal = Journal(directory / FOLDER)
        Owner(run_id, uri).write(directory)
        self.delivery = Delivery(uri, run_id, directory)
        self.problem: str | None = None
        self._changed = threading.Condition()  # records were added or sent, someone hurries, or it is the end
        self._hurries = False
        self._stops = False
        self._failures = 0  # in a row
        self._last_success = 0.0
        self._upload_seconds = 0.0  # what the upload under way may take
        self._thread = threading.Thread(target=self._work, daemon=True, name="outbox")
        self._thread.start()

    def put(self, kind: str, **fields: Any) -> int:
        """Write a record to disk and return its number, without waiting for MLflow."""
        number = self.journal.append({"kind": kind, **fields})
        self._notify()
        return number

    def wait(self, timeout: float) -> bool:
        """Wait until all has been sent, but at most ``timeout`` seconds without a success.

        An upload to a server that answered before may take longer, by its size.

        Returns:
            Whether all has been sent.
        """
        began = time.monotonic()
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            try:
                while self.journal.num_unsent:
                    give_up_at = max(began, self._last_success) + timeout + self._upload_seconds
                    if time.monotonic() >= give_up_at:
                        return False
                    self._changed.wait(give_up_at - time.monotonic())
            finally:
                self._hurries = False
        return True

    def close(self) -> None:
        """Stop sending; what is unsent stays on disk."""
        self._stops = True
        self._notify()
        # a thread that waits for a server's answer ends later, and then closes the journal
        self._thread.join(timeout=0.5)
        if not self.journal.num_unsent:
            _remove_sent_models(self._directory)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._stops:
            if not self.journal.num_unsent:
                with self._changed:
                    self._changed.wait_for(lambda: self._stops or self.journal.num_unsent)
                continue
            try:
                self._send_some()
            except Exception as error:  # whatever it is, the records are safe, and training is not to be disturbed
                self._note_failure(error)
                self._pause()
            else:
                self._note_success()
        self.journal.close()

    def _send_some(self) -> None:
        self.journal.flush_to_disk()
        entries = self.journal.unsent()
        if self._failures == 0:
            self._upload_seconds = self.delivery.upload_seconds(entries[0])
        self.journal.mark_sent(self.delivery.send(entries))

    def _note_failure(self, error: Exception) -> None:
        self.problem = reason(error)
        self._failures += 1
        self._upload_seconds = 0.0
        if self._failures == 2:  # a single failure is not worth a warning
            state = "lets us write nothing" if lacks_right(error) else "is away"
            logger.warning(
                f"The {self._store} {state} ({self.problem}): values are kept on disk and sent when it is back."
            )

    def _note_success(self) -> None:
        if self._failures >= 2:
            logger.info(f"The {self._store} is back.")
        self.problem = None
        self._failures = 0
        self._upload_seconds = 0.0
        self._last_success = time.monotonic()
        self._notify()

    def _pause(self) -> None:
        """Wait a while before the next try."""
        with self._changed:
            if self._hurries:
                self._changed.wait_for(lambda: self._stops, _HURRIED_PAUSE)
            else:
                pause = min(_FIRST_PAUSE * 2 ** (self._failures - 1), _LAST_PAUSE)
                self._changed.wait_for(lambda: self._stops or self._hurries, pause)


@dataclass(frozen=True)
class SyncReport:
    """What became of a run's unsent values.

    Attributes:
        run_id: MLflow's id of the run.
        num_sent: records that have been sent just now.
        num_unsent: records that are still in the output directory only.
        refused: one sentence for each thing that MLflow will not take; they are kept in ``outbox/refused.jsonl``.
        problem: why some could not be sent; None if all were.
    """

    run_id: str
    num_sent: int
    num_unsent: int
    refused: tuple[str, ...]
    problem: str | None


def sync(directory: Path) -> SyncReport:
    """Send what a run that has ended left unsent in its output directory, and its final status.

    A run whose process was killed, or whose machine went down, becomes KILLED.

    Raises:
        UserError: there is no run in ``directory``, or it is still going.
    """
    if (run := read_owner(directory)) is None:
        raise UserError(f"{directory} holds no run: give the output directory of one.")
    journal = Journal(directory / FOLDER)
    delivery = Delivery(run.uri, run.run_id, directory)
    before, problem = journal.num_sent, None
    try:
        _end_if_killed(journal)
        with progress("Sending", total=journal.num_unsent) if journal.num_unsent else nullcontext() as bar:
            while entries := journal.unsent():
                last = delivery.send(entries)
                journal.mark_sent(last)
                if bar is not None:
                    bar.update(bar.task_ids[0], completed=journal.num_sent - before)
    except Exception as error:  # as in the outbox: whatever it is, the records are safe
        problem = reason(error)
    finally:
        journal.close()
    if problem is None:
        _remove_sent_models(directory)
    return SyncReport(run.run_id, journal.num_sent - before, journal.num_unsent, tuple(delivery.refused), problem)


def clear_outbox(directory: Path) -> None:
    """Send what an earlier run in ``directory`` left unsent, and remove its outbox.

    Raises:
        UserError: that run is still going, or not all could be sent.
    """
    if not owner_file(directory).exists():
        return
    report = sync(directory)
    if report.num_unsent:
        raise UserError(
            f"{directory} holds {report.num_unsent:,} unsent records of run {report.run_id} ({report.problem}): "
            "take another output directory, or send them first with sync()."
        )
    shutil.rmtree(directory / FOLDER)


def _end_if_killed(journal: Journal) -> None:
    last = journal.last()
    if last is not None and last["kind"] == "status" and last["status"] != "RUNNING":
        return
    last_sign_of_life = int(journal.path.stat().st_mtime * 1000)
    journal.append({"kind": "tags", "values": {"graftline.error": "the process ended without a word"}})
    journal.append({"kind": "status", "at": last_sign_of_life, "status": "KILLED"})


def _remove_sent_models(directory: Path) -> None:
    """Remove the saved models, all of which have been sent: the bundle beside them holds the same."""
    shutil.rmtree(directory / FOLDER / "models", ignore_errors=True)
