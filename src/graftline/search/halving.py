"""Successive halving: all candidates on a few images, the better half on twice as many, and so on.

Jamieson and Talwalkar 2016, arXiv 1502.07943, with one thing more: what is clearly worse goes at once.

Letters: N images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftline.evaluation.head_score import HeadScore
from graftline.freezing.measurement import Difference

FIRST_IMAGES = 500  # of the first round; at 80 % right, an accuracy of them is known to 3.5 points, a difference better
IMAGES_PER_CLASS = 5  # of the first round at least, where there are many classes
LEAST_OF_CLASS = 10  # scored, as far as there are: a handful of a rare class tells no two networks apart
MOST_IMAGES = 10_000  # scored: a head of a thousand numbers per class learns little from more


@dataclass(frozen=True)
class RoundVerdict:
    """What a round makes of a candidate.

    Attributes:
        name: of the candidate.
        stays: whether it is in the next round.
        more_log_loss: than the best of the round, whose own is 0.
    """

    name: str
    stays: bool
    more_log_loss: Difference

    @property
    def is_clearly_worse(self) -> bool:
        """Whether the whole interval of the difference is above 0."""
        return self.more_log_loss.low > 0


def first_images(num_images: int, num_classes: int) -> int:
    """Return how many images the first round has.

    >>> first_images(60_000, 10), first_images(60_000, 1000), first_images(300, 10)
    (500, 5000, 300)
    """
    return min(num_images, max(FIRST_IMAGES, IMAGES_PER_CLASS * num_classes), MOST_IMAGES)


def least_of_class(least: int, images: int, num_classes: int) -> int:
    """Return how many images of each class are among some: half of these at most are taken for rare classes.

    >>> least_of_class(10, 500, 2), least_of_class(10, 500, 100), least_of_class(10, 5_000, 1_000)
    (10, 2, 2)
    """
    return min(least, images // (2 * num_classes))


def next_images(images: int, num_images: int) -> int | None:
    """Return how many images the round after one of ``images`` has; None: there is none.

    >>> next_images(500, 1800), next_images(1000, 1800), next_images(1800, 1800)
    (1000, 1800, None)
    """
    most = min(num_images, MOST_IMAGES)
    return min(2 * images, most) if images < most else None


def judge(scores: Mapping[str, HeadScore]) -> list[RoundVerdict]:
    """Compare the candidates of a round, all scored on the same images, the best first.

    At most half of them stay, rounded up, and none that is clearly worse than the best.
    """
    ranked = sorted(scores, key=lambda name: scores[name].log_loss)
    best, room = scores[ranked[0]], -(-len(ranked) // 2)
    verdicts = []
    for place, name in enumerate(ranked):
        difference = Difference.of(scores[name].losses, best.losses) if place > 0 else Difference(0.0, 0.0, 0.0)
        verdicts.append(RoundVerdict(name, place < room and not difference.low > 0, difference))
    return verdicts


def contenders(verdicts: Sequence[RoundVerdict]) -> list[str]:
    """Return the names of those that stay, the best first."""
    return [verdict.name for verdict in verdicts if verdict.stays]
