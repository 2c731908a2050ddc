"""What has changed in the images since the last retraining, in numbers and in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from graftline.data.changes import count_changes
from graftline.data.version import DatasetVersion
from graftline.errors import UserError


@dataclass(frozen=True)
class Changes:
    """How a dataset version differs from the one that was trained on last.

    Attributes:
        before: number of images then.
        added: images that were not there.
        removed: images that are gone.
        relabeled: images that have another label.
        tested: new test images.
        new_classes: names.
        lost_classes: names of the classes that are gone; those whose images have another label now are in ``merged``.
        merged: names of the classes that are gone though their images are here.
        is_same_version: whether nothing at all differs, neither images nor what is known of them, as their names.
    """

    before: int
    added: int
    removed: int
    relabeled: int
    tested: int
    new_classes: tuple[str, ...]
    lost_classes: tuple[str, ...]
    merged: tuple[str, ...]
    is_same_version: bool

    @classmethod
    def between(cls, before: DatasetVersion, after: DatasetVersion) -> "Changes":
        """Compare two versions; images are told apart by content."""
        same = before.digest == after.digest
        return cls.to_images(before, after.table(), after.class_names, is_same_version=same)

    @classmethod
    def to_images(
        cls, before: DatasetVersion, new: pd.DataFrame, class_names: Sequence[str], *, is_same_version: bool = False
    ) -> "Changes":
        """Compare a version with images that need not be one.

        Args:
            before: the version.
            new: a row per image, with columns sha256, label and split.
            class_names: the classes of ``new``.
            is_same_version: whether these are the images of ``before``.
        """
        old = before.table()
        counts = count_changes(old, new)
        added, removed, relabeled = (sum(counts[kind].values()) for kind in ("added", "removed", "relabeled"))
        here = set(new["sha256"])
        gone = [name for name in before.class_names if name not in class_names]
        left = {name: len(set(old.loc[old["label"] == name, "sha256"]) & here) for name in gone}
        return cls(
            before=len(old),
            added=added,
            removed=removed,
            relabeled=relabeled,
            tested=counts["added"].get("test", 0),
            new_classes=tuple(name for name in class_names if name not in before.class_names),
            lost_classes=tuple(name for name in gone if left[name] == 0),
            merged=tuple(name for name in gone if left[name] > 0),
            is_same_version=is_same_version,
        )

    @property
    def sentences(self) -> list[str]:
        """What has changed, and what follows from it, in words."""
        told = [f"{self.added:,} new images, {self.tested:,} of them test images"] if self.added else []
        told += (
            [f"{self.relabeled:,} images with another label, in the split that they were in"] if self.relabeled else []
        )
        told += [f"{self.removed:,} images gone, which are not trained or tested on any more"] if self.removed else []
        if self.new_classes:
            told.append(f"new: {_classes(self.new_classes)}, so that the head is a new one")
        if self.merged:
            told.append(f"gone: {_classes(self.merged)}, whose images have another label now")
        if self.lost_classes:
            told.append(f"gone with all of its images: {_classes(self.lost_classes)}")
        if not told:
            others = "settings or code" if self.is_same_version else "names, groups, weights, splits or decoding"
            told.append(f"the same images, other {others}")
        return told

    def to_json(self) -> dict[str, Any]:
        """Return it for ``result.json``."""
        return asdict(self)

    def refuse_shrink(self, most: float, source: str) -> None:
        """Make sure that images are not missing because they cannot be seen: a disk that is not there looks like this.

        Args:
            most: share of the images that may be gone.
            source: where the images are, in words.

        Raises:
            UserError: more of them are, or a whole class is.
        """
        way_out = f"See that {source} is all there; where it is meant, give RetrainOptions.allow_shrink=True."
        if self.lost_classes:
            raise UserError(f"All images of the {_classes(self.lost_classes)} are gone: nothing is trained. {way_out}")
        if self.removed > most * self.before:
            raise UserError(
                f"{self.removed:,} of {self.before:,} images are gone, more than {100 * most:.0f} % "
                f"(RetrainOptions.max_shrink): nothing is trained. {way_out}"
            )


def _classes(names: tuple[str, ...]) -> str:
    return ("class " if len(names) == 1 else "classes ") + ", ".join(f"'{name}'" for name in names)
