"""Names as a figure can show them: short, distinct, and in letters that a font on this machine has."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from anyascii import anyascii
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

TYPEFACE = "DejaVu Sans"  # matplotlib brings it along; Latin, Greek, Cyrillic, Arabic, Hebrew and more
HAIR_SPACE = "\u200a"


def short_names(names: Sequence[str], most: int = 24) -> list[str]:
    """Shorten names in the middle to ``most`` characters; those that then look alike get their number in front.

    >>> short_names(["good", "a class with an endless name", "a class with another long name"], 14)
    ['good', '1: a cla… name', '2: a cla… name']
    """
    letters = [legible(name) for name in names]
    shortened = [_shorten(text, most) for text in letters]
    numbered = [_shorten(f"{number}: {text}", most) for number, text in enumerate(letters)]
    times = Counter(shortened)
    mixed = [
        text if text and times[text] == 1 else with_number
        for text, with_number in zip(shortened, numbered, strict=True)
    ]
    return [plain(text) for text in (mixed if len(set(mixed)) == len(mixed) else numbered)]


def short(name: str, most: int = 24) -> str:
    """Shorten a name in the middle to ``most`` characters.

    >>> short("a class with an endless name", 12)
    'a class…name'
    """
    (text,) = short_names([name], most)
    return text


def plain(text: str) -> str:
    """Keep matplotlib from reading a formula between the dollars of a name such as ``5$ and 10$``."""
    return text.replace("$", r"\$")


def legend_label(text: str) -> str:
    """Keep matplotlib from leaving out of a legend what begins with an underscore."""
    return HAIR_SPACE + text if text.startswith("_") else text


def legible(text: str) -> str:
    """Write in Latin letters what no font on this machine can draw, and control characters as blanks."""
    families = font_families(text)
    return "".join(
        character if _has(families, character) else " ".join(anyascii(character).split()) or " "
        for character in (one if one.isprintable() else " " for one in text)
    )


def font_families(text: str) -> list[str]:
    """Return the font families that draw a text: the house's own, then as many others as its characters need."""
    missing = {ord(character) for character in text} - _characters(_file(TYPEFACE))
    families = [TYPEFACE]
    for family in _installed() if missing else ():
        if found := missing & _characters(_file(family)):
            families.append(family)
            missing -= found
        if not missing:
            break
    return families


def _shorten(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = (most - 1) * 2 // 5
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def _has(families: Sequence[str], character: str) -> bool:
    return any(ord(character) in _characters(_file(family)) for family in families)


@cache
def _installed() -> tuple[str, ...]:
    """Return the families on this machine with an upright, regular font, in alphabetical order."""
    fonts = font_manager.fontManager.ttflist
    regular = {font.name for font in fonts if font.style == "normal" and font.weight in (400, "normal")}
    return tuple(sorted(name for name in regular if not name.startswith("Last Resort")))  # that draws placeholders


@cache
def _file(family: str) -> str:
    return font_manager.findfont(font_manager.FontProperties(family=[family]), fallback_to_default=False)


@cache
def _characters(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())
