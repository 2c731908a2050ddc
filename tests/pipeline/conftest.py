"""Two versions to decide on, trained once for all tests of this room, and retrainings that MLflow knows of."""

from dusk import client, place, trained
from past_retrainings import past

__all__ = ["client", "past", "place", "trained"]
