"""What a place of a model says of itself while its name leads here and there."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

from graftline.bundle.ensemble import load_predictor
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.serving.limits import Limits
from graftline.serving.measures import Measures
from graftline.serving.origin import Origin
from graftline.serving.pixels import Pixels
from graftline.serving.server import serve
from graftline.serving.slot import Slot


class Moving:
    """A name that leads to the next place each time that it is looked up; to None: it cannot be looked up."""

    name, moves = "pets", True

    def __init__(self, *places: Path | Origin | None) -> None:
        self._places = list(places)

    def find(self) -> Origin:
        if (place := self._places.pop(0)) is None:
            raise UserError("the database is locked.")
        return place if isinstance(place, Origin) else Origin(str(place), None)

    def fetch(self, origin: Origin) -> Path:
        return Path(origin.uri)


def test_the_reason_of_a_failed_load_comes_back_after_a_failed_look(bundle: Path, tmp_path: Path) -> None:
    """Though the load itself is tried less and less often."""

    async def look() -> list[str | None]:
        source = Moving(bundle, tmp_path, None, tmp_path, bundle)
        slot, problems = Slot(source, Execution(), Limits(), Measures(), Pixels()), []
        await slot.start()
        for _ in range(4):
            await slot.refresh()
            problems.append(slot.health()["problem"])
        await slot.close()
        return problems

    failed, locked, again, none = asyncio.run(look())
    assert failed is not None
    assert f"{tmp_path} cannot take over" in failed
    assert locked is not None
    assert "cannot be looked up (the database is locked" in locked
    assert again == failed
    assert none is None


def test_no_other_version_stands_in_for_a_champion_that_is_gone(bundle: Path, calibrated: Path) -> None:
    first, newer = Origin(str(bundle), 1), Origin(str(calibrated), 2, stands_in=True)
    unjudged = replace(first, stands_in=True)

    async def look() -> tuple[list[str | None], set[int | None]]:
        source = Moving(unjudged, newer, first, newer, unjudged, first)
        slot, problems, versions = Slot(source, Execution(), Limits(), Measures(), Pixels()), [], set()
        await slot.start()
        for _ in range(5):
            await slot.refresh()
            problems.append(slot.health()["problem"])
            versions.add(slot.health()["version"])
        await slot.close()
        return problems, versions

    problems, versions = asyncio.run(look())
    gone = f"'pets' has no champion any more: {bundle} goes on."
    assert problems == [None, None, gone, gone, None], "a newer one, the champion, no champion twice, the champion"
    assert versions == {1}


def test_a_version_of_the_same_number_with_another_bundle_takes_over(bundle: Path, calibrated: Path) -> None:
    """As where a registered model was deleted and made anew."""
    places = {"1f2e": bundle, "3d4c": calibrated}
    origins = [Origin("models:/pets/1", 1, digest) for digest in ("1f2e", "3d4c", "3d4c")]

    class MadeAnew(Moving):
        def fetch(self, origin: Origin) -> Path:
            return places[str(origin.digest)]

    async def look() -> list[str]:
        slot, digests = Slot(MadeAnew(*origins), Execution(), Limits(), Measures(), Pixels()), []
        await slot.start()
        for _ in range(2):
            await slot.refresh()
            digests.append(slot.health()["digest"])
        await slot.close()
        return digests

    assert asyncio.run(look()) == 2 * [load_predictor(calibrated).digest]


class Unanswered:
    """A name that is looked up once; the second time the server is told to stop, and no answer comes for long."""

    name, moves = "pets", True

    def __init__(self, bundle: Path) -> None:
        self._origin = Origin(str(bundle), None)
        self._is_asked_again = False
        self.answer, self.is_answered = threading.Event(), False

    def find(self) -> Origin:
        if self._is_asked_again:
            while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            self.answer.wait(10)
            self.is_answered = True
        self._is_asked_again = True
        return self._origin

    def fetch(self, origin: Origin) -> Path:
        return Path(origin.uri)


def test_a_server_that_is_told_to_stop_does_not_wait_for_a_look_at_a_name(bundle: Path) -> None:
    source = Unanswered(bundle)
    serve(
        [source],
        host="127.0.0.1",
        port=0,
        limits=Limits(),
        execution=Execution(),
        poll_seconds=0.01,
        on_start=lambda *_: None,
    )
    assert not source.is_answered
    source.answer.set()
