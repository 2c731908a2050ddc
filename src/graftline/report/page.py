"""The frame of every page: one HTML file that needs nothing else, and a content security policy that keeps it so."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import graftline
from graftline.evaluation.comparison import format_difference, format_p_value
from graftline.evaluation.metrics import Interval, format_interval, format_score
from graftline.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

SHORTEST = 0.3  # % of a bar's length that an interval takes at least


def write_page(file: Path, template: str, content: Mapping[str, Any]) -> Path:
    """Write a page, in the reader's choice of light or dark, or a figure. All texts are escaped.

    Args:
        file: where to write it.
        template: name of the template, in `graftline/report/templates`.
        content: what the template shows; ``title`` is that of the page.
    """
    write_text(file, _environment().get_template(template).render(content))
    return file


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # here: a mistyped key need not wait for it

    environment = Environment(
        loader=PackageLoader("graftline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _read("page.js")
    environment.globals.update(
        version=graftline.__version__,
        style="\n".join(map(_read, ("colors.css", "page.css", "chart.css"))),
        figure_style="\n".join(map(_read, ("colors.css", "chart.css", "figure.css"))),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        bar=bar,
    )
    environment.filters.update(
        score=_score, ends=_ends, percent=percent, difference=_difference, p_value=format_p_value
    )
    return environment


def _read(name: str) -> str:
    return files("graftline.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _score(number: float, name: str) -> str:
    return format_score(name, number)


def _ends(interval: Interval, name: str) -> str:
    return format_interval(name, interval)


def _difference(interval: Interval, name: str) -> str:
    return format_difference(name, interval)


def percent(share: float, digits: int = 1) -> str:
    """Write a share in per cent; one that is not quite all or nothing does not look so.

    >>> percent(0.124), percent(0.9999), percent(0.0001), percent(1.0)
    ('12.4 %', '> 99.9 %', '< 0.1 %', '100.0 %')
    """
    least = 10.0 ** -(digits + 2)
    if 0 < share < least:
        return f"< {100 * least:.{digits}f} %"
    if 1 - least < share < 1:
        return f"> {100 - 100 * least:.{digits}f} %"
    return f"{100 * share:.{digits}f} %"


def bar(interval: Interval, low: float = 0.0, high: float = 1.0) -> dict[str, str]:
    """Return where an interval and its value lie on a line that runs from ``low`` to ``high``, in % of its length."""
    begin, value, end = (
        100 * (min(max(number, low), high) - low) / (high - low)
        for number in (interval.low, interval.value, interval.high)
    )
    return {"begin": f"{begin:.2f}", "width": f"{max(end - begin, SHORTEST):.2f}", "value": f"{value:.2f}"}
