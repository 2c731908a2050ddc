"""What a notebook shows of a training: its facts and scores as tables, its figures inline."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path

import pandas as pd

from graftline.console import format_table
from graftline.evaluation.metrics import HEADLINES, Interval, format_interval, format_score
from graftline.report.captions import CAPTIONS, HEADINGS

KINDS = {".svg": "image/svg+xml", ".png": "image/png"}
COLUMNS = ("score", "value", "95 % interval")


class ScoresTable(Mapping[str, Interval]):
    """Scores by name, each with its 95 % interval; shown as a table.

    Examples:
        >>> scores = ScoresTable({"accuracy": Interval(0.867, 0.843, 0.892), "recall/cat": Interval(0.5, 0.25, 0.75)})
        >>> scores
        score        value   95 % interval
        accuracy    86.7 %  84.3 to 89.2 %
        recall/cat  50.0 %  25.0 to 75.0 %
        >>> scores["accuracy"].low
        0.843
    """

    def __init__(self, scores: Mapping[str, Interval]) -> None:
        self._scores = dict(scores)

    def __getitem__(self, name: str) -> Interval:
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each score, with the columns value, low and high."""
        return pd.DataFrame.from_dict({name: vars(interval) for name, interval in self.items()}, orient="index")

    def __repr__(self) -> str:
        return format_table("", COLUMNS, self._rows(self)).lstrip("\n")

    def _repr_html_(self) -> str:
        of_classes = [name for name in self if "/" in name]
        headlines = _table(self._rows(name for name in self if "/" not in name))
        if not of_classes:
            return headlines
        return f"{headlines}\n<details><summary>Class by class</summary>{_table(self._rows(of_classes))}</details>"

    def _rows(self, names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
        for name in names:
            interval = self[name]
            yield HEADLINES.get(name, name), format_score(name, interval.value), format_interval(name, interval)


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


class Figures(Mapping[str, Path]):
    """SVG and PNG files by name, which a notebook shows inline with their captions."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)

    @classmethod
    def in_folder(cls, folder: Path) -> "Figures":
        """Return the figures of a folder by their names without extension, sorted."""
        return cls({file.stem: file for file in sorted(folder.iterdir()) if file.suffix in KINDS})

    def __getitem__(self, name: str) -> Path:
        return self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"Figures({', '.join(self)})"

    def _repr_html_(self) -> str:
        return "\n".join(_figure(name, file) for name, file in self.items())


def _figure(name: str, file: Path) -> str:
    kind, source = KINDS[file.suffix], base64.b64encode(file.read_bytes()).decode("ascii")
    heading, caption = escape(HEADINGS.get(name, name)), escape(CAPTIONS.get(name, ""))
    return (
        f'<figure style="margin:1em 0"><img src="data:{kind};base64,{source}" alt="{heading}" '
        f'style="max-width:100%;width:44em">\n<figcaption><b>{heading}.</b> {caption}</figcaption></figure>'
    )


def facts_html(facts: Iterable[tuple[str, str]]) -> str:
    """Return a table with a row for each fact."""
    rows = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
    return f"<table>\n{rows}\n</table>"
