"""The images on their way from a source to a dataset version."""

from dataclasses import dataclass, field

import pandas as pd

from graftline.data.decisions import NO_DECISIONS
from graftline.data.findings import Finding
from graftline.data.further_columns import keep_few_valued
from graftline.data.rows import sorted_by
from graftline.data.version import DatasetVersion

_COLUMNS = {"path": "str", "label": "str", "split": "str", "group": "str", "weight": "float32", "stratum": "str"}


@dataclass(frozen=True)
class Listing:
    """Images that are listed, and further on checked and divided into splits.

    Attributes:
        images: a row per image, ordered by path, with the columns path, label, split, group, weight and stratum.
        class_names: the classes in the order of their numbers.
        further: what else the source tells of them, as categories; a row for each that was listed, of the same index.
        findings: what was found, image by image.
        parent: the version whose splits they inherit.
        left_out: images that can be in no split.
        is_divided: whether they have their splits.
        decisions: of an audit, that were applied.
    """

    images: pd.DataFrame
    class_names: tuple[str, ...]
    further: pd.DataFrame
    findings: list[Finding] = field(default_factory=list)
    parent: DatasetVersion | None = None
    left_out: pd.DataFrame | None = None
    is_divided: bool = False
    decisions: pd.DataFrame = field(default_factory=lambda: NO_DECISIONS)

    @classmethod
    def of(cls, images: pd.DataFrame) -> "Listing":
        """Return that of a source's images, which may lack optional columns."""
        if isinstance(images["label"].dtype, pd.CategoricalDtype):
            class_names = tuple(images["label"].cat.categories)
        else:
            labels = images["label"].dropna().unique().tolist()
            class_names = tuple(sorted(labels, key=int if all(map(str.isdecimal, labels)) else None))
        further = keep_few_valued(images.drop(columns=list(_COLUMNS), errors="ignore")).reset_index(drop=True)
        images = images.reindex(columns=list(_COLUMNS)).astype(_COLUMNS).reset_index(drop=True)
        images = sorted_by(images, ["path", "label"])
        further = further.loc[images.index].reset_index(drop=True)
        return cls(images.reset_index(drop=True), class_names, further)
