"""List what ingest found: a finding per image or class, all in ``findings.json``, and a line per kind in the log."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from graftline.files import write_json

logger = logging.getLogger(__name__)

_TOLD = 4  # details in one line
FINDINGS_FILE = "findings.json"  # in a version's directory, or beside the versions where there is none

FindingKind = Literal[
    "missing",
    "empty",
    "unreadable",
    "broken",
    "too_large",
    "no_scale",
    "tiny",
    "no_label",
    "lost_images",
    "listed_twice",
    "relabeled",
    "lost_label",
    "dropped",
    "conflict",
    "leak",
    "duplicate",
    "wrong_extension",
    "moved_split",
    "moved_validation",
    "mixed_group",
    "group_in_two_splits",
    "similar_names",
    "placeholder",
    "few_images",
    "imbalance",
    "not_in_split",
    "empty_split",
    "drawn_split",
    "small_range",
]

# What is logged of each kind, in the order in which it is logged; the number of findings comes first.
_DESCRIPTIONS: dict[FindingKind, str] = {
    "missing": "listed but not there, left out",
    "empty": "without content, left out",
    "unreadable": "not readable as an image, left out",
    "broken": "truncated or broken, left out",
    "too_large": "with too many pixels (Ingest.max_pixels), left out",
    "no_scale": "that hold numbers of which nobody says how they become a picture (DecodeSettings.bands and "
    "DecodeSettings.range do), left out",
    "tiny": "too small (Ingest.min_side_px), left out",
    "no_label": "without a label, left out",
    "lost_images": "classes that have lost half of their images or more",
    "listed_twice": "listed more than once, counted once",
    "relabeled": "relabeled by decision (Ingest.decisions, or those of the version before)",
    "lost_label": "relabeled by decision to a class that is gone, left out (Ingest.decisions gives them another one)",
    "dropped": "left out by decision (Ingest.decisions, or those of the version before)",
    "conflict": "the same as an image with another label",
    "leak": "the same as an image in another split, taken out of the one that is trained on",
    "duplicate": "the same as an image in its split, kept",
    "wrong_extension": "with an extension that does not fit the content, kept",
    "moved_split": "moved by their source between test and what is trained on, so that models of before have seen them",
    "moved_validation": "moved between training and validation, by their source or as groups have become one",
    "mixed_group": "that were, or their group was, in test and in what is trained on, left out (Ingest.parent='none' "
    "draws anew)",
    "group_in_two_splits": "groups in two of the given splits",
    "similar_names": "classes with almost the same name",
    "placeholder": "classes with a name that often stands for a missing label",
    "few_images": "classes with few images",
    "imbalance": "imbalance of classes",
    "not_in_split": "classes missing in a split",
    "empty_split": "splits without an image",
    "drawn_split": "splits not given, so drawn from training",
    "small_range": "small range used by files of more than 8 bits, which leaves few of the 256 gray levels "
    "(DecodeSettings.range or DecodeSettings.percentiles spread them)",
}


@dataclass(frozen=True)
class Finding:
    """Tell one thing that the user should know.

    Attributes:
        kind: what it is.
        path: the image's path, or the name of the class or group or split that it is about.
        detail: the particulars, for a person.
    """

    kind: FindingKind
    path: str
    detail: str


def from_rows(kind: FindingKind, rows: pd.DataFrame, details: Sequence[str]) -> list[Finding]:
    """Return one finding of ``kind`` for each of ``rows``, images with a path."""
    return [Finding(kind, path, detail) for path, detail in zip(rows["path"], details, strict=True)]


def summarize(details: Iterable[str]) -> str:
    """Say each detail once, the most frequent first, with how often it occurs where there are several.

    >>> summarize(["it is PDF", "it is HEIC", "it is HEIC"])
    '2 x it is HEIC; 1 x it is PDF'
    >>> summarize([*"aaabbbccddeef"])
    '3 x a; 3 x b; 2 x c; 2 x d; 3 x something else'
    """
    counts = Counter(details).most_common()
    if len(counts) == 1:
        return counts[0][0]
    told = "; ".join(f"{count:,} x {detail}" for detail, count in counts[:_TOLD])
    others = sum(count for _, count in counts[_TOLD:])
    return told + (f"; {others:,} x something else" if others > 0 else "")


def write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write all findings as a JSON list."""
    write_json(path, [asdict(finding) for finding in findings])


def log_findings(findings: Sequence[Finding], path: Path) -> None:
    """Log a line per kind, each with its first finding or what several have in common, and where all are listed."""
    for kind, text in _DESCRIPTIONS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        details = {finding.detail for finding in of_kind}
        if 1 < len(of_kind) != len(details):
            told = summarize(finding.detail for finding in of_kind)
            logger.warning(f"{len(of_kind):,} {text}: {told} (first: {of_kind[0].path})")
        elif of_kind:
            logger.warning(f"{len(of_kind):,} {text}: {of_kind[0].path}: {of_kind[0].detail}")
    if findings:
        logger.warning(f"All of these are listed in {path}")
