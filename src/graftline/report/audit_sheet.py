"""The sheet of an audit: one HTML page with the images that are worth a look, each with what is odd about it."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import pandas as pd
from PIL import Image

import graftline
from graftline.data.decode import decode_rgb
from graftline.data.decoding import Decoding
from graftline.evaluation.audit import Audit
from graftline.files import write_text
from graftline.report.page import page

SIDE = 144  # px of a picture, its longer side
MOST_ERRORS, MOST_PAIRS, MOST_ODD = 120, 60, 60  # that are shown; the table has all

STYLE = """
.sheet { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { width: 152px; break-inside: avoid; }
.card.pair { width: 304px; }
.card img { vertical-align: top; margin: 0 4px 4px 0; border-radius: 4px; }
.card p { margin: 0; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; color: var(--muted); }
.card strong { color: var(--ink); }
"""


def write_sheet(audit: Audit, title: str, table: Path, decoding: Decoding, file: Path) -> Path:
    """Write the sheet.

    Args:
        audit: what was found.
        title: of the page, as plain text.
        table: the table that a person fills in.
        decoding: how files become pixels.
        file: where to write it.
    """
    sections = [_errors(audit, decoding), _pairs(audit, decoding), _odd(audit, decoding)]
    lead = (
        f"Look at the images, write keep, relabel or drop into the column decision of {table.name}, correct the column "
        f"suggested where it is wrong, and let the next ingest apply that: data.decisions={table}"
    )
    header = f"<header><h1>{escape(title)}</h1>\n<p>{escape(lead)}</p></header>"
    written = f"Written by graftline {escape(graftline.__version__)}."
    footer = f"{written} Label ranking by cleanlab, from heads that have not seen the image."
    write_text(file, page(title, "\n".join([header, *sections]), footer, STYLE))
    return file


def _errors(audit: Audit, decoding: Decoding) -> str:
    rows = audit.likely_errors
    shown = [
        _card(
            [_picture(audit.images.iloc[row], decoding)],
            f"<strong>{escape(audit.images['label'].iloc[row])}</strong>, or "
            f"<strong>{escape(audit.class_names[int(audit.errors.suggested[row])])}</strong>? "
            f"Probability of the label: {100 * audit.errors.quality[row]:.1f} %. {_name(audit.images.iloc[row])}",
        )
        for row in rows[:MOST_ERRORS].tolist()
    ]
    return _section("Probably wrong labels", "the least probable label first", shown, len(rows))


def _pairs(audit: Audit, decoding: Decoding) -> str:
    pairs = audit.pairs.assign(across=audit.across).sort_values("across", ascending=False, kind="stable")
    shown = []
    for pair in pairs.head(MOST_PAIRS).itertuples(index=False):
        both = [audit.images.iloc[int(row)] for row in (pair.first, pair.second)]  # type: ignore[arg-type]
        words = " and ".join(f"<strong>{escape(one['label'])}</strong> {_name(one)}" for one in both)
        shown.append(_card([_picture(one, decoding) for one in both], words, "pair"))
    return _section("Almost the same images", "pairs in two splits first", shown, len(pairs))


def _odd(audit: Audit, decoding: Decoding) -> str:
    odd = audit.odd.sort_values("distance", ascending=False, kind="stable")
    shown = []
    for row, name, value, usual in odd.head(MOST_ODD)[["row", "name", "value", "usual"]].itertuples(index=False):
        image = audit.images.iloc[int(row)]
        words = f"<strong>{name}</strong>: {value:.3g}, usual is {usual:.3g}. {escape(image['label'])} {_name(image)}"
        shown.append(_card([_picture(image, decoding)], words))
    return _section("Odd images", "those farthest from the others first", shown, len(odd))


def _section(heading: str, order: str, shown: Sequence[str], number: int) -> str:
    if number == 0:
        return f"<section><h2>{heading}</h2><p>None.</p></section>"
    rest = "" if len(shown) == number else f"; {len(shown):,} of them are shown, the table has all"
    inside = "\n".join(shown)
    lead = f"<p>{number:,}, {order}{rest}.</p>"
    return f'<section><h2>{heading}</h2>\n{lead}\n<div class="sheet">\n{inside}\n</div></section>'


def _card(pictures: Iterable[str], words: str, kind: str = "") -> str:
    return f'<div class="card {kind}">{"".join(pictures)}<p>{words}</p></div>'


def _name(image: "pd.Series[str]") -> str:
    """Return an image's file and split."""
    return f"{escape(Path(image['path']).name)} ({escape(image['split'])})"


def _picture(image: "pd.Series[str]", decoding: Decoding) -> str:
    """Return an image as an element of the page, small."""
    picture = Image.fromarray(decode_rgb(image["path"], decoding))
    factor = SIDE / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.BILINEAR if factor < 1 else Image.Resampling.NEAREST).save(
        file, "JPEG", quality=85
    )
    source = base64.b64encode(file.getvalue()).decode("ascii")
    alt = escape(f"{image['label']}: {Path(image['path']).name}")
    return f'<img src="data:image/jpeg;base64,{source}" width="{size[0]}" height="{size[1]}" alt="{alt}">'
