"""How commands are called here: by make in a clone, as ``graftline`` anywhere."""

import sys

ADDRESSES = ("http://", "https://")  # what the address of a server starts with
FROM_MAKE = "--from-make"  # the Makefile's flag: overrides are in MAKEFLAGS


def program() -> str:
    """Return the word that commands begin with, for whoever started this process."""
    return "make" if FROM_MAKE in sys.argv else "graftline"
