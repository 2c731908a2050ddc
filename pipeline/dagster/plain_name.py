"""Names as Dagster takes them."""

import hashlib
import re

DIGITS = 8  # hex


def plain_name(name: str) -> str:
    """Return a name of ASCII letters, digits and underscores, with a digest of the name where it has other signs.

    Two schedules of one name would keep Dagster from loading any.
    """
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII)
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:DIGITS]}"
