"""What a predictor gave for images as a table with a row for each of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from graftline.bundle.answers import Answers
from graftline.bundle.ensemble import AnyPredictor, class_sets


def to_table(predictor: AnyPredictor, names: Sequence[str], answers: Answers) -> pd.DataFrame:
    """Return what a predictor gave for images as a table, whose columns have the same types whatever is in them.

    Args:
        predictor: a bundle's.
        names: of the images.
        answers: what it gave for them.

    Returns:
        One row per image: path, its name; class and probability, of the class that the bundle's decision answers;
        ``probability/CLASS`` for each class; and error: why the file could not be read or answered, with class and
        probabilities missing, else missing.
        Where the bundle refuses images as none of its classes: refused, before error;
        where it gives sets of classes: set, a JSON list of their names.
    """
    probabilities, refused, reasons = answers.probabilities, answers.refused, answers.reasons
    readable = np.array([row not in reasons for row in range(len(names))])
    best = predictor.decision.answer(np.nan_to_num(probabilities))  # (N,)
    columns: dict[str, object] = {
        "path": pd.array(list(names), dtype="str"),
        "class": pd.array(np.array(predictor.class_names, dtype=object)[best], dtype="str"),
        "probability": probabilities[np.arange(len(names)), best],
        **{f"probability/{name}": probabilities[:, number] for number, name in enumerate(predictor.class_names)},
    }
    if predictor.decision.set_threshold is not None:
        columns["set"] = pd.array(class_sets(predictor, np.nan_to_num(probabilities)), dtype="str")
    if refused is not None:
        columns["refused"] = pd.array(refused, dtype="boolean")
    columns["error"] = pd.array([reasons.get(row) for row in range(len(names))], dtype="str")
    table = pd.DataFrame(columns)
    table.loc[~readable, table.columns.intersection(["class", "set", "refused"])] = None
    return table
