r"""When a retraining is due: a condition such as ``new_images>=200 or age>=30d``, read by a parser of its own.

condition  = alternative {"or" alternative}
alternative = part {"and" part}
part       = "(" condition ")" | "not" part | "drift" | name operator number
operator   = >= | > | <= | < | == | !=
number     = digits, with a decimal point or a unit of time maybe: s, min, h, d or w
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from graftline.errors import UserError

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}  # in seconds
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
TIMES = ("age",)
FLAGS = ("drift",)  # which hold or do not, without a number
NAMES = ("new_images", "removed_images", "changed_labels", "new_classes", *TIMES, *FLAGS)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(min|s|h|d|w)")
_TOKEN = re.compile(r"\s*(?:(>=|<=|==|!=|>|<|\(|\))|(\d+(?:\.\d+)?)\s*(min|s|h|d|w)?\b|([A-Za-z_]\w*)|(\S))")

Values = Mapping[str, Callable[[], float]]
"""What each name stands for now; asked only where the condition depends on it."""


def read_time(text: str) -> float | None:
    """Return a time in seconds; None if it is none.

    >>> read_time("7d"), read_time("soon")
    (604800.0, None)
    """
    match = _TIME.fullmatch(text)
    return None if match is None else float(match[1]) * UNITS[match[2]]


class _Token(NamedTuple):
    text: str
    number: float | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Trigger:
    """A condition.

    Args:
        text: as it was typed.

    Raises:
        UserError: it is none.

    Examples:
        >>> values = {"new_images": lambda: 12.0, "age": lambda: 40 * 86_400.0}
        >>> Trigger("new_images>=200 or age>=30d").holds(values)
        True
        >>> Trigger("new_images >= 10 and not age > 2w").holds(values)
        False
        >>> Trigger("new_images>=200 or drift").holds({**values, "drift": lambda: 1.0})
        True
    """

    text: str

    def __post_init__(self) -> None:
        self.holds(dict.fromkeys(NAMES, lambda: 0.0), short=False)

    def holds(self, values: Values, *, short: bool = True) -> bool:
        """Tell whether the condition holds.

        Args:
            values: by name.
            short: do not ask for values that cannot change the answer.
        """
        parser = _Parser(self.text, values, short=short)
        answer = parser.condition(wanted=True)
        if parser.left:
            raise parser.refusal()
        return answer


class _Parser:
    """Reads a condition from left to right and knows at each part whether its answer is still wanted."""

    def __init__(self, text: str, values: Values, *, short: bool) -> None:
        self._text, self._values, self._short = text, values, short
        self.left = list(_tokens(text))

    def condition(self, *, wanted: bool) -> bool:
        """Read alternatives."""
        answer = self._alternative(wanted=wanted)
        while self._take("or"):
            answer = self._alternative(wanted=wanted and not (self._short and answer)) or answer
        return answer

    def _alternative(self, *, wanted: bool) -> bool:
        answer = self._part(wanted=wanted)
        while self._take("and"):
            answer = self._part(wanted=wanted and (answer or not self._short)) and answer
        return answer

    def _part(self, *, wanted: bool) -> bool:
        if self._take("not"):
            return not self._part(wanted=wanted)
        if self._take("("):
            answer = self.condition(wanted=wanted)
            if not self._take(")"):
                raise self.refusal()
            return answer
        if self.left and self.left[0].text in FLAGS:
            name = self.left.pop(0).text
            return wanted and self._values[name]() > 0
        return self._comparison(wanted=wanted)

    def _comparison(self, *, wanted: bool) -> bool:
        if len(self.left) < 3 or self.left[0].text not in NAMES or self.left[1].text not in OPERATORS:
            raise self.refusal()
        name, sign, number = (self.left.pop(0) for _ in range(3))
        if number.number is None or (number.unit is not None) != (name.text in TIMES):
            raise self.refusal()
        limit = number.number * UNITS.get(number.unit or "", 1.0)
        return wanted and OPERATORS[sign.text](self._values[name.text](), limit)

    def _take(self, text: str) -> bool:
        if self.left and self.left[0].text == text:
            self.left.pop(0)
            return True
        return False

    def refusal(self) -> UserError:
        """Return what a person is told of a condition that is none."""
        compared = ", ".join(name for name in NAMES if name not in FLAGS)
        return UserError(
            f"RetrainOptions.when='{self._text}' is no condition: compare {compared} with numbers, or write drift, "
            "such as 'new_images>=200 or age>=30d or drift' (s, min, h, d, w)."
        )


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        sign, number, unit, word, other = match.groups()
        yield _Token(sign or word or other or "", None if number is None else float(number), unit)
