"""Apply what a person has decided on images: a table with a row per image, which says keep, relabel or drop.

`make audit` writes such a table without decisions; a person fills them in, and an ingest applies them. A version keeps
its decisions, and the versions that grow from it inherit them: an image that was relabeled stays so, for as long as its
source gives it the label that was found wrong. Once that gives another one, its word counts. Once the class that it was
relabeled to is gone, as after it was renamed, the image is left out: neither label is known to be right.
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from graftline.data.findings import Finding, from_rows
from graftline.data.sources.delimited import find_form, read_delimited
from graftline.data.sources.source import tidy_label
from graftline.errors import UserError
from graftline.files import atomic_file

logger = logging.getLogger(__name__)

ImageDecision = Literal["keep", "relabel", "drop"]
NEEDED = ("sha256", "label", "suggested", "decision")
COLUMNS = ("sha256", "path", "label", "suggested", "score", "reason", "decision")  # of the table that an audit writes
_KEPT = ("sha256", "label", "suggested", "decision")  # by a version
NO_DECISIONS = pd.DataFrame(columns=list(_KEPT), dtype="str")


def find_decisions(before: pd.DataFrame | None, file: str | None, class_names: tuple[str, ...]) -> pd.DataFrame:
    """Return what counts for a version: the decisions of that which it grows from, and those of a file.

    Args:
        before: those of the version before; None: there is none.
        file: the table that a person has filled in; None: there is none.
        class_names: all classes.

    Raises:
        UserError: the file is no table of decisions, or relabels an image to what is no class.
    """
    known = NO_DECISIONS if before is None else with_class_names(before, class_names)
    if file is None:
        return known
    new = with_class_names(read_decisions(Path(file).expanduser()), class_names)
    if len(wrong := new[(new["decision"] == "relabel") & ~new["suggested"].isin(class_names)]):
        raise UserError(
            f"Ingest.decisions: line {wrong.index[0] + 2} of {file} relabels an image to "
            f"'{wrong['suggested'].iloc[0]}', which is none of the classes "
            f"({', '.join(class_names[:10])}{', …' if len(class_names) > 10 else ''}): correct the column suggested."
        )
    return join_decisions(known, new)


def read_decisions(file: Path) -> pd.DataFrame:
    """Read the table that a person has filled in; rows without a decision are left out, as the image is kept then.

    It may be saved as spreadsheets do: any usual separator and encoding.

    Returns:
        Columns sha256, label, suggested and decision; the last is "keep", "relabel" or "drop". The index is the number
        of the row in the file, from 0.

    Raises:
        UserError: there is no such file, a column is missing, or a decision is none or cannot be applied.
    """
    try:
        table = read_delimited(file, find_form(file, NEEDED)).fillna("")
    except OSError as error:
        raise UserError(f"Ingest.decisions={file} cannot be read as a table: give an audit's .csv.") from error
    if missing := [column for column in NEEDED if column not in table]:
        raise UserError(
            f"Ingest.decisions={file} has no column {' or '.join(missing)}: give the .csv of an audit, with the column "
            "decision filled in."
        )
    for name in ("label", "suggested"):
        table[name] = table[name].map(tidy_label)
    table["decision"] = table["decision"].str.strip().str.lower()
    decided = table[table["decision"] != ""]
    known = get_args(ImageDecision)
    if len(wrong := decided[~decided["decision"].isin(known)]):
        raise UserError(
            f"Ingest.decisions: '{wrong['decision'].iloc[0]}' in line {wrong.index[0] + 2} of {file} is no decision: "
            f"write {', '.join(known)}, or nothing to keep the image as it is."
        )
    relabeled = decided[decided["decision"] == "relabel"]
    if len(wrong := relabeled[relabeled["suggested"] == ""]):
        raise UserError(
            f"Ingest.decisions: line {wrong.index[0] + 2} of {file} is to be relabeled, but says no label: fill in the "
            "column suggested."
        )
    twice = decided[decided.duplicated(["sha256", "label"], keep=False)]
    if len(wrong := twice[twice.groupby(["sha256", "label"])["decision"].transform("nunique") > 1]):
        first, second = (wrong.index[:2] + 2).tolist()
        raise UserError(
            f"Ingest.decisions: lines {first} and {second} of {file} decide differently on the same image: clear one."
        )
    return decided[list(_KEPT)].drop_duplicates(["sha256", "label"])


def with_class_names(decisions: pd.DataFrame, class_names: Collection[str]) -> pd.DataFrame:
    """Return decisions with labels such as 3.0 as the class 3, where that is a class and 3.0 is none.

    So pandas writes whole numbers beside an empty cell, and so versions of before have them, as `Table` read them then;
    they have names of several lines, too (`tidy_label`). What was decided under the name of today counts.
    """
    numbers = {f"{name}.0": name for name in class_names if re.fullmatch(r"-?\d+", name)}

    def name_today(label: str) -> str:
        return label if label in class_names else numbers.get(label, tidy_label(label))

    named = decisions.assign(**{column: decisions[column].map(name_today) for column in ("label", "suggested")})
    is_renamed = named["label"] != decisions["label"]
    both = pd.concat([named[is_renamed], named[~is_renamed]])
    return both.drop_duplicates(["sha256", "label"], keep="last").sort_index()


def join_decisions(before: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Add decisions to those of before; where there are two on an image with the same label, the new one counts.

    One on an image that was relabeled before counts for the label that its source gives, too.
    """
    changed = before.loc[before["decision"] == "relabel", ["sha256", "label", "suggested"]]
    changed = changed.rename(columns={"label": "first", "suggested": "label"})
    again = new[new["decision"] != "keep"].merge(changed, on=["sha256", "label"])
    again = again.assign(label=again["first"])[list(_KEPT)]
    both = pd.concat([before, again, new], ignore_index=True)
    kept = both.drop_duplicates(["sha256", "label"], keep="last")
    return kept.sort_values(["sha256", "label"], ignore_index=True)


def warn_of_unmatched(
    file: str | None, before: pd.DataFrame | None, images: pd.DataFrame, class_names: tuple[str, ...]
) -> None:
    """Say which decisions of a file are about no image, neither with its label now nor with one it was relabeled to.

    Args:
        file: the table that a person has filled in; None: there is none.
        before: decisions of the version before; None: there is none.
        images: with columns sha256 and label, as the source gives it.
        class_names: all classes.
    """
    if file is None:
        return
    given = with_class_names(read_decisions(Path(file).expanduser()), class_names)
    mentioned = images.loc[images["sha256"].isin(given["sha256"])]
    known = set(zip(mentioned["sha256"], mentioned["label"], strict=True))
    if before is not None:
        before = with_class_names(before, class_names)
        relabeled = before[before["decision"] == "relabel"]
        known |= set(zip(relabeled["sha256"], relabeled["suggested"], strict=True))
    pairs = list(zip(given["sha256"], given["label"], strict=True))
    if unmatched := [pair for pair in pairs if pair not in known]:
        sha256, label = unmatched[0]
        logger.warning(
            f"{len(unmatched):,} of {len(pairs):,} decisions of {file} are about no image with that label, and change "
            f"nothing (first: label '{label}' of the image with sha256 {sha256[:12]}…): the image or its label has "
            "changed since the audit, or a spreadsheet has changed the columns sha256 and label ('01' to '1')."
        )


def write_decisions(decisions: pd.DataFrame, file: Path) -> None:
    """Write decisions into a version; no file where there are none."""
    if not decisions.empty:
        with atomic_file(file) as temporary:
            decisions.astype("str").to_parquet(temporary, index=False)


def apply_decisions(
    images: pd.DataFrame, decisions: pd.DataFrame, class_names: tuple[str, ...]
) -> tuple[pd.DataFrame, list[Finding]]:
    """Relabel and take out images, those that have the label on which was decided.

    One that is to have a label that is no class any more is taken out, too.

    Args:
        images: with columns path, sha256 and label.
        decisions: as `find_decisions` returns them.
        class_names: all classes.
    """
    found = images[["sha256", "label"]].merge(decisions, on=["sha256", "label"], how="left").set_index(images.index)
    is_class = found["suggested"].isin(class_names)
    lost = (found["decision"] == "relabel") & ~is_class
    relabeled = (found["decision"] == "relabel") & is_class & (found["suggested"] != found["label"])
    dropped = found["decision"] == "drop"
    was, wanted = images.loc[relabeled, "label"], found.loc[lost, "suggested"]
    images = images.assign(label=images["label"].mask(relabeled, found["suggested"]))
    findings = from_rows("relabeled", images[relabeled], [f"{before} before" for before in was])
    findings += from_rows("lost_label", images[lost], [f"it was to be {label}" for label in wanted])
    findings += from_rows("dropped", images[dropped], [f"it was {label}" for label in images.loc[dropped, "label"]])
    return images[~(dropped | lost)], findings
