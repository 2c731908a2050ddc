"""A lease in MLflow: one process at a time does something for a model, whatever machine it is on, and all can see who.

MLflow has no locks. It has one thing that only one of several can do: make a registered model of a name that is not
there yet, or give one that name. So the lease of the model ``pets`` is a registered model ``pets.retraining`` without
versions, which exists while it is held; its tags say by whom, and its holder changes one of them every few seconds.

A holder that was killed leaves it. Who finds it dead may not simply remove it, since another one may have done that a
moment before and hold the lease now: it renames it to the token of the dead holder. That succeeds once only, the second
one finds the new name taken or the old one gone. What was renamed, a tombstone, is removed later.

Whether a holder is dead or slow: on the same machine a lock on a file tells at once, which the kernel frees. It does so
for the same file under the same kernel only, and not for a copy of the file, nor after the machine was started anew or
cloned. From anywhere else a holder is watched: alive is who changes the tag within a minute, dead who does not. One
that lives needs less, also where a beat fails. The time in which MLflow does not answer counts for nothing: it may not
answer the holder either. Nor do clocks: they may differ between machines, or be set back, and a holder may have died a
second ago.
"""

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from graftline.errors import UserError
from graftline.locks import Lock
from graftline.tracking.names import LEASE, registered_name
from graftline.tracking.tracking import user_name
from graftline.tracking.uri import absolute_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_SECONDS = 5.0  # between two signs of life
# without one, seen with our own eyes, a holder is dead; a beat asks a server twice, for START_SECONDS at most each
SILENT_SECONDS = 60.0
_POLL_SECONDS = 0.5
_HOLDER, _BEAT = "graftline.holder", "graftline.beat"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux's own, another one at each start of the machine
_TOMBSTONE_SECONDS = 600.0  # that one stays: long after the last one that could have seen the dead holder has given up


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: names this holding, and no other.
        user: of the system.
        host: name of the machine.
        process: its number.
        place: names the file that the holder has locked, and the kernel that has the lock.
        since: ms since 1970, by the holder's clock.
    """

    token: str
    user: str
    host: str
    process: int
    place: str
    since: int

    @property
    def sentence(self) -> str:
        """Who it is, and since when, as a part of a sentence."""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since / 1000))
        return f"{self.user} on {self.host} (process {self.process}) since {began}"


class LeaseHeldError(UserError):
    """Another one holds the lease.

    Attributes:
        holder: who.
    """

    def __init__(self, what: str, holder: str) -> None:
        super().__init__(f"{what} is under way: {holder}. Wait for it, or let this one wait with RetrainOptions.wait.")
        self.holder = holder


class Lease:
    """The lease of a model: held from ``acquire`` to the end of a ``with`` block.

    Args:
        uri: of MLflow, a database or a server.
        model: name of the data set, or of the registered model.
        folder: on this machine, for the file that is locked.
        what: as a subject of a sentence: "The retraining of pets".
    """

    def __init__(self, uri: str, model: str, folder: Path, what: str) -> None:
        self._uri, self._what = absolute_uri(uri), what
        self.name = registered_name(model) + LEASE
        self._folder = folder
        self._lock: Lock | None = None
        self._holder: Holder | None = None
        self._stops = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lease; to be used as a context manager then.

        Raises:
            LeaseHeldError: another one holds it.
        """
        file = self._folder / "retraining.lock"
        try:
            self._lock = Lock(file, shared=False)
        except BlockingIOError as error:
            found = self._read()
            raise LeaseHeldError(
                self._what, "another process of this machine" if found is None else found[0].sentence
            ) from error
        try:
            self._take(_identify(file))
        except BaseException:
            self._lock.close()
            raise
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True, name="lease")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._thread is not None
        assert self._lock is not None
        self._stops.set()
        self._thread.join()
        assert self._holder is not None
        with suppress(Exception):  # a server that is away: who comes next finds the holder dead
            if self._is_ours() and self._free_name(self._holder):
                tombstone = self._tombstone_name(self._holder)
                self._ask(lambda client: client.delete_registered_model(tombstone))
        self._lock.close()

    def check(self) -> None:
        """Make sure that the lease is still ours, before what only its holder may do.

        Raises:
            UserError: another one found this process dead, as while it was suspended; or MLflow does not answer.
        """
        if not self._is_ours():
            found = self._read()
            by = "nobody" if found is None else found[0].sentence
            raise UserError(
                f"{self._what} was taken over while this process gave no sign of life, now by {by}: start it again."
            )

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and found[0] == self._holder

    def _take(self, place: str) -> None:
        """Make the registered model that is the lease, after removing that of a dead holder.

        Raises:
            LeaseHeldError: another one has it.
        """
        now = time.time_ns() // 1_000_000
        mine = Holder(uuid.uuid4().hex, user_name(), platform.node(), os.getpid(), place, now)
        while not self._create(mine):
            found = self._read()
            if found is None:  # given back this very moment
                continue
            holder, beat = found
            if holder.place != place and self._lives(holder, beat):  # at our own place the lock says that it is dead
                raise LeaseHeldError(self._what, holder.sentence)
            if self._free_name(holder):
                logger.warning(f"{self._what} by {holder.sentence} has died: this one takes over.")
        self._holder = mine
        with suppress(Exception):  # they do no harm
            self._remove_old_tombstones()

    def _create(self, holder: Holder) -> bool:
        """Make the registered model; returns whether we were the first."""
        tags = {_HOLDER: json.dumps(asdict(holder)), _BEAT: _heartbeat_text(0)}
        told = f"{self._what} is under way."
        create = partial(_done, lambda client: client.create_registered_model(self.name, tags=tags, description=told))
        return self._ask(create)

    def _lives(self, holder: Holder, beat: str) -> bool:
        """Tell whether a holder at another place gives a sign of life."""
        looks = round(SILENT_SECONDS / _POLL_SECONDS)
        for look in range(looks):  # and not by the clock: MLflow may take its time for an answer
            if look == looks // 4:  # one that lives has mostly given a sign by now
                logger.info(
                    f"{self._what} by {holder.sentence} gave no sign of life for {SILENT_SECONDS / 4:.0f} s: it counts "
                    f"as dead after {SILENT_SECONDS:.0f} s."
                )
            time.sleep(_POLL_SECONDS)
            if self._read() != (holder, beat):
                return True
        return False

    def _free_name(self, holder: Holder) -> bool:
        """Rename the lease of a holder, so that its name is free for another; returns whether we were the first."""
        from mlflow.exceptions import MlflowException

        tombstone = self._tombstone_name(holder)

        def rename(client: "MlflowClient") -> bool:
            try:
                return _done(lambda client: client.rename_registered_model(self.name, tombstone), client)
            except MlflowException:
                # of two that rename at the same moment, the second may get an error of the database
                if (found := self._find(client)) is not None and found[0] == holder:
                    raise
                return False

        return self._ask(rename)

    def _tombstone_name(self, holder: Holder) -> str:
        return f"{self.name}.{holder.token}"

    def _remove_old_tombstones(self) -> None:
        """Remove tombstones that are so old that nobody takes their holder for the one that is there now."""

        def clear(client: "MlflowClient") -> None:
            now = client.get_registered_model(self.name).creation_timestamp
            for model in client.search_registered_models(filter_string=f"name LIKE '{self.name}.%'"):
                if now - model.last_updated_timestamp > 1000 * _TOMBSTONE_SECONDS:  # both by MLflow's clock
                    client.delete_registered_model(model.name)

        self._ask(clear)

    def _read(self) -> tuple[Holder, str] | None:
        """Return who holds the lease, and the last sign of life; None if it is free."""
        return self._ask(self._find)

    def _find(self, client: "MlflowClient") -> tuple[Holder, str] | None:
        for wait in (0.05, 0.2, 0.5, 0.0):  # MLflow reads tags after names: a lease renamed meanwhile has none
            found = client.search_registered_models(filter_string=f"name = '{self.name}'")
            if not found:
                return None
            tags = found[0].tags
            if _HOLDER in tags and _BEAT in tags:
                return Holder(**json.loads(tags[_HOLDER])), tags[_BEAT]
            time.sleep(wait)
        raise UserError(
            f"There is a registered model '{self.name}' that is no lease: give it another name, since a model of "
            "this one says that a retraining is under way."
        )

    def _ask(self, question: "Callable[[MlflowClient], T]") -> T:
        """Return what a question to MLflow gives.

        Raises:
            UserError: MLflow does not answer within a bounded time, or with an error.
        """
        from graftline.tracking.client import connect_checked

        return connect_checked(self._uri, question)[1]

    def _send_heartbeats(self) -> None:
        """Give signs of life until the lease is given back; a server that is away does not end it."""
        number = 0
        while not self._stops.wait(BEAT_SECONDS):
            number += 1
            with suppress(Exception):  # MLflow's own kinds; `check` tells whether the lease was lost meanwhile
                if self._is_ours():
                    self._give_sign(number)

    def _give_sign(self, number: int) -> None:
        sign = _heartbeat_text(number)
        self._ask(lambda client: client.set_registered_model_tag(self.name, _BEAT, sign))


def _done(change: "Callable[[MlflowClient], object]", client: "MlflowClient") -> bool:
    """Make a change that only one of several can make; returns whether we were the one."""
    from mlflow.exceptions import MlflowException

    try:
        change(client)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            return False
        raise
    return True


def _heartbeat_text(number: int) -> str:
    """Return a sign of life that differs from the one before it, even if the clock is set back."""
    return f"{number} {time.time():.3f}"


def _identify(file: Path) -> str:
    """Return what names a file and the kernel that has the locks on it; of a kernel that tells none, the machine's."""
    kernel = platform.node()
    with suppress(OSError):
        kernel = _BOOT.read_text(encoding="ascii").strip()
    status = file.stat()
    return f"{kernel} {status.st_dev} {status.st_ino}"
