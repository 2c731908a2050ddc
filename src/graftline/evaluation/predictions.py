"""What the model said of every image, as a table to sort, filter and join."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from graftline.data.version import Samples
from graftline.evaluation.bootstrap import Floats


def table(
    samples: Samples, probabilities: Floats, class_names: Sequence[str], sha256: Sequence[str] | None = None
) -> pd.DataFrame:
    """Return one row per image, in the samples' order.

    Args:
        samples: the N images of a split.
        probabilities: (N, K).
        class_names: K names.
        sha256: N digests of the files, where known.

    Returns:
        Columns path, label, predicted (names of classes), correct, ``probability/CLASS`` for each class (float32), and
        weight and sha256 where known.
    """
    assert probabilities.shape == (len(samples.paths), len(class_names)), "one row per image, one column per class"
    names = np.asarray(class_names, dtype=object)
    predicted = probabilities.argmax(axis=1)
    columns: dict[str, object] = {
        "path": samples.paths,
        "label": names[samples.labels],
        "predicted": names[predicted],
        "correct": predicted == samples.labels,
    }
    columns |= {f"probability/{name}": probabilities[:, number] for number, name in enumerate(class_names)}
    if samples.weights is not None:
        columns["weight"] = samples.weights
    if sha256 is not None:
        columns["sha256"] = list(sha256)
    return pd.DataFrame(columns)
