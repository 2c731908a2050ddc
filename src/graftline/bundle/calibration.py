"""Calibration: what is done to a network's logits so that its probabilities are as sure as they are right.

Letters: N images, K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """Temperature or vector scaling of logits (Guo et al. 2017, arXiv 1706.04599, section 4.2).

    A temperature changes no answer, only how sure it is. A vector, which replaces it, may change answers too.

    Attributes:
        temperature: the logits are divided by it; above 1 the probabilities become less sure.
        scales: K numbers, by which the classes' logits are multiplied; empty where there is a temperature alone.
        biases: K numbers, which are then added; as many as there are scales.
    """

    temperature: float = 1.0
    scales: tuple[float, ...] = ()
    biases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.scales) == len(self.biases), "a scale and a bias for each class"
        assert self.temperature > 0, "a temperature is above 0"

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits (N, K), in the precision of the network's logits (N, K).

        >>> Calibration(temperature=2.0).apply(np.array([[1.0, 4.0]]))
        array([[0.5, 2. ]])
        """
        if not self.scales:
            divided: np.ndarray = (logits / self.temperature).astype(logits.dtype)
            return divided
        scaled: np.ndarray = (logits * np.array(self.scales) + np.array(self.biases)).astype(logits.dtype)
        return scaled

    def to_dict(self) -> dict[str, Any] | None:
        """Return JSON for ``bundle.json``; None where nothing is changed."""
        if self.scales:
            return {"scales": list(self.scales), "biases": list(self.biases)}
        return None if self.temperature == 1 else {"temperature": self.temperature}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None) -> "Calibration":
        """Return what ``to_dict`` wrote; bundles before format 4 have none.

        >>> Calibration.from_dict(Calibration(temperature=1.5).to_dict())
        Calibration(temperature=1.5, scales=(), biases=())
        """
        content = content or {}
        return cls(content.get("temperature", 1.0), tuple(content.get("scales", ())), tuple(content.get("biases", ())))


UNCALIBRATED = Calibration()
