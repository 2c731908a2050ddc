"""Which time zone this machine keeps, by the name that other machines know."""

import logging
import os
import zoneinfo
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from graftline.errors import UserError

logger = logging.getLogger(__name__)

LOCALTIME = Path("/etc/localtime")  # a link into a folder called zoneinfo, or a copy of a file there
TIMEZONE = Path("/etc/timezone")  # the name on Debian, which may be out of date
CANONICAL = "zone1970.tab"  # in that folder, with the best known name of each zone


def local_timezone() -> str:
    """Return the name of the zone that this process keeps, such as Europe/Berlin: that of ``TZ``, or the machine's."""
    named = os.environ.get("TZ", "").removeprefix(":")
    return named if named and not named.startswith("/") else _name(Path(named or LOCALTIME))


def machine_timezone() -> str:
    """Return the name of the zone that this machine's services keep; Etc/UTC where the machine does not tell."""
    return _name(LOCALTIME)


def require_timezone(name: str, argument: str) -> None:
    """Make sure that others know a time zone by its name.

    Raises:
        UserError: it is none, as far as this machine knows any.
    """
    known = zoneinfo.available_timezones()
    if known and name not in known:
        raise UserError(f"{argument}={name} is no name of a time zone: give one such as Europe/Berlin or Etc/UTC.")


def now_in(timezone: str) -> datetime:
    """Return what clocks show now in a time zone, as the times of a schedule are given: without the zone."""
    return datetime.now(zoneinfo.ZoneInfo(timezone)).replace(tzinfo=None)


def have_same_clock(first: str, second: str) -> bool:
    """Tell whether clocks of two time zones show the same in each month of this year.

    >>> have_same_clock("UTC", "Etc/UTC"), have_same_clock("Europe/Berlin", "Africa/Lagos")
    (True, False)
    """
    try:
        return first == second or _offsets(first) == _offsets(second)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False  # a rule such as CET-1, or a name that is not known here


def _offsets(name: str) -> list[timedelta | None]:
    zone, year = zoneinfo.ZoneInfo(name), datetime.now().year
    return [datetime(year, month, 1, tzinfo=zone).utcoffset() for month in range(1, 13)]


def _name(file: Path) -> str:
    _, _, name = str(file.resolve()).partition("zoneinfo/")
    return name or _find_same(file) or "Etc/UTC"


@cache  # it warns once
def _find_same(file: Path) -> str | None:
    """Return the name of a zone whose file has the same content; None where there is no file, which means UTC."""
    if not file.is_file():
        return None
    content = file.read_bytes()
    for name in dict.fromkeys(_names()):
        for place in (Path(folder, name) for folder in zoneinfo.TZPATH):
            if place.is_file() and place.read_bytes() == content:
                return name
    logger.warning(f"{file} is no link, and no time zone known here is the same: Etc/UTC is taken; TZ names another.")
    return None


def _names() -> Iterator[str]:
    """Yield the names of zones, those first that people know: files of several are the same."""
    yield "Etc/UTC"
    if TIMEZONE.is_file():
        yield TIMEZONE.read_text(encoding="utf-8").strip()
    for table in (Path(folder, CANONICAL) for folder in zoneinfo.TZPATH):
        if table.is_file():
            rows = table.read_text(encoding="utf-8").splitlines()
            yield from (row.split("\t")[2] for row in rows if not row.startswith("#"))
    yield from sorted(zoneinfo.available_timezones())
