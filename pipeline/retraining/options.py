"""How to retrain, and whom to tell: the nodes ``retrain``, ``notify`` and ``keep`` of conf/retrain.yaml."""

from dataclasses import dataclass
from typing import Literal

from graftline.errors import UserError
from graftline.pipeline.retraining.trigger import Trigger

Start = Literal["fresh", "warm", "both"]


@dataclass(frozen=True)
class RetrainOptions:
    """How to retrain.

    Attributes:
        when: condition without which nothing is trained; None: as soon as something is new.
        start: what a training begins with. ``fresh``: the pretrained weights, as a first training. ``warm``: the
            champion's weights and head. ``both``: one of each, of which the better on validation images goes on.
        wait: seconds that are waited for another retraining of the same model, before this one gives way.
        allow_shrink: whether images may have gone by more than ``max_shrink``, or with a whole class.
        max_shrink: share of the images of the last retraining that may be gone.
    """

    when: str | None = None
    start: Start = "fresh"
    wait: float = 0.0
    allow_shrink: bool = False
    max_shrink: float = 0.2

    def __post_init__(self) -> None:
        if self.when is not None:
            Trigger(self.when)
        if not self.wait >= 0:  # also catches NaN
            raise UserError(f"RetrainOptions.wait is {self.wait} s, it must be at least 0.")
        if not 0 <= self.max_shrink < 1:
            raise UserError(f"RetrainOptions.max_shrink is {self.max_shrink}, it must be at least 0 and below 1.")
