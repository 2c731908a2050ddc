"""Which time zone this machine keeps, by the name that other machines know."""

import os
from pathlib import Path

LOCALTIME = Path("/etc/localtime")  # a link into a folder called zoneinfo


def local_timezone() -> str:
    """Return the name of the local time zone, such as Europe/Berlin; Etc/UTC where the machine does not tell."""
    named = os.environ.get("TZ", "").removeprefix(":")
    if named and not named.startswith("/"):
        return named
    _, _, name = str(LOCALTIME.resolve()).partition("zoneinfo/")
    return name or "Etc/UTC"
