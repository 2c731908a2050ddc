"""Values as parts of a sentence."""

from collections.abc import Sequence


def join_names(names: Sequence[str], at_most: int = 5) -> str:
    """Return names as a list for a sentence, cut where it is long.

    >>> join_names(["a", "b", "c"], at_most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most:,} more" if len(names) > at_most else "")
