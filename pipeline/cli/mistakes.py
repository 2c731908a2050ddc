"""Mistakes in what was typed: found one by one, told all at once, each with the nearest right name."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from graftline.errors import UserError

NEAR = 0.6  # similarity, 0 to 1, from which on a name is worth suggesting
T = TypeVar("T")
R = TypeVar("R")


class MistakeError(ValueError):
    """An override that cannot be taken; its arguments are one line per mistake."""


def collect(step: Callable[[T], R], items: Iterable[T]) -> tuple[list[R], list[str]]:
    """Take each item through a step, and return the results of those without mistakes, and the mistakes of the rest."""
    results: list[R] = []
    mistakes: list[str] = []
    for item in items:
        try:
            results.append(step(item))
        except MistakeError as error:
            mistakes += error.args
    return results, mistakes


def refusal(mistakes: Sequence[str]) -> UserError:
    """Return the error that lists all mistakes."""
    count = "A mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return UserError("\n  ".join([f"{count} in the configuration; nothing was started:", *mistakes]))


def nearest(wrong: str, right: Iterable[str]) -> list[str]:
    """Return the right names that are nearly as near as the nearest, at most three; none where none is near."""
    nearness = sorted(((_nearness(wrong, name), name) for name in right), key=lambda item: (-item[0], item[1]))
    best = nearness[0][0] if nearness else 0.0
    return [name for score, name in nearness[:3] if score >= max(NEAR, best - 0.05)]


def _nearness(wrong: str, right: str) -> float:
    """Return 0 to 1; the right name in the wrong group counts as very near."""
    whole = difflib.SequenceMatcher(None, wrong, right).ratio()
    last = difflib.SequenceMatcher(None, wrong.rpartition(".")[2], right.rpartition(".")[2]).ratio()
    return max(whole, last - 0.05)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the names as a question to put behind a mistake, or nothing where there are none."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
