"""What the trials of a search for the depth cost in time.

Time is counted in steps: one is the time in which an image is passed forward and backward through the whole network.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from graftline.backbones.layers import body_groups
from graftline.freezing.depth import FORWARD_PER_STEP, HEAD_EPOCHS, PASSES_PER_STEP
from graftline.freezing.rule import FreezeContext

TRIALS_SHARE = 0.3  # of the time, where there is a limit


@dataclass(frozen=True)
class TrialCosts:
    """What the trials of a search cost, and how many images there is time for.

    Attributes:
        context: of the training.
        epochs: of a trial of more than the head.
        fits: of each trial.
        judged: images that each fit is judged by.
    """

    context: FreezeContext
    epochs: int
    fits: int
    judged: float

    @cached_property
    def _num_groups(self) -> int:
        return len(body_groups(self.context.network))

    def affordable(self, frozen_groups: Sequence[int]) -> float:
        """Return on how many images the head's trial and several others may be, for the time that trials have left.

        A head needs one pass over all images afterwards, which is left for it. Each trial also passes the images that
        it is judged by, and judges each of its epochs by them.
        """
        left = self._steps_left()
        if math.isinf(left):
            return math.inf
        affordable = left - self._steps_after_trials
        trials = [(self._num_groups, HEAD_EPOCHS), *((frozen, self.epochs) for frozen in frozen_groups)]
        passes = sum(self._pass_share(frozen, epochs) for frozen, epochs in trials)
        steps = sum(epochs * self._trained_share(frozen) for frozen, epochs in trials)
        return (affordable / self.fits - self.judged * (passes + steps / FORWARD_PER_STEP)) / (passes + steps)

    @cached_property
    def _steps_after_trials(self) -> float:
        """How many images can be passed forward and backward once all trials are over; settled before the first."""
        left = self._steps_left()
        return left - TRIALS_SHARE * (left - self.context.pass_steps)

    def _steps_left(self) -> float:
        """Return how many images can be passed forward and backward in the time that is left."""
        left, image_seconds = self.context.seconds_left, self.context.image_seconds
        return math.inf if left is None or image_seconds is None else left() / image_seconds()

    def _pass_share(self, frozen_groups: int, epochs: int) -> float:
        """Return how long an image takes in what is frozen, once or in each epoch, where to train the whole takes 1."""
        if not self.is_live:
            return self.context.pass_share
        frozen_share = 1 - self._trained_share(frozen_groups)
        return self.context.decoding_share + epochs * frozen_share / FORWARD_PER_STEP

    @cached_property
    def is_live(self) -> bool:
        """Whether nothing is cached of a trial; asked for only where there is a limit."""
        return self.context.head_is_live is not None and self.context.head_is_live()

    def passes(self, frozen_groups: int, epochs: int) -> float:
        """Return how long an image takes in all epochs, where the whole network takes 1, forward and backward."""
        return 1 / PASSES_PER_STEP + epochs * self._trained_share(frozen_groups)

    def _trained_share(self, frozen_groups: int) -> float:
        """Return how long an image takes once in what is trained, where the whole network takes 1."""
        return 1 - frozen_groups / self._num_groups
