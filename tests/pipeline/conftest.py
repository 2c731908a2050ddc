"""Models and an ensemble, trained once for all tests of this room, and retrainings that MLflow knows of."""

from dusk import client, place, trained
from ensembled import ensemble_place, made, run
from past_retrainings import past

__all__ = ["client", "ensemble_place", "made", "past", "place", "run", "trained"]
