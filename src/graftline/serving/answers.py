"""Answer a request of base64 images with a table of classes. Needs no MLflow: a server of any kind can use it."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

from graftline.bundle.ensemble import AnyPredictor, class_sets

_WHITESPACE = b" \t\n\r\v\f"
_NOT_BASE64 = "not base64: send the image file's bytes, base64-encoded"


SET = "set"  # column of an answer, where the bundle gives sets of classes: a JSON list of their names
REFUSED = "refused"  # likewise, where it tells which images are none of its classes


def columns(class_names: Sequence[str]) -> list[str]:
    """Return the columns of an answer, but for `SET` and `REFUSED`.

    >>> columns(["cat", "dog"])
    ['class', 'probability', 'probability/cat', 'probability/dog']
    """
    return ["class", "probability", *(f"probability/{name}" for name in class_names)]


def classify(predictor: AnyPredictor, images: Sequence[object]) -> "pd.DataFrame":
    """Classify images.

    Args:
        predictor: a loaded bundle of K classes.
        images: N image files (JPEG, PNG, ...) as base64, with or without a ``data:image/...;base64,`` in front.

    Returns:
        (N, 2 + K): the class that the bundle's decision answers, its probability, and the probabilities of all K
        classes; see `columns`; then `SET` and `REFUSED`, where the bundle has them.

    Raises:
        ValueError: some are no base64 or no images; each is named by its number, from 0.
    """
    import pandas as pd  # a small container of our own server has not got it

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
        answers = predictor.predict_refusing(files)
        probabilities, refused, flaws = answers.probabilities, answers.refused, answers.reasons
    if flaws:
        raise ValueError("; ".join(f"image {row}: {flaw}" for row, flaw in flaws.items()))
    best = predictor.decision.answer(probabilities)  # (N,)
    answer = pd.DataFrame(
        np.column_stack([probabilities[np.arange(len(best)), best], probabilities]).astype(np.float64),
        columns=columns(predictor.class_names)[1:],
    )
    answer.insert(0, "class", [predictor.class_names[index] for index in best])
    if predictor.decision.set_threshold is not None:
        answer[SET] = class_sets(predictor, probabilities)
    if refused is not None:
        answer[REFUSED] = refused
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
        return base64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except ValueError as error:
        raise ValueError(_NOT_BASE64) from error
