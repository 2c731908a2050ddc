"""Answer a request of base64 images with a table of classes. Needs no MLflow: a server of any kind can use it."""

import base64
from collections.abc import Sequence

import numpy as np
import pandas as pd

from graftline.bundle.ensemble import AnyPredictor

_NOT_BASE64 = "not base64: send the image file's bytes, base64-encoded"


def columns(class_names: Sequence[str]) -> list[str]:
    """Return the columns of an answer.

    >>> columns(["cat", "dog"])
    ['class', 'probability', 'probability/cat', 'probability/dog']
    """
    return ["class", "probability", *(f"probability/{name}" for name in class_names)]


def classify(predictor: AnyPredictor, images: Sequence[object]) -> pd.DataFrame:
    """Classify images.

    Args:
        predictor: a loaded bundle of K classes.
        images: N image files (JPEG, PNG, ...) as base64, with or without a ``data:image/...;base64,`` in front.

    Returns:
        (N, 2 + K): the most probable class, its probability, and the probabilities of all K classes; see `columns`.

    Raises:
        ValueError: some are no base64 or no images; each is named by its number, from 0.
    """
    if len(images) == 0:
        raise ValueError("the request holds no images")
    files: list[bytes] = []
    flaws: dict[int, str] = {}
    for row, text in enumerate(images):
        try:
            files.append(decode_base64(text))
        except ValueError as error:
            files.append(b"")
            flaws[row] = str(error)
    if not flaws:
        probabilities, flaws = predictor.predict_readable(files)
    if flaws:
        raise ValueError("; ".join(f"image {row}: {flaw}" for row, flaw in flaws.items()))
    best = probabilities.argmax(axis=1)  # (N,)
    answer = pd.DataFrame(
        np.column_stack([probabilities.max(axis=1), probabilities]).astype(np.float64),
        columns=columns(predictor.class_names)[1:],
    )
    answer.insert(0, "class", [predictor.class_names[index] for index in best])
    return answer


def decode_base64(text: object) -> bytes:
    """Decode base64, with or without a ``data:image/...;base64,`` in front.

    >>> decode_base64("data:image/png;base64,aGVs bG8=")
    b'hello'

    Raises:
        ValueError: it is no base64.
    """
    if not isinstance(text, str):
        raise ValueError(_NOT_BASE64)  # noqa: TRY004  # a flaw of the request, like the others
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError(_NOT_BASE64) from error
