"""What Dagster's sensor sees of a folder, without listing what has not changed."""

import json
import os
import re
import time
from pathlib import Path

import pytest
import source_watch
from plain_name import plain_name
from result_metadata import describe
from source_watch import FolderWatch

OLD = time.time_ns() - 60 * 10**9


def add(root: Path, *names: str) -> None:
    """Put files into folders; each folder's time is a minute ago, a nanosecond later each time."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        number = sum(1 for _ in folder.iterdir())
        os.utime(folder, ns=(OLD + number, OLD + number))


def look(watch: FolderWatch, root: Path, now: float) -> FolderWatch:
    """Look once more, by way of a cursor."""
    again = FolderWatch(**json.loads(json.dumps(watch.to_json())))
    again.look(str(root), now)
    return again


def succeed(watch: FolderWatch) -> None:
    """Ask for a run that succeeds."""
    watch.ask("1", 0.0)
    watch.end(0.0, succeeded=True)


def test_new_files_are_counted_until_a_run_is_asked_for(tmp_path: Path) -> None:
    now = time.time()
    add(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/old/3.jpg", "dog/.hidden")
    watch = look(FolderWatch(), tmp_path, now)
    assert (watch.count, watch.new, watch.since) == (3, 3, now)
    assert watch.is_due(3, 24, now)
    assert not watch.is_due(4, 24, now)
    succeed(watch)
    assert not watch.is_due(1, 24, now)
    add(tmp_path, "dog/old/4.jpg", "horse/5.jpg")
    watch = look(watch, tmp_path, now + 60)
    assert (watch.count, watch.new) == (5, 2)
    assert not watch.is_due(3, 24, now + 60)
    watch = look(watch, tmp_path, now + 60 + 24 * 3600)
    assert watch.is_due(3, 24, now + 60 + 24 * 3600), "they have waited for a day"


def test_only_a_run_that_has_succeeded_has_seen_the_files(tmp_path: Path) -> None:
    now, hour = time.time(), 3600
    add(tmp_path, "cat/1", "cat/2")
    watch = look(FolderWatch(), tmp_path, now)
    assert watch.is_due(2, 24, now)
    watch.ask("1", now)
    watch = look(watch, tmp_path, now + 48 * hour)
    assert not watch.is_due(1, 24, now + 48 * hour), "it is under way"
    watch.end(now + 48 * hour, succeeded=False)
    assert not watch.is_due(1, 24, now + 71 * hour), "it would fail again at once, however long it takes"
    watch = look(watch, tmp_path, now + 72 * hour)
    assert watch.is_due(2, 24, now + 72 * hour)
    watch.ask("2", now + 72 * hour)
    add(tmp_path, "cat/3")
    watch = look(watch, tmp_path, now + 73 * hour)
    watch.end(now + 74 * hour, succeeded=True)
    watch = look(watch, tmp_path, now + 74 * hour)
    assert (watch.new, watch.since) == (1, now + 74 * hour), "it has come since"


def test_of_fewer_files_none_is_new(tmp_path: Path) -> None:
    add(tmp_path, *(f"cat/{number}" for number in range(5)))
    watch = look(FolderWatch(), tmp_path, time.time())
    succeed(watch)
    for number in range(3):
        (tmp_path / "cat" / str(number)).unlink()
    watch = look(watch, tmp_path, time.time())
    assert (watch.count, watch.new, watch.since) == (2, 0, None)
    add(tmp_path, "cat/9")
    assert look(watch, tmp_path, time.time()).new == 1


def test_only_what_has_changed_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    whole = source_watch._list

    def noted(folder: str) -> tuple[int, list[str]]:
        listed.append(Path(folder).name)
        return whole(folder)

    monkeypatch.setattr(source_watch, "_list", noted)
    add(tmp_path, "cat/1", "dog/2")
    watch = look(FolderWatch(), tmp_path, time.time())
    assert sorted(listed[1:]) == ["cat", "dog"]
    listed.clear()
    watch = look(watch, tmp_path, time.time())
    assert listed == []
    add(tmp_path, "dog/3")
    assert look(watch, tmp_path, time.time()).count == 3
    assert listed == ["dog"]


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """The folder has the same time before and after, as on file systems that keep whole seconds."""
    (tmp_path / "1").touch()
    now = time.time()
    os.utime(tmp_path, (now, now))
    watch = look(FolderWatch(), tmp_path, now)
    (tmp_path / "2").touch()
    os.utime(tmp_path, (now, now))
    assert look(watch, tmp_path, now + 10).count == 2


def test_links_are_followed_once_and_a_lost_folder_is_told(tmp_path: Path) -> None:
    add(tmp_path, "images/cat/1")
    (tmp_path / "images" / "cat" / "back").symlink_to(tmp_path / "images")
    watch = look(FolderWatch(), tmp_path / "images", time.time())
    assert watch.count == 1
    with pytest.raises(FileNotFoundError):
        watch.look(str(tmp_path / "unmounted"), time.time())
    assert watch.count == 1


def test_a_table_is_new_when_its_time_is(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.touch()
    watch = look(FolderWatch(), table, time.time())
    assert watch.new == 1
    succeed(watch)
    watch = look(watch, table, time.time())
    assert watch.new == 0
    os.utime(table, ns=(OLD, OLD))
    watch = look(watch, table, time.time())
    assert watch.new == 1
    watch.ask("2", time.time())
    os.utime(table, ns=(OLD + 1, OLD + 1))
    watch = look(watch, table, time.time())
    watch.end(time.time(), succeeded=True)
    watch = look(look(watch, table, time.time()), table, time.time())
    assert watch.new == 1


RESULT = {
    "outcome": "promoted",
    "reason": "superior",
    "model_uri": "models:/pets/1",
    "dataset_digest": "d1",
    "run_id": "r1",
    "metrics": {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95}},
}


@pytest.mark.parametrize(
    ("outcome", "assets"),
    [
        ("promoted", ["dataset", "model", "champion"]),
        ("refused", ["dataset", "model"]),
        ("nothing new", []),
        ("not due", []),
        ("held", []),
    ],
)
def test_a_run_makes_what_is_new(tmp_path: Path, outcome: str, assets: list[str]) -> None:
    result = RESULT | {"outcome": outcome}
    if not assets:
        del result["model_uri"]
    assert list(describe({"result": result, "directory": str(tmp_path)}, "http://h")) == assets


def test_scores_and_figure_are_shown(tmp_path: Path) -> None:
    (tmp_path / "train" / "test").mkdir(parents=True)
    (tmp_path / "train" / "test" / "confusion_matrix.svg").write_bytes(b"<svg/>")
    model = describe({"result": RESULT, "directory": str(tmp_path)}, "http://h")["model"]
    assert model["accuracy"] == ("float", 0.9)
    assert model["run"] == ("url", "http://h/#/runs/r1")
    assert model["figure"] == ("md", "![confusion_matrix](data:image/svg+xml;base64,PHN2Zy8+)")
    assert "| accuracy | 0.9000 | 0.8000 to 0.9500 |" in model["scores"][1]


def test_two_schedules_have_two_names() -> None:
    """Dagster loads none where two have one name."""
    names = ["pets", "a-b", "a.b", "a_b", "кошки", "собаки"]
    found = [plain_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"\w+", name, re.ASCII) for name in found)
    assert (found[0], found[3]) == ("pets", "a_b")
