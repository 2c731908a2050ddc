"""Compare a model that was made small with the model itself: how much faster it is here, and whether it is worse.

Letters: N images, K classes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from graftline.bundle.decision import Decision
from graftline.evaluation.metrics import Interval, wilson
from graftline.evaluation.paired import accuracy_difference, family_quantile

ALPHA = 0.05
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CompactComparison:
    """What two models gave for the same images, one after the other.

    Attributes:
        milliseconds: (N, 2), of the model and of the small one.
        right: (N, 2) whether each answered the label.
        largest_difference: of any probability.
    """

    milliseconds: Floats
    right: Bools
    largest_difference: float

    @property
    def ratio(self) -> Interval:
        """The small one's time as a share of the model's: median over images, with its 95 % interval.

        By order statistics (Conover 1999, Practical Nonparametric Statistics, section 3.2).
        """
        ratios = np.sort(self.milliseconds[:, 1] / self.milliseconds[:, 0])
        rank = max(int(binom.ppf(ALPHA / 2, len(ratios), 0.5)) - 1, 0)
        return Interval(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]))

    @property
    def difference(self) -> Interval:
        """How much more often the small one is right; its lower end holds with 95 %, and so does the upper."""
        return accuracy_difference(self.right[:, 1], self.right[:, 0], family_quantile(ALPHA, 1))

    def accuracy(self, number: int) -> Interval:
        """Return the accuracy of the model (0) or the small one (1), with its 95 % Wilson interval."""
        return wilson(float(self.right[:, number].mean()), len(self.right))

    def objection(self, max_loss: float) -> str | None:
        """Return what speaks against the small one, as a part of a sentence; None where nothing does.

        Args:
            max_loss: of accuracy that is surely not exceeded.
        """
        if not self.ratio.high < 1:
            value, high = 100 * self.ratio.value, 100 * self.ratio.high
            return f"it is not surely faster here ({value:.0f} % of the time, at most {high:.0f} %)"
        if self.difference.low < -max_loss:
            return (
                f"its accuracy on {len(self.right):,} validation images may be {-100 * self.difference.low:.1f} points "
                f"lower, and {100 * max_loss:g} are allowed"
            )
        return None


def measure(
    run: Callable[[np.ndarray], np.ndarray],
    small: Callable[[np.ndarray], np.ndarray],
    images: Iterable[tuple[np.ndarray, int]],
    decision: Decision,
    on_progress: Callable[[int], None],
) -> CompactComparison:
    """Run both on each image, in turns: what disturbs one disturbs both.

    Args:
        run: the model: pixels (1, H, W, 3) to probabilities (1, K).
        small: the small one.
        images: N images (H, W, 3) uint8 and the numbers of their classes.
        decision: of both.
        on_progress: is given the number of images just done.
    """
    times, right, largest = [], [], 0.0
    for number, (pixels, label) in enumerate(images):
        if number == 0:  # the first call of each prepares itself
            run(pixels[None]), small(pixels[None])
        pair: dict[int, np.ndarray] = {}
        spent: dict[int, float] = {}
        for which in ((0, 1), (1, 0))[number % 2]:
            start = time.perf_counter()
            pair[which] = (run, small)[which](pixels[None])
            spent[which] = 1000 * (time.perf_counter() - start)
        times.append([spent[0], spent[1]])
        right.append([bool(decision.answer(pair[which])[0] == label) for which in (0, 1)])
        largest = max(largest, float(np.abs(pair[1] - pair[0]).max()))
        on_progress(1)
    return CompactComparison(np.array(times), np.array(right), largest)
