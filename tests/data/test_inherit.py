"""An image keeps its split for ever, however its data set changes."""

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from graftline.data.ingest import Ingest, IngestResult
from graftline.data.inherit import inherit
from graftline.data.split import Split
from graftline.data.version import newest_version
from graftline.errors import UserError

CONTENTS, COPIES, GROUPS = 60, 2, 12
TRAINED = ("train", "validation")


@dataclass(frozen=True)
class Listing:
    """A source that lists what it was given: rows of path, label and group."""

    rows: Sequence[tuple[str, str, str | None]]

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
        for content, split in zip(table["sha256"], table["split"], strict=True):
            before = self.splits.get(content, split)
            assert (before == "test") == (split == "test"), "crossed"
            assert split == before or (before, split) == ("validation", "train")
        in_group = table.dropna(subset="group")
        tested = set(in_group.loc[in_group["split"] == "test", "group"])
        trained = set(in_group.loc[in_group["split"] != "test", "group"])
        assert not trained & (tested | self.tested), "a group that was tested is trained on"
        is_new = ~in_group["sha256"].isin(list(self.splits))
        assert not set(in_group.loc[is_new & (in_group["split"] == "test"), "group"]) & self.trained
        self.tested |= tested
        self.trained |= trained
        self.splits.update(zip(table["sha256"], table["split"], strict=True))


@pytest.mark.long
@given(
    first=st.lists(st.one_of(st.none(), st.integers(0, GROUPS - 1)), min_size=20, max_size=40),
    steps=st.lists(st.lists(EDITS, min_size=1, max_size=8), min_size=1, max_size=5),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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


def rows(*images: tuple[str, str | None, str | None]) -> pd.DataFrame:
    """Make a table of contents, groups and splits."""
    return pd.DataFrame(images, columns=["sha256", "group", "split"]).astype("str")


@pytest.mark.parametrize(
    ("history", "image", "split", "leaves"),
    [
        ([("x", None, "test")], ("x", None), "test", False),  # by content
        ([("x", None, "test")], ("x", "p"), "test", False),  # also when its group becomes known
        ([("x", "p", "validation")], ("new", "p"), "validation", False),  # by group, though x is gone
        ([("x", "p", "train"), ("y", "q", "train")], ("new", None), None, False),  # nothing known
        ([("x", "p", "validation"), ("y", "p", "train")], ("x", "p"), "train", False),  # merged, so one has to move
        ([("x", "p", "test"), ("y", "p", "train")], ("x", "p"), "test", False),  # test images stay
        ([("x", "p", "test"), ("y", "p", "train")], ("y", "p"), None, True),  # and what was trained on leaves
        ([("x", "p", "test"), ("y", "p", "validation")], ("new", "p"), None, True),
        ([("x", "p", "test"), ("x", "q", "test"), ("y", "q", None), ("y", "r", "train")], ("new", "r"), None, True),
        ([("x", None, "test"), ("x", None, "train")], ("x", None), None, True),  # its source has moved it
    ],
)
def test_the_rules(
    history: list[tuple[str, str | None, str | None]], image: tuple[str, str | None], split: str | None, leaves: bool
) -> None:
    splits, is_leaving = inherit(rows((*image, None)), rows(*history))
    assert (None if pd.isna(splits[0]) else splits[0], is_leaving[0]) == (split, leaves)


def test_two_groups_that_become_one_through_a_new_image(tmp_path: Path, pool: Path) -> None:
    """Groups of test and of training merge: test images stay, the others leave and are listed, later on too."""
    album = Album()
    for content in range(40):
        album.add(content, content // 4)
    first = ingest(tmp_path, album.listing(pool)).version
    splits = first.table().groupby("group")["split"].first()
    test, train = splits[splits == "test"].index[0], splits[splits == "train"].index[0]
    album.edit("merge", 4 * int(train[1:]), int(test[1:]), 0)
    album.add(50, int(test[1:]))
    for _ in range(2):
        merged = ingest(tmp_path, album.listing(pool))
        assert [finding.kind for finding in merged.findings if finding.kind == "mixed_group"] == ["mixed_group"] * 5
        assert merged.version.test_digest == first.test_digest
        table = merged.version.table()
        assert (len(table), set(table.loc[table["group"] == test, "split"])) == (36, {"test"})
    album.edit("remove", 50, 0, 0)
    assert len(ingest(tmp_path, album.listing(pool)).version.table()) == 36
    album.add(51, int(train[1:]))  # of a group that was merged before
    assert len(ingest(tmp_path, album.listing(pool)).version.table()) == 36


def test_validation_images_whose_group_joins_training_are_listed(tmp_path: Path, pool: Path) -> None:
    album = Album()
    for content in range(40):
        album.add(content, content // 4)
    first = ingest(tmp_path, album.listing(pool)).version.table().groupby("group")["split"].first()
    validation, train = (int(first[first == split].index[0][1:]) for split in TRAINED[::-1])
    album.edit("merge", 4 * validation, train, 0)
    moved, again = (
        [(finding.path, finding.detail) for finding in result.findings if finding.kind == "moved_validation"]
        for result in (ingest(tmp_path, album.listing(pool)) for _ in range(2))
    )
    assert {(int(Path(path).stem) // 4, detail) for path, detail in moved} == {(validation, "now in train")}
    assert (len(moved), again) == (4, [])


def test_groups_that_are_new_to_all_images_are_a_mistake(tmp_path: Path, pool: Path) -> None:
    album = Album()
    for content in range(40):
        album.add(content, None)
    ingest(tmp_path, album.listing(pool))
    for content in range(40):
        album.add(content, content // 10)
    with pytest.raises(UserError, match=r"of 40 images would have to leave.*Ingest.parent='none'"):
        ingest(tmp_path, album.listing(pool))
    assert len(ingest(tmp_path, album.listing(pool), parent="none").version.table()) == 40


def test_an_image_that_goes_and_comes_back_keeps_its_split(tmp_path: Path, pool: Path) -> None:
    """Through versions without it, and through one that has been there before it came."""
    album = Album()
    for content in range(30):
        album.add(content, None)
    first = ingest(tmp_path, album.listing(pool)).version
    for content in range(30, 50):
        album.add(content, None)
    grown = ingest(tmp_path, album.listing(pool)).version
    assert (grown.parent, newest_version(tmp_path / "album")) == (first.digest, grown)
    for content in range(30, 50):
        album.edit("remove", content, 0, 0)
    back = ingest(tmp_path, album.listing(pool))
    assert (back.version, back.is_new) == (first, False)  # the first version is the newest one again
    assert newest_version(tmp_path / "album") == first
    for content in range(10, 30):
        album.edit("remove", content, 0, 0)
    ingest(tmp_path, album.listing(pool))
    for content in range(10, 50):
        album.add(content, None)
    assert ingest(tmp_path, album.listing(pool)).version.digest == grown.digest
    assert sorted(path.name for path in (tmp_path / "album").glob("*/")) == sorted(
        version.parent.name for version in (tmp_path / "album").glob("*/summary.json")
    )


@pytest.mark.parametrize(("number", "end"), [(1, 660), (7, 1_000), (200, 1_000)])
def test_what_is_new_brings_each_stratum_nearer_to_its_shares(number: int, end: int) -> None:
    """Grown by one image, by seven and by 200 at a time, a data set has the shares that it would have at once."""
    table = pd.DataFrame(
        {
            "label": ["a" if index % 5 else "b" for index in range(1_000)],
            "stratum": pd.Series([None] * 1_000, dtype="str"),
            "group": pd.Series([None] * 1_000, dtype="str"),
            "sha256": [str(index) for index in range(1_000)],
            "split": pd.Series([None] * 1_000, dtype="str"),
        }
    )
    grown = Split().assign(table.head(600))
    for size in range(600 + number, end + 1, number):
        before, grown = grown, Split().assign(table.head(size), grown[["sha256", "group", "split"]])
        assert grown["split"].head(len(before)).tolist() == before["split"].tolist()
    counts = pd.crosstab(grown["label"], grown["split"])
    expected = np.outer(counts.sum(axis=1), [0.60, 0.15, 0.25])
    np.testing.assert_allclose(counts[["train", "validation", "test"]].to_numpy(), expected, atol=1.5)


def test_other_shares_and_seeds_are_for_new_images(
    tmp_path: Path, pool: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("graftline"), "propagate", True)
    caplog.set_level(logging.INFO)
    album = Album()
    for content in range(40):
        album.add(content, None)
    first = ingest(tmp_path, album.listing(pool)).version
    assert "keep their splits" not in caplog.text
    other = Split(validation=0.1, test=0.6, seed=3)
    again = ingest(tmp_path, album.listing(pool), split=other)
    assert (again.version.digest, again.is_new) == (first.digest, False)
    assert "Ingest.parent='none' draws anew" in caplog.text
    anew = ingest(tmp_path, album.listing(pool), parent="none", split=other).version
    assert (anew.parent, sum(anew.counts()["test"].values())) == (None, 24)
    for content in range(40, 60):
        album.add(content, None)
    grown = ingest(tmp_path, album.listing(pool), parent=str(first.directory), split=other).version
    assert (grown.parent, sum(grown.counts()["test"].values())) == (
        first.digest,
        34,
    )  # 16 and 18 new: validation has too many, test lacks 20, training 2
    assert ingest(tmp_path, album.listing(pool), split=other).version == grown


def test_what_has_changed_is_one_table(tmp_path: Path, pool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    album = Album()
    for content in range(40):
        album.add(content, None)
    first = ingest(tmp_path, album.listing(pool)).version
    assert first.origin["changes"] is None
    splits = {int(Path(path).stem): split for path, split in first.table()[["path", "split"]].to_numpy()}
    album.edit("remove", 4, 0, 0)
    album.edit("relabel", 6, 0, 1)
    album.edit("rename", 5, 0, 1)
    album.edit("copy", 8, 0, 0)
    album.add(55, None)
    capsys.readouterr()
    version = ingest(tmp_path, album.listing(pool)).version
    changes = version.origin["changes"]
    assert {kind: sum(counts.values()) for kind, counts in changes.items()} == {
        "added": 2,
        "removed": 1,
        "relabeled": 1,
        "moved": 0,
    }
    assert (changes["removed"], changes["relabeled"]) == ({splits[4]: 1}, {splits[6]: 1})
    assert f"since version {first.digest}" in capsys.readouterr().out
    ingest(tmp_path, album.listing(pool))
    assert "since version" not in capsys.readouterr().out


def test_a_source_that_moves_an_image_decides_and_is_told(tmp_path: Path, pool: Path) -> None:
    images = [(f"{pool}/0/{content * 7 % CONTENTS:02}/{content}.png", "ab"[content % 2], None) for content in range(30)]
    splits = ["train", "train", "validation", "validation", "test", "test"] * 5

    @dataclass(frozen=True)
    class Given:
        splits: list[str]

        def read(self, path: Path | None) -> pd.DataFrame:  # noqa: ARG002 - a source's signature
            return Listing(images).read(None).assign(split=self.splits)

    def run(splits: list[str], **settings: Any) -> IngestResult:
        split = Split(**settings)
        return Ingest("given", None, Given(splits), split, directory=str(tmp_path), min_images_per_class=1).run()

    assert run(splits).findings == []
    moved = run(["test", "validation", *splits[2:4], "train", *splits[5:]])
    assert {(Path(finding.path).stem, finding.kind, finding.detail) for finding in moved.findings} == {
        ("0", "moved_split", "now in test"),
        ("1", "moved_validation", "now in validation"),
        ("4", "moved_split", "now in train"),
    }
    assert moved.version.origin["changes"]["moved"] == {"test": 1, "train": 1, "validation": 1}
    table = moved.version.table().set_index("path")["split"]
    assert (table[images[0][0]], table[images[4][0]]) == ("test", "train")
    kept = run(splits, existing=False)  # the source's word counts for nothing: what was on both sides is on none
    assert {Path(finding.path).stem for finding in kept.findings if finding.kind == "mixed_group"} == {"0", "4"}


def test_a_parent_that_is_none_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for parent, message in (
        ("newst", "Ingest.parent=newst is no version"),
        (str(tmp_path), "holds no dataset version"),
    ):
        with pytest.raises(UserError, match=message):
            ingest(tmp_path, None, parent=parent)  # type: ignore[arg-type]  # no source: it would fail if it were read


def test_it_is_fast_enough_for_chains_of_groups() -> None:
    """100,000 images in groups that were numbered anew: one long chain of groups through images."""
    numbers = np.arange(100_000)
    images = pd.DataFrame({"sha256": numbers.astype(str), "group": ((numbers + 1) // 2).astype(str)})
    history = pd.DataFrame({"sha256": numbers.astype(str), "group": (numbers // 2).astype(str), "split": "train"})
    start = time.process_time()
    splits, _ = inherit(images, history)
    assert (splits == "train").all()
    assert time.process_time() - start < 10  # about 0.5 s; following the chain step by step takes an hour
