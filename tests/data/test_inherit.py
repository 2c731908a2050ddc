"""An image keeps its split for ever, however its data set changes."""

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from graftline.data.ingest import Ingest, IngestResult
from graftline.data.split import Split
from graftline.errors import UserError

CONTENTS, COPIES, GROUPS = 60, 2, 12
TRAINED = ("train", "validation")


@dataclass(frozen=True)
class Listing:
    """A source that lists what it was given: rows of path, label and group."""

    rows: list[tuple[str, str, str | None]]

    def read(self, path: Path | None) -> pd.DataFrame:  # noqa: ARG002 - a source's signature
        return pd.DataFrame(self.rows, columns=["path", "label", "group"]).astype("str")


@dataclass
class Album:
    """Images in the making: content → label, group and number of copies; edited from version to version."""

    labels: dict[int, str] = field(default_factory=dict)
    groups: dict[int, int | None] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    names: int = 0  # another number, other paths

    def add(self, content: int, group: int | None) -> None:
        self.labels.setdefault(content, "ab"[content % 2])
        self.groups[content] = group
        self.copies.setdefault(content, 1)

    def edit(self, kind: str, content: int, group: int, number: int) -> None:
        if kind == "add":
            self.add(content, group if number % 3 else None)
        elif content not in self.labels:
            return
        elif kind == "remove":
            for fields in (self.labels, self.groups, self.copies):
                fields.pop(content)
        elif kind == "relabel":
            self.labels[content] = "ab"[number % 2]
        elif kind == "regroup":
            self.groups[content] = group
        elif kind == "copy":
            self.copies[content] = COPIES
        elif kind == "merge":
            self.groups = {key: group if old == self.groups[content] else old for key, old in self.groups.items()}
        elif kind == "rename":
            self.names = number

    def listing(self, pool: Path) -> Listing:
        """List all copies; other names give another order."""
        rows = [
            (
                str(
                    pool
                    / str((copy + self.names) % COPIES)
                    / f"{(content * 7 + self.names) % CONTENTS:02}"
                    / f"{content}.png"
                ),
                self.labels[content],
                None if self.groups[content] is None else f"g{self.groups[content]}",
            )
            for content in self.labels
            for copy in range(self.copies[content])
        ]
        return Listing(rows)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each content under any of the names that an album gives it."""
    root = tmp_path_factory.mktemp("pool")
    for content in range(CONTENTS):
        pixels = np.random.default_rng(content).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        for copy in range(COPIES):
            for names in range(3):
                folder = root / str(copy) / f"{(content * 7 + names) % CONTENTS:02}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{content}.png")
    time.sleep(0.15)  # so that the checks are remembered
    return root


def ingest(directory: Path, source: Listing, parent: str = "newest", split: Split | None = None) -> IngestResult:
    split = split or Split(train=0.4, validation=0.2, test=0.4)
    return Ingest("album", None, source, split, parent, directory=str(directory), min_images_per_class=1).run()


EDITS = st.tuples(
    st.sampled_from(["add", "add", "remove", "remove", "relabel", "regroup", "copy", "merge", "rename"]),
    st.integers(0, CONTENTS - 1),
    st.integers(0, GROUPS - 1),
    st.integers(0, 2),
)


class Witness:
    """Remembers where images and groups have been, apart from the code under test."""

    def __init__(self) -> None:
        self.splits: dict[str, str] = {}  # content → the split that it had last
        self.tested: set[str] = set()  # groups
        self.trained: set[str] = set()

    def check(self, table: pd.DataFrame) -> None:
        assert table.groupby("sha256")["split"].nunique().max() == 1
        for row in table.itertuples():
            before = self.splits.get(row.sha256)
            if before is not None:
                assert (before == "test") == (row.split == "test"), "crossed"
                assert row.split == before or (before, row.split) == ("validation", "train")
        in_group = table.dropna(subset="group")
        tested = set(in_group.loc[in_group["split"] == "test", "group"])
        trained = set(in_group.loc[in_group["split"] != "test", "group"])
        assert not trained & (tested | self.tested), "a group that was tested is trained on"
        is_new = ~in_group["sha256"].isin(list(self.splits))
        assert not set(in_group.loc[is_new & (in_group["split"] == "test"), "group"]) & self.trained
        self.tested |= tested
        self.trained |= trained
        self.splits.update(zip(table["sha256"], table["split"], strict=True))


@given(
    first=st.lists(st.one_of(st.none(), st.integers(0, GROUPS - 1)), min_size=20, max_size=40),
    steps=st.lists(st.lists(EDITS, min_size=1, max_size=8), min_size=1, max_size=5),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_image_ever_crosses(
    first: list[int | None], steps: list[list[tuple[str, int, int, int]]], pool: Path
) -> None:
    """Images added, removed, back again, relabeled, copied, renamed, reordered; groups that grow, divide and merge."""
    album, witness = Album(), Witness()
    for content, group in enumerate(first):
        album.add(content, group)
    with tempfile.TemporaryDirectory() as directory:
        for edits in [[], *steps]:
            for edit in edits:
                album.edit(*edit)
            source = album.listing(pool)
            try:
                result = ingest(Path(directory), source)
            except UserError as error:  # a class without training images, or most images in groups of both
                assert "has no training images" in str(error) or "would have to leave" in str(error)  # noqa: PT017
                continue
            witness.check(result.version.table())
            event("left out: " + str(any(finding.kind == "mixed_group" for finding in result.findings)))
        event(f"versions: {len(list(Path(directory).glob('album/*/summary.json')))}")
