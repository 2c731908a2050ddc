"""Two versions to decide on, trained once for all tests of this room."""

from dusk import client, place, trained

__all__ = ["client", "place", "trained"]
