"""Whether the validation images suffice to choose by."""

from collections.abc import Sequence

FEWEST_IMAGES = 20  # one is five points of accuracy then; a paired 95 % interval has 2.1 standard errors, not 12.7
TRIAL_FOLDS = 3  # where there are fewer: as many fits, each without one of them
ENOUGH_IN_FOLD = 300  # images; where a fold has as many, one fit will do
MOST_JUDGED = 2_000  # validation images that a trial is judged by: they tell 1 point of accuracy apart
FEWEST_VALIDATED = 500  # by which each epoch may be judged, however few images are trained
FEWEST_IN_FOLDS = 2 * FEWEST_IMAGES  # of training and validation together


def too_few_to_choose(images: Sequence[int]) -> str | None:
    """Return why one training cannot be preferred to another by these validation images; None if it can.

    Whoever would choose takes the choice that needs no proof, the head alone: what deeper training wins shows on few
    images by chance as often as not, and what it loses does not.

    Args:
        images: how many validation images there are of each class.

    >>> too_few_to_choose([1, 1])
    'there are 2 validation images, too few to choose by (20 would do)'
    >>> too_few_to_choose([60, 0])
    'the validation images are of one class'
    >>> too_few_to_choose([30, 30, 0])
    """
    if (number := sum(images)) < FEWEST_IMAGES:
        return f"there are {number} validation images, too few to choose by ({FEWEST_IMAGES} would do)"
    if sum(count > 0 for count in images) < 2:
        return "the validation images are of one class"
    return None


def trial_fits(images: int) -> int:
    """Return how many fits judge a trial by folds of so many images of both splits.

    >>> trial_fits(899), trial_fits(900)
    (3, 1)
    """
    return 1 if images >= TRIAL_FOLDS * ENOUGH_IN_FOLD else TRIAL_FOLDS


def most_validated(num_images: int) -> int:
    """Return by how many validation images each epoch is judged at most, where they pass what is trained.

    A split that is given may have many times as many as there are to train: then the epochs would take longer to
    validate than to train.

    Args:
        num_images: of the training split.

    >>> most_validated(600), most_validated(100)
    (600, 500)
    """
    return max(FEWEST_VALIDATED, num_images)
