"""Whether the newest version of a data set knows what an old one does."""

from pathlib import Path

import pandas as pd
from manifest import manifest

from graftline.data.decisions import NO_DECISIONS
from graftline.data.old_versions import find_old, is_test_set, knows_all_of
from graftline.data.version import DatasetVersion
from graftline.data.version_writing import TEST_SETS, write_version

DECIDED = pd.DataFrame({"sha256": ["a"], "label": ["cat"], "suggested": ["dog"], "decision": ["relabel"]})
AGAIN = DECIDED.assign(decision="keep")


def write(
    folder: Path,
    images: range,
    parent: DatasetVersion | None,
    decisions: pd.DataFrame = NO_DECISIONS,
    group: str = "g",
    name: str = "pets",
) -> DatasetVersion:
    table = manifest(["cat", "dog"] * (len(images) // 2), ["train"] * len(images), group=group)
    table = table.assign(sha256=[f"{number:064x}" for number in images])
    return write_version(folder, name, table, ("cat", "dog"), parent=parent, decisions=decisions)[0]


def test_a_version_knows_what_those_before_it_know(tmp_path: Path) -> None:
    first = write(tmp_path, range(8), None)
    second = write(tmp_path, range(2, 12), first, group="h")
    third = write(tmp_path, range(4, 20), second)
    assert knows_all_of(third, first), "also of images that are gone, and of another group"
    assert knows_all_of(third, second)
    assert not knows_all_of(first, second)
    assert not knows_all_of(write(tmp_path, range(4, 22), None), second), "it grew from nothing"


def test_decisions_are_known_if_there_is_one_on_the_same_image(tmp_path: Path) -> None:
    first = write(tmp_path, range(8), None, DECIDED)
    assert not knows_all_of(write(tmp_path, range(10), first), first)
    assert knows_all_of(write(tmp_path, range(12), first, AGAIN), first)


def test_what_is_no_version_is_left_alone(tmp_path: Path) -> None:
    versions = [write(tmp_path, range(2 * number), None) for number in (1, 2, 3)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_text("{")
    (tmp_path / ("f" * 16)).symlink_to(versions[0].directory)
    assert find_old(tmp_path, 0, 0.0) == [versions[1], versions[0]]
    assert find_old(tmp_path, 2, 0.0) == [versions[0]]
    assert find_old(tmp_path, 0, 1.0) == []


def test_a_data_set_may_be_called_as_the_folder_of_tests_is(tmp_path: Path) -> None:
    for name in ("pets", TEST_SETS):
        own, tested = tmp_path / name, tmp_path / name / TEST_SETS
        versions = [write(folder, range(2), None, name=name) for folder in (own, tested)]
        assert [is_test_set(version) for version in versions] == [False, True]
