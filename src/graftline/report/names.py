"""Names as a figure can show them: short, distinct, and in letters that a font on this machine has."""

from collections.abc import Sequence
from functools import cache

from anyascii import anyascii
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from graftline.report.shortening import printable, shorten_all

TYPEFACE = "DejaVu Sans"  # matplotlib brings it along; Latin, Greek, Cyrillic, Arabic, Hebrew and more
HAIR_SPACE = "\u200a"


def short_names(names: Sequence[str], most: int = 24) -> list[str]:
    """Shorten names as `shorten_all` does, for matplotlib."""
    return [plain(text) for text in shorten_all([legible(name) for name in names], most)]


def short(name: str, most: int = 24) -> str:
    """Shorten a name in the middle to ``most`` characters, for matplotlib."""
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
        for character in printable(text)
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
