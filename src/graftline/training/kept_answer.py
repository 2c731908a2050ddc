"""What was found out by trying or by timing is kept beside the activations, and not found out again."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from graftline.features.cache import Features
from graftline.files import digest, write_json

Question = Literal["depths", "sources"]


class KeptAnswer:
    """The answer to a question, as JSON knows it.

    Args:
        features: say where the activations are.
        question: names the folder.
        depends_on: all that the answer depends on.
    """

    def __init__(self, features: Features, question: Question, depends_on: Any) -> None:
        self._file = _folder(features, question) / f"{digest(depends_on)}.json"

    def read(self) -> Any:
        """Return it; None where nobody knows, or the file is not whole: it is found out once more."""
        try:
            return json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write(self, answer: Any) -> None:
        """Keep it; where nothing can be written, it is found out once more."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, answer)


def forget_answers(features: Features) -> None:
    """Remove all answers, so that everything is found out anew."""
    for question in get_args(Question):
        shutil.rmtree(_folder(features, question), ignore_errors=True)


def _folder(features: Features, question: str) -> Path:
    return Path(features.directory).parent / question
