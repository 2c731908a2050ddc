"""What a person decides on images: read, applied, kept by the version, inherited by those that grow from it."""

import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from graftline.data.decisions import COLUMNS, find_decisions, join_decisions, read_decisions
from graftline.data.ingest import Ingest, IngestResult
from graftline.data.old_versions import knows_all_of
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.files import sha256_file


@pytest.fixture
def pets(tmp_path: Path, make_folder: Any) -> Path:
    root: Path = make_folder(tmp_path / "pets", cat=12, dog=12)
    return root


def ingest(root: Path, **settings: Any) -> IngestResult:
    return Ingest("pets", str(root), Folder(), Split(), directory=str(root.parent / "versions"), **settings).run()


def write(root: Path, *rows: tuple[str, str, str, str]) -> str:
    """Write a table of decisions: image, label, suggested, decision."""
    table = pd.DataFrame(columns=list(COLUMNS))
    for number, (name, label, suggested, decision) in enumerate(rows):
        path = root / name
        table.loc[number] = [sha256_file(path), str(path), label, suggested, "0.1", "made up", decision]
    file = root.parent / "decisions.csv"
    table.to_csv(file, index=False)
    return str(file)


def labels(result: IngestResult) -> dict[str, str]:
    table = result.version.table()
    return {
        Path(path).parent.name + "/" + Path(path).name: label
        for path, label in zip(table.path, table.label, strict=False)
    }


def test_images_are_relabeled_dropped_and_kept(pets: Path) -> None:
    before = ingest(pets)
    decisions = write(
        pets,
        ("cat/000.png", "cat", "dog", "Relabel "),
        ("cat/001.png", "cat", "dog", "drop"),
        ("cat/002.png", "cat", "dog", "keep"),
        ("cat/003.png", "cat", "dog", ""),
    )
    after = ingest(pets, decisions=decisions)
    assert after.version.digest != before.version.digest
    expected = labels(before) | {"cat/000.png": "dog"}
    del expected["cat/001.png"]
    assert labels(after) == expected
    splits = before.version.table().set_index("sha256")["split"]
    table = after.version.table().set_index("sha256")
    pd.testing.assert_series_equal(table["split"], splits.loc[table.index])
    kinds = {(finding.kind, Path(finding.path).name, finding.detail) for finding in after.findings}
    assert ("relabeled", "000.png", "cat before") in kinds
    assert ("dropped", "001.png", "it was cat") in kinds
    assert after.version.summary["decisions"] == {"drop": 1, "keep": 1, "relabel": 1}
    assert after.version.decisions()["decision"].value_counts().to_dict() == {"drop": 1, "keep": 1, "relabel": 1}
    assert after.version.directory / "decisions.parquet" in after.version.files
    changes = after.version.origin["changes"]
    assert sum(changes["relabeled"].values()) == sum(changes["removed"].values()) == 1


def test_the_next_version_inherits_them_until_the_source_is_mended(pets: Path) -> None:
    first = ingest(pets)
    after = ingest(pets, decisions=write(pets, ("cat/000.png", "cat", "dog", "relabel")))
    again = ingest(pets)
    assert (again.version.digest, again.is_new) == (after.version.digest, False)
    (pets / "cat/000.png").rename(pets / "dog/zero.png")  # the source says so itself now
    mended = ingest(pets)
    assert labels(mended)["dog/zero.png"] == "dog"
    assert not [finding for finding in mended.findings if finding.kind == "relabeled"]
    (pets / "dog/zero.png").rename(pets / "cat/000.png")
    anew = ingest(pets, parent="none")
    assert labels(anew) == labels(first)


def test_a_decision_can_be_taken_back(pets: Path) -> None:
    first = ingest(pets)
    ingest(pets, decisions=write(pets, ("cat/000.png", "cat", "dog", "relabel")))
    back = ingest(pets, decisions=write(pets, ("cat/000.png", "dog", "cat", "relabel")))
    assert labels(back) == labels(first)
    dropped = ingest(pets, decisions=write(pets, ("cat/000.png", "cat", "", "drop")))
    assert "cat/000.png" not in labels(dropped)


def test_an_image_whose_new_class_is_gone_is_left_out_until_it_is_decided_on_anew(pets: Path) -> None:
    decision = ("cat/000.png", "cat", "dog", "relabel")
    before = ingest(pets, decisions=write(pets, decision, ("cat/001.png", "cat", "dog", "relabel")))
    (pets / "cat/001.png").unlink()
    (pets / "dog").rename(pets / "canine")
    after = ingest(pets)
    assert "cat/000.png" not in labels(after)
    assert len(labels(after)) == len(labels(before)) - 2
    lost = [finding for finding in after.findings if finding.kind == "lost_label"]
    assert [(finding.path, finding.detail) for finding in lost] == [(str(pets / "cat/000.png"), "it was to be dog")]
    again = ingest(pets, decisions=write(pets, ("cat/000.png", "cat", "canine", "relabel")))
    assert labels(again)["cat/000.png"] == "canine"
    assert not [finding for finding in again.findings if finding.kind == "lost_label"]


def test_a_class_that_decisions_have_emptied_is_told_as_such(pets: Path) -> None:
    rows = [(f"cat/{number:03}.png", "cat", "dog", ("relabel", "drop")[number % 2]) for number in range(12)]
    with pytest.raises(UserError, match=r"class 'cat' can be used \(each was relabeled or dropped by decision, or is"):
        ingest(pets, decisions=write(pets, *rows))


def test_decisions_on_no_image_are_told(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = ("cat/000.png", "cat", "dog", "relabel")
    before = ingest(pets, decisions=write(pets, row))
    ingest(pets, decisions=write(pets, row, ("cat/000.png", "dog", "cat", "keep")))
    assert "decisions of" not in caplog.text, "one label is the source's, the other what it was relabeled to"
    file = write(pets, ("cat/001.png", "1", "", "drop"), ("cat/002.png", "cat", "", "keep"))
    after = ingest(pets, decisions=file)
    assert labels(after) == labels(before)
    sha256 = sha256_file(pets / "cat/001.png")[:12]
    told = f"1 of 2 decisions of {file} are about no image with that label, and change nothing (first: label '1' of the"
    assert told in caplog.text
    assert f"image with sha256 {sha256}…)" in caplog.text


def test_a_conflict_is_settled(pets: Path) -> None:
    (pets / "dog/copy.png").write_bytes((pets / "cat/000.png").read_bytes())
    assert "cat/000.png" not in labels(ingest(pets))
    settled = ingest(pets, decisions=write(pets, ("dog/copy.png", "dog", "cat", "relabel")))
    assert labels(settled)["cat/000.png"] == "cat"


def test_without_decisions_a_version_is_what_it_was(pets: Path) -> None:
    version = ingest(pets).version
    assert "decisions" not in version.summary
    assert version.decisions().empty
    assert ingest(pets, decisions=write(pets, ("cat/003.png", "cat", "dog", ""))).version.digest == version.digest


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("cat/000.png", "cat", "dog", "delete"), "'delete' in line 2 of .* is no decision: write keep, relabel, drop"),
        (("cat/000.png", "cat", "", "relabel"), "line 2 of .* is to be relabeled, but says no label"),
        (
            ("cat/000.png", "cat", "cow", "relabel"),
            r"line 2 of .* relabels an image to 'cow', which is none of the classes \(cat, dog\)",
        ),
    ],
)
def test_mistakes_are_told(pets: Path, row: tuple[str, str, str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        ingest(pets, decisions=write(pets, row))


def test_a_file_that_is_none_is_refused_before_images_are_read(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Ingest.decisions=no\.csv cannot be read as a table"):
        ingest(pets, decisions="no.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"has no column sha256 or label or suggested or decision"):
        ingest(pets, decisions=str(tmp_path / "other.csv"))
    assert not (tmp_path / "versions").exists()
    file = write(pets, ("cat/000.png", "cat", "dog", "drop"), ("cat/000.png", "cat", "dog", "keep"))
    with pytest.raises(UserError, match=r"lines 2 and 3 of .* decide differently on the same image"):
        read_decisions(Path(file))


@pytest.mark.parametrize(("encoding", "separator"), [("utf-16", "\t"), ("utf-8-sig", ";"), ("cp1252", ";")])
def test_a_table_that_a_spreadsheet_has_saved_is_read(pets: Path, encoding: str, separator: str) -> None:
    file = Path(write(pets, ("cat/000.png", "cat", "dog", "relabel"), ("cat/001.png", "cat", "Köter", "drop")))
    plain = read_decisions(file)
    pd.read_csv(file, dtype="str").to_csv(file, index=False, sep=separator, encoding=encoding)
    pd.testing.assert_frame_equal(read_decisions(file), plain)


def test_names_are_compared_as_those_of_classes_are(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "shoes", boots=4, Gefüllt=4)
    decomposed = unicodedata.normalize("NFD", "Gefüllt")
    rows = (("boots/000.png", "boots ", decomposed, "relabel"), ("Gefüllt/000.png", decomposed, " boots ", "relabel"))
    expected = {"boots/000.png": "Gefüllt", "Gefüllt/000.png": "boots"}
    assert expected.items() <= labels(ingest(root, decisions=write(root, *rows))).items()


def test_the_last_decision_counts(pets: Path) -> None:
    first = read_decisions(Path(write(pets, ("cat/000.png", "cat", "dog", "relabel"))))
    second = read_decisions(Path(write(pets, ("cat/000.png", "cat", "dog", "keep"))))
    assert join_decisions(first, second)["decision"].tolist() == ["keep"]


def test_decisions_on_numbers_hold_whatever_has_written_them(tmp_path: Path, make_folder: Any) -> None:
    """A version of before kept 3.0, as a table with an empty cell had it; pandas writes such a column so, too."""
    root = make_folder(tmp_path / "digits", **{"3": 6, "4": 6})
    rows = (("3/000.png", "3", "", "drop"), ("3/001.png", "3.0", "4.0", "relabel"))
    decided = ingest(root, decisions=write(root, *rows)).version
    assert decided.decisions()["label"].tolist() == ["3", "3"]
    kept = decided.directory / "decisions.parquet"
    pd.read_parquet(kept).replace({"3": "3.0", "4": "4.0"}).to_parquet(kept)
    old = DatasetVersion.load(decided.directory)
    assert set(old.decisions()["label"]) == {"3.0"}
    (root / "4/005.png").unlink()
    after = ingest(root)
    assert {"3/000.png", "3/001.png"} & set(labels(after)) == {"3/001.png"}
    assert labels(after)["3/001.png"] == "4"
    assert knows_all_of(after.version, old), "prune may remove it"


@pytest.mark.parametrize("twice", ["3.0", "3\n"])
def test_of_two_kept_decisions_on_an_image_that_of_todays_name_counts(twice: str) -> None:
    """One was kept under an older name, did not match, and was made again."""
    rows = [("x", "3", "", "keep"), ("x", twice, "", "drop"), ("y", "2 a", "", "drop"), ("z", "2\na", "3.0", "relabel")]
    before = pd.DataFrame(rows, columns=["sha256", "label", "suggested", "decision"], dtype="str")
    found = find_decisions(before, None, ("3", "2 a"))
    assert found.to_numpy().tolist() == [list(rows[0]), list(rows[2]), ["z", "2 a", "3", "relabel"]]


def test_a_class_may_be_called_3_0(tmp_path: Path, make_folder: Any) -> None:
    root = make_folder(tmp_path / "releases", **{"3": 6, "3.0": 6})
    after = ingest(root, decisions=write(root, ("3.0/000.png", "3.0", "", "drop"), ("3/000.png", "3.0", "", "drop")))
    assert {"3.0/000.png", "3/000.png"} - set(labels(after)) == {"3.0/000.png"}
