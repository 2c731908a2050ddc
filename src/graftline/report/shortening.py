"""Names that are short and still tell apart what they name."""

from collections import Counter
from collections.abc import Sequence


def shorten_all(names: Sequence[str], most: int = 24) -> list[str]:
    """Shorten names in the middle to ``most`` characters; those that then look alike get their number in front.

    >>> shorten_all(["good", "a class with an endless name", "a class with another long name"], 14)
    ['good', '1: a cla… name', '2: a cla… name']
    """
    shortened = [shorten(text, most) for text in names]
    numbered = [shorten(f"{number}: {text}", most) for number, text in enumerate(names)]
    times = Counter(shortened)
    mixed = [
        text if text and times[text] == 1 else with_number
        for text, with_number in zip(shortened, numbered, strict=True)
    ]
    return mixed if len(set(mixed)) == len(mixed) else numbered


def shorten(text: str, most: int = 24) -> str:
    """Shorten a text in the middle to ``most`` characters.

    >>> shorten("a class with an endless name", 12)
    'a class…name'
    """
    if len(text) <= most:
        return text
    end = (most - 1) * 2 // 5
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def printable(text: str) -> str:
    """Write control characters, which no file of text may hold, as blanks."""
    return "".join(character if character.isprintable() else " " for character in text)
