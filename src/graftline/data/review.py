"""Review a data set: decide which images leave it, and find what the user should know.

The table of images that these functions take has the columns of a dataset version and those of `checks.FileCheck`.
Those that take images out return the rest of the table beside their findings.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from graftline.data.decoding import DEEPEST
from graftline.data.findings import Finding, from_rows, summarize
from graftline.data.hashing import hash_texts
from graftline.data.listing import Listing
from graftline.data.manifest import SPLITS
from graftline.data.readers import EXTENSIONS
from graftline.data.rows import is_copied, is_repeated
from graftline.errors import UserError
from graftline.words import join_names

_FEW_LEVELS = 64  # of 256: what is left of 14 bits, as many cameras and scanners write them, in files of 16
_IMBALANCE = 10  # times as many images in the largest class as in the smallest: accuracy says little from there on
_PURPOSES = {
    "train": "it learns from them",
    "validation": "by them it chooses the best epoch and stops early",
    "test": "its scores are of them",
}
_PLACEHOLDERS = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "nat", "null", "?", "-"})  # programs' and people's
_AT_ONCE = 10_000  # rows whose names are looked into, which takes many times their room
_MANY = 0.5  # of the images of a class: losing that many is no accident any more


def drop_invalid(images: pd.DataFrame, min_side_px: int) -> tuple[pd.DataFrame, list[Finding]]:
    """Take out what cannot be used: flawed images, those without a label, and those smaller than ``min_side_px``."""
    flawed = images["flaw"] != ""
    nameless = ~flawed & images["label"].isna()
    tiny = ~flawed & ~nameless & (images[["width", "height"]].min(axis=1) < min_side_px)
    findings = [
        Finding(kind, path, reason)
        for kind, path, reason in images.loc[flawed, ["flaw", "path", "reason"]].itertuples(index=False, name=None)
    ]
    findings += from_rows("no_label", images[nameless], _text(images[nameless], "in no class folder, or not filled in"))
    findings += from_rows("tiny", images[tiny], _text(images[tiny], "{width} x {height} pixels"))
    return _without(images, flawed | nameless | tiny), findings


def find_losses(images: pd.DataFrame, usable: pd.DataFrame) -> list[Finding]:
    """Find the classes of which half of the images or more cannot be used, and tell why.

    Args:
        images: all that were listed.
        usable: those of them that `drop_invalid` has left.
    """
    lost = images.drop(usable.index)
    reasons = lost["reason"].mask(lost["reason"] == "", "it is too small").groupby(lost["label"])
    total = images["label"].value_counts()
    return [
        Finding("lost_images", str(label), f"{len(told):,} of {total[label]:,}: {summarize(told)}")
        for label, told in reasons
        if len(told) >= _MANY * total[label]
    ]


def explain_single_class(images: pd.DataFrame, name: str) -> str:
    """Say that all images are of one class, and the way out."""
    inner = images["path"].str.extract(rf"/{re.escape(name)}/([^/]+)/", expand=False).dropna().unique().tolist()
    way_out = "give another Ingest.path, or Table() if a table tells the classes"
    if len(inner) > 1:
        way_out = (
            f"if the folders in it ({join_names(sorted(inner))}) are the classes, give '{name}' itself as Ingest.path, "
            "or as Archive.member in an archive"
        )
    return f"There is only the class '{name}', and a classifier needs two: {way_out}."


def find_wrong_extensions(images: pd.DataFrame) -> list[Finding]:
    """Find files whose extension tells another format than their content has; the content decides."""
    formats = {**Image.registered_extensions(), ".mpo": "JPEG", **EXTENSIONS}
    parts = (images.iloc[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE))
    wrong = pd.concat([part[_has_wrong_extension(part, formats)] for part in parts] or [images])
    return from_rows("wrong_extension", wrong, _text(wrong, "it is {format}"))


def _has_wrong_extension(images: pd.DataFrame, formats: Mapping[str, str]) -> "pd.Series[bool]":
    content = images["format"].replace("MPO", "JPEG")  # phones name both .jpg
    extensions = images["path"].str.extract(r"(\.[^./]*)$", expand=False).str.lower()
    return extensions.map(formats) != content


def find_small_range(images: pd.DataFrame, limits: tuple[float, float] | None) -> list[Finding]:
    """Find that files of integers of more than 8 bits use few of the gray levels that 16 bits are scaled to."""
    deep = images.loc[(images["high"] >= 0) & (images["extra"] != "dicom")]  # which is seen through a window
    if limits is not None or deep.empty:
        return []
    low, high = deep["low"].quantile(0.01), deep["high"].quantile(0.99)
    if (high - low) / 257 >= _FEW_LEVELS:
        return []
    detail = f"from {low:,.0f} to {high:,.0f} of 0 to {DEEPEST:,} in {len(deep):,} files"
    return [Finding("small_range", deep["path"].iloc[0], detail)]


def resolve_conflicts(images: pd.DataFrame, keep: bool) -> tuple[pd.DataFrame, list[Finding]]:
    """Find the same content under different labels, and take out all of its copies unless ``keep``.

    A file that is listed several times with one label and split is counted once.
    """
    again = is_repeated(images["path"])  # they are ordered by path
    several = again | np.append(again[1:], False)[: len(again)]
    repeated = pd.Series(False, index=images.index)
    repeated[several] = images.loc[several, ["path", "label", "split"]].duplicated()
    twice = from_rows("listed_twice", images[repeated], _text(images[repeated], "as {label}"))
    images = _without(images, repeated)
    copies = images[is_copied(images["sha256"])]
    copies = copies[copies.groupby("sha256")["label"].transform("nunique") > 1]
    named: dict[str, list[str]] = defaultdict(list)
    is_one_file = copies.groupby("sha256")["path"].transform("nunique") == 1
    texts = np.where(is_one_file, _text(copies, "listed as {label}"), _text(copies, "{label} in {path}"))
    for content, text in zip(copies["sha256"], texts.tolist(), strict=True):
        named[content].append(text)
    done = "kept" if keep else "left out"
    findings = from_rows("conflict", copies, [f"{done}; {join_names(named[content])}" for content in copies["sha256"]])
    return (images if keep else _without(images, images.index.isin(copies.index))), twice + findings


def remove_mixed_groups(images: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Take out the images that can be in no split, since their group was in test and in what is trained on.

    Raises:
        UserError: they are more than half of all images: the groups are others than before.
    """
    mixed = images[images["split"].isna()]
    if len(mixed) > len(images) / 2:
        raise UserError(
            f"{len(mixed):,} of {len(images):,} images would have to leave, as their groups were in training and in "
            f"test before (first: {mixed['path'].iloc[0]}): if groups are new, or have other names than "
            "before, draw a new split with Ingest.parent='none'."
        )
    groups = (
        mixed["group"]
        .map("its group {} was in both".format, na_action="ignore")
        .astype(object)
        .fillna("it was in both")
    )
    return _without(images, images["split"].isna()), from_rows("mixed_group", mixed, groups.tolist())


def find_moved(images: pd.DataFrame, history: pd.DataFrame) -> list[Finding]:
    """Find images that are in another split than before: their source has moved them, or their group has become one.

    Where a source moves them between test and what is trained on, a model of before has trained on what is tested, or
    was tested on what is trained on now.
    """
    now, before = hash_texts(images["sha256"]), hash_texts(history["sha256"])
    was_in = {split: pd.Series(np.isin(now, before[history["split"] == split]), images.index) for split in SPLITS}
    was_trained = was_in["train"] | was_in["validation"]
    is_test = images["split"] == "test"
    is_across = (is_test & was_trained) | (~is_test & was_in["test"])
    stays = pd.concat([(images["split"] == split) & before for split, before in was_in.items()], axis=1).any(axis=1)
    across, within = images[is_across], images[was_trained & ~stays & ~is_across]
    return [
        *from_rows("moved_split", across, _text(across, "now in {split}")),
        *from_rows("moved_validation", within, _text(within, "now in {split}")),
    ]


def remove_leaks(images: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Find copies: of test images in validation or training, or of validation images in training, these leave.

    Copies within one split stay: they weigh an image, they do not leak it.
    """
    copies = images[is_copied(images["sha256"])]
    guarded = copies["split"].map({split: index for index, split in enumerate(SPLITS)})
    copies = copies.loc[guarded.sort_values(ascending=False, kind="stable").index]  # test, validation, train
    copies = copies.join(copies.groupby("sha256")[["path", "split"]].transform("first").add_prefix("first_"))
    leaks = copies[copies["split"] != copies["first_split"]]
    findings = from_rows("leak", leaks, _text(leaks, "left {split}, as it is {first_path} in {first_split}"))
    others = copies.drop(leaks.index)
    others = others[others.duplicated(["sha256", "label"])]
    findings += from_rows("duplicate", others, _text(others, "the same as {first_path} in {split}"))
    return _without(images, images.index.isin(leaks.index)), findings


def undivided(listing: Listing, split: str) -> Listing:
    """Make one split of all images."""
    images, copies = remove_leaks(listing.images.assign(split=split))
    found = set(images["label"])
    class_names = tuple(name for name in listing.class_names if name in found)
    return replace(listing, images=images, class_names=class_names, findings=[*listing.findings, *copies])


def review_splits(
    images: pd.DataFrame, class_names: Sequence[str], drawn: Sequence[str], min_images_per_class: int
) -> list[Finding]:
    """Find what is wrong with classes and splits as they are in the end.

    Args:
        images: the images that stay.
        class_names: all classes.
        drawn: the splits that the source should have given and has not.
        min_images_per_class: fewer than these are few.

    Raises:
        UserError: a class has no training images.
    """
    findings = [
        Finding("drawn_split", split, f"drawn from the training split by Split.{split}'s share") for split in drawn
    ]
    pairs = images[["group", "split"]].dropna().drop_duplicates()
    divided = pairs[pairs.duplicated("group", keep=False)].groupby("group")["split"].agg(", ".join)
    findings += [Finding("group_in_two_splits", str(group), splits) for group, splits in divided.items()]
    counts = images.groupby(["label", "split"]).size().unstack(fill_value=0).reindex(list(class_names), fill_value=0)
    trained = counts.get("train", pd.Series(0, index=counts.index))
    if untrained := [f"'{label}'" for label in trained.index[trained == 0]]:
        subject = f"class {untrained[0]} has" if len(untrained) == 1 else f"classes {join_names(untrained)} have"
        raise UserError(
            f"The {subject} no training images: add some, or put some of their images into that split "
            "where the source gives splits, or draw a new split with Ingest.parent='none'."
        )
    for label, row in counts.iterrows():
        findings += [Finding("not_in_split", str(label), f"none in {split}") for split in row.index[row == 0]]
    findings += _find_similar_names(class_names)
    totals = counts.sum(axis=1)
    findings += [
        Finding(
            "placeholder", name, f"a class of its own, of {totals[name]:,}; leave the label empty where there is none"
        )
        for name in class_names
        if name.casefold() in _PLACEHOLDERS
    ]
    findings += [
        Finding(
            "few_images", str(label), f"{total} image{'s' if total != 1 else ''}, fewer than {min_images_per_class}"
        )
        for label, total in totals[totals < min_images_per_class].items()
    ]
    if totals.max() >= _IMBALANCE * totals.min():
        largest, smallest = totals.idxmax(), totals.idxmin()
        detail = f"{totals.max():,} images, but {smallest} has {totals.min():,}: look at balanced accuracy"
        findings.append(Finding("imbalance", str(largest), detail))
    return findings


def find_empty_splits(
    images: pd.DataFrame, splits: Collection[str], given: Collection[str], parent: str | None
) -> list[Finding]:
    """Find the splits that have no image in the end, each with the reason and the way out.

    Args:
        images: the images that stay.
        splits: those that should have some.
        given: those that the source gives.
        parent: digest of the version whose splits the images inherit; None: there is none.
    """
    findings = []
    for split in sorted(set(splits) - set(images["split"])):
        if split in given:
            detail = "all that the source gives are copies of test images: give it others"
        elif parent is not None:
            detail = (
                f"images keep the splits that they have in version {parent}: draw all anew with Ingest.parent='none', "
                f"and Split.{split} above 0"
            )
        else:
            detail = (
                "there are too few images or groups for it, as no group is divided and training has each class: add "
                "some, or divide them into fewer splits, as with Split.test=0"
            )
        findings.append(Finding("empty_split", split, detail))
    return findings


def lacking_split(split: str, reason: str) -> UserError:
    """Return the error that a training needs a split and has no image for it."""
    return UserError(f"No image would be for {split}, which a training needs ({_PURPOSES[split]}){reason}.")


def require_weights(images: pd.DataFrame, split: str) -> None:
    """Make sure that images of a split, if they have weights, have one above 0: without, they have no score.

    Raises:
        UserError: all of them have the weight 0.
    """
    if images.loc[images["split"] == split, "weight"].max() == 0:
        raise UserError(
            f"All images for {split} have the weight 0, so they count for nothing: give some of them a weight above 0, "
            "or leave the weights out (Table.weight=None)."
        )


def require_none_invalid(invalid: Sequence[Finding], losses: Sequence[Finding], file: Path) -> None:
    """Make sure that all images can be used.

    Args:
        invalid: what `drop_invalid` has found.
        losses: what `find_losses` has found.
        file: that has the findings, for the message.

    Raises:
        UserError: some cannot.
    """
    if invalid:
        first = f"{invalid[0].path}: {invalid[0].detail}"
        lost = "".join(f"; of '{loss.path}' {loss.detail}" for loss in losses)
        raise UserError(
            f"{len(invalid):,} images cannot be used (first: {first}{lost}): replace or remove those listed in {file}, "
            "or leave them out with Ingest.on_invalid='leave_out'."
        )


def require_usable(images: pd.DataFrame, findings: Sequence[Finding], file: Path) -> None:
    """Make sure that an image can be used.

    Args:
        images: those that can.
        findings: what is wrong with the others.
        file: that has the findings, for the message.

    Raises:
        UserError: there is none.
    """
    if images.empty:
        told = summarize(finding.detail for finding in findings if finding.kind != "lost_images")
        raise UserError(f"No image can be used (first: {findings[0].path}; {told}): replace those in {file}.")


def require_classes(listing: Listing, file: Path) -> None:
    """Make sure that there are two classes, and a usable image of each.

    Args:
        listing: images that were checked.
        file: that has the findings, for the message.

    Raises:
        UserError: there are not.
    """
    found, class_names = set(listing.images["label"]), listing.class_names
    lost = {finding.path: finding.detail for finding in listing.findings if finding.kind == "lost_images"}
    others = "each is the same as one with another label"
    if not listing.decisions.empty:
        others = "each was relabeled or dropped by decision, or is the same as one with another label"
    for name in class_names:
        if name not in found:
            raise UserError(
                f"No image of the class '{name}' can be used ({lost.get(name, others)}): replace those in {file}, or "
                "remove the class."
            )
    if len(class_names) < 2:
        raise UserError(explain_single_class(listing.images, class_names[0]))


def require_known_classes(found: Sequence[str], known: Sequence[str]) -> None:
    """Make sure that a model knows the classes of the images that it is to classify.

    Raises:
        UserError: it does not.
    """
    if unknown := [name for name in found if name not in set(known)]:
        raise UserError(
            f"The model does not know the class{'' if len(unknown) == 1 else 'es'} {join_names(unknown)}, "
            f"only {join_names(known)}: rename or leave out the images of what it does not know."
        )


def _find_similar_names(class_names: Sequence[str]) -> list[Finding]:
    """Find classes whose names differ in capitals and blanks only."""
    first: dict[str, str] = {}
    others = [(name, first.setdefault(" ".join(name.casefold().split()), name)) for name in class_names]
    return [
        Finding("similar_names", name, f"the same as {other} but for capitals or blanks, yet a class of its own")
        for name, other in others
        if name != other
    ]


def _without(images: pd.DataFrame, leaving: "pd.Series[bool] | np.ndarray") -> pd.DataFrame:
    """Return the images that stay: the table itself where none leaves, as a copy takes hundreds of bytes per image."""
    return images[~leaving] if leaving.any() else images


def _text(rows: pd.DataFrame, template: str) -> list[str]:
    """Fill a template's {columns} for each row."""
    return [template.format_map(row) for row in rows.to_dict("records")]
