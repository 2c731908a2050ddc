"""The sheet of an audit: one HTML page with the images that are worth a look, each with what is odd about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from graftline.console import track
from graftline.data.decoding import Decoding
from graftline.evaluation.audit import Audit
from graftline.report.page import write_page
from graftline.report.thumbnails import Thumbnail, thumbnails

SIDE = 144  # px of a picture, its longer side
MOST_ERRORS, MOST_PAIRS, MOST_ODD = 120, 60, 60  # that are shown; the table has all


@dataclass(frozen=True)
class Card:
    """An image, or a pair of them, and what is odd.

    Attributes:
        rows: of the table of images.
        marked: words to stress, such as another label.
        words: what is said beside them.
        images: the images themselves, in the order of the rows.
    """

    rows: tuple[int, ...]
    marked: str
    words: str
    images: Sequence["AuditImage"] = ()


@dataclass(frozen=True)
class AuditImage:
    """An image of a card."""

    thumbnail: Thumbnail
    name: str
    label: str
    split: str


@dataclass(frozen=True)
class AuditPart:
    """A kind of what is odd, with its images."""

    heading: str
    order: str
    number: int
    cards: Sequence[Card]


def write_sheet(audit: Audit, title: str, table: Path, decoding: Decoding, file: Path) -> Path:
    """Write the sheet.

    Args:
        audit: what was found.
        title: of the page, as plain text.
        table: the table that a person fills in.
        decoding: how files become pixels.
        file: where to write it.
    """
    parts = [_errors(audit), _pairs(audit), _odd(audit)]
    rows = sorted({row for part in parts for card in part.cards for row in card.rows})
    read = thumbnails(audit.images["path"].iloc[rows].tolist(), decoding, SIDE)
    small = dict(zip(rows, track(read, "Images for the sheet", len(rows)), strict=True)) if rows else {}
    findings = [replace(part, cards=[_with_images(card, audit.images, small) for card in part.cards]) for part in parts]
    return write_page(file, "audit.html.j2", {"title": title, "table": table, "findings": findings})


def _errors(audit: Audit) -> AuditPart:
    rows = audit.likely_errors
    cards = [
        Card(
            (row,),
            f"{audit.images['label'].iloc[row]}, or {audit.class_names[int(audit.errors.suggested[row])]}?",
            f"Probability of the label: {100 * audit.errors.quality[row]:.1f} %.",
        )
        for row in rows[:MOST_ERRORS].tolist()
    ]
    return AuditPart("Probably wrong labels", "the least probable label first", len(rows), cards)


def _pairs(audit: Audit) -> AuditPart:
    pairs = audit.pairs.assign(across=audit.across).sort_values("across", ascending=False, kind="stable")
    rows = pairs.head(MOST_PAIRS)[["first", "second"]].to_numpy(int).tolist()
    cards = [Card(tuple(pair), " and ".join(audit.images["label"].iloc[row] for row in pair), "") for pair in rows]
    return AuditPart("Almost the same images", "pairs in two splits first", len(pairs), cards)


def _odd(audit: Audit) -> AuditPart:
    odd = audit.odd.sort_values("distance", ascending=False, kind="stable")
    cards = [
        Card((int(row),), str(name), f"{value:.3g}, usual is {usual:.3g}.")
        for row, name, value, usual in odd.head(MOST_ODD)[["row", "name", "value", "usual"]].itertuples(index=False)
    ]
    return AuditPart("Odd images", "those farthest from the others first", len(odd), cards)


def _with_images(card: Card, images: pd.DataFrame, small: Mapping[int, Thumbnail]) -> Card:
    """Return a card with its images, of which there are small versions by row."""
    return replace(card, images=[_image(images.iloc[row], small[row]) for row in card.rows])


def _image(image: "pd.Series[str]", small: Thumbnail) -> AuditImage:
    return AuditImage(small, Path(image["path"]).name, image["label"], image["split"])
