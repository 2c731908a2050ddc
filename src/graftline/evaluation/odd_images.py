"""Images that differ from the others of their data set: dark, pale, blurred, of another shape or size."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from graftline.evaluation.head_score import Floats

FAR = 3.5  # modified z-score from which an image is odd: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers
MOST_SHARE = 0.01  # of the images that are odd in one way: what is more common than that is how the data set is
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation


@dataclass(frozen=True)
class Oddity:
    """A way in which an image can be odd.

    Attributes:
        name: what is said of it.
        fact: column of the image facts.
        is_low: odd where the fact is low; else where it is high.
    """

    name: str
    fact: str
    is_low: bool


ODDITIES: Sequence[Oddity] = (
    Oddity("dark", "brightness", is_low=True),
    Oddity("bright", "brightness", is_low=False),
    Oddity("pale", "contrast", is_low=True),
    Oddity("blurred", "sharpness", is_low=True),
    Oddity("narrow", "aspect", is_low=True),
    Oddity("wide", "aspect", is_low=False),
    Oddity("small", "megapixels", is_low=True),
)


def find_odd_images(facts: pd.DataFrame) -> pd.DataFrame:
    """Return the images that are odd, the oddest of each way first.

    Args:
        facts: of N images, as `image_facts.find_facts` returns them.

    Returns:
        Columns row, name (of the oddity), value (of the fact), usual (its median) and distance (modified z-score).
    """
    parts = []
    for oddity in ODDITIES:
        values = facts[oddity.fact].to_numpy(np.float64)
        distances = _distances(values) * (-1 if oddity.is_low else 1)
        rows = np.argsort(-distances, kind="stable")
        rows = rows[distances[rows] > FAR][: int(np.ceil(MOST_SHARE * len(values)))]
        parts.append(
            pd.DataFrame(
                {
                    "row": rows,
                    "name": oddity.name,
                    "value": values[rows],
                    "usual": np.median(values),
                    "distance": distances[rows],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _distances(values: Floats) -> Floats:
    """Return the modified z-scores (N,) of the logarithms of facts, all of which are ratios."""
    logarithms = np.log(np.maximum(values, 1e-6))
    away = logarithms - np.median(logarithms)
    spread = NORMAL_MAD * float(np.median(np.abs(away)))
    distances: Floats = away / max(spread, 0.01)  # where most are the same, one in a hundred is a usual difference
    return distances
