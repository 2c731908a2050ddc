"""Models that were made up, and a gate that looks at them."""

import numpy as np

from benchmarks.promotion import SKILL, contestants
from graftline.evaluation.contestant import Contestant, TestImages
from graftline.evaluation.gate import Gate, GateResult
from graftline.evaluation.gate_guards import Guard

GATE = Gate(resamples=200)


def made(
    skills: tuple[float, float] = (SKILL, SKILL), images: int = 400, seed: int = 0
) -> tuple[TestImages, Contestant, Contestant]:
    """Return images, a champion and a challenger of these skills."""
    found, (champion, challenger) = contestants(skills, images, np.random.default_rng(seed))
    return found, champion, challenger


def guard(result: GateResult, name: str) -> Guard:
    """Return the guard of a name."""
    (found,) = [one for one in result.guards if one.name == name]
    return found
