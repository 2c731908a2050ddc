"""Which labels are probably wrong, by what heads say of images that they were not fitted to.

How many are wrong is cleanlab's estimate: Northcutt et al. 2021, "Confident Learning", JAIR 70, arXiv 1911.00068.

Letters: N images, K classes.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import pandas as pd

from graftline.data.folds import assign_folds
from graftline.errors import UserError
from graftline.evaluation.head_score import Floats, Ints, out_of_fold

# Confident learning finds as many as it estimates to be wrong, which it rounds down where images are few: it left out
# labels of a probability of 1 %. One below this is worth a look in any case.
SURPRISE = 0.05


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """What heads make of the labels.

    Attributes:
        quality: (N,) from 0, certainly wrong, to 1: the probability that the heads give the label. NaN where all images
            of the class are in one fold: the head that judges them has not seen the class.
        suggested: (N,) the class that they find most probable.
        likely: (N,) whether the label is probably wrong.
    """

    quality: Floats
    suggested: Ints
    likely: npt.NDArray[np.bool_]


def require_cleanlab() -> None:
    """Make sure that cleanlab is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("cleanlab") is None:
        raise UserError("The audit ranks labels with cleanlab, which is not installed: pip install 'graftline[audit]'.")


def find_label_errors(
    activations: npt.NDArray[np.floating], labels: Ints, num_classes: int, units: npt.ArrayLike
) -> LabelErrors:
    """Rank the labels of images.

    Args:
        activations: (N, F).
        labels: (N,) from 0 to K - 1.
        num_classes: K.
        units: (N,) names of what must not be divided: images of one group, and copies of one image, whose wrong label
            would else be confirmed by the other copy.

    Raises:
        UserError: cleanlab is not installed.
    """
    require_cleanlab()
    from cleanlab.filter import find_label_issues

    folds = assign_folds(labels, np.asarray(units).astype("str").tolist())
    logits = out_of_fold(activations, labels, num_classes, folds).logits
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    present = np.unique(labels)
    numbers = np.searchsorted(present, labels)
    of_present = probabilities[:, present] / probabilities[:, present].sum(axis=1, keepdims=True)
    in_fold = np.zeros((len(present), int(folds.max()) + 1), bool)
    in_fold[numbers, folds] = True
    checked = in_fold.sum(axis=1) > 1  # of the classes that are present
    rows = checked[numbers]
    quality = np.where(rows, of_present[np.arange(len(labels)), numbers], np.nan)
    likely = quality < SURPRISE
    if checked.sum() > 1:  # cleanlab's estimate of the noise needs several classes, and an image of each
        of_checked = of_present[np.ix_(rows, checked)]
        of_checked /= of_checked.sum(axis=1, keepdims=True)
        places = np.cumsum(checked) - 1
        likely[rows] |= find_label_issues(places[numbers[rows]], of_checked, filter_by="prune_by_noise_rate", n_jobs=1)
    suggested: Ints = present[of_present.argmax(axis=1)]
    return LabelErrors(quality, suggested, likely & (suggested != labels))


def units_of(groups: npt.ArrayLike, pairs: pd.DataFrame) -> Ints:
    """Return a number for what must not be divided: images of one group, and images that are almost the same.

    Args:
        groups: (N,) names.
        pairs: columns first and second, rows of images that are almost the same.

    >>> units_of(["a", "a", "b", "c"], pd.DataFrame({"first": [1], "second": [3]})).tolist()
    [0, 0, 1, 0]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, group = np.unique(np.asarray(groups).astype("str"), return_inverse=True)
    first, second = (group[pairs[side].to_numpy(np.int64)] for side in ("first", "second"))
    number = int(group.max()) + 1
    links = coo_matrix((np.ones(len(first), bool), (first, second)), shape=(number, number))
    _, components = connected_components(links, directed=False)
    units: Ints = components[group].astype(np.int64)
    return units
