"""How the time of a search is spent: what is left of the budget, and what was done when."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

NICE_MINUTES = (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1440)


@dataclass(frozen=True)
class Span:
    """What was done from when to when.

    Attributes:
        what: in words.
        start: seconds since the search began.
        end: likewise.
    """

    what: str
    start: float
    end: float


@dataclass
class TimeLedger:
    """Keeps account of the seconds of a search.

    Attributes:
        budget: of all, in seconds.
        clock: seconds since some moment.
        began: by the clock.
        spans: what was done, in order.
    """

    budget: float
    clock: Callable[[], float] = time.perf_counter
    began: float | None = None
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.began is None:
            self.began = self.clock()

    @property
    def now(self) -> float:
        """Seconds since the search began."""
        assert self.began is not None
        return self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds of the budget that are left; below 0 where it is overdrawn."""
        return self.budget - self.now

    @contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """Note what is done during the block, however it ends."""
        start = self.now
        try:
            yield
        finally:
            self.spans.append(Span(what, start, self.now))


def nice_minutes(seconds: float) -> int:
    """Return a round number of minutes that is not below some seconds.

    >>> nice_minutes(50), nice_minutes(61), nice_minutes(700), nice_minutes(200_000)
    (1, 2, 15, 3334)
    """
    return next((minutes for minutes in NICE_MINUTES if 60 * minutes >= seconds), -(-int(seconds) // 60))


def format_seconds(seconds: float) -> str:
    """Return a time for a person.

    >>> format_seconds(8.4), format_seconds(80), format_seconds(372), format_seconds(8000)
    ('8 s', '80 s', '6 minutes', '2.2 hours')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
