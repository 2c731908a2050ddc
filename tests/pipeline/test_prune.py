"""What is kept of old outputs, and what goes."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from workplace import Workplace

from graftline.errors import UserError
from graftline.features.digests import distinct
from graftline.features.store import ActivationStore
from graftline.files import write_json
from graftline.pipeline.cli import compose
from graftline.pipeline.retraining.keep import Keep, Leftover, find_leftovers
from graftline.tracking.models_in_use import UsedRun
from graftline.tracking.uri import absolute_uri

DAY, URI = 86_400.0, "sqlite:///mlflow.db"


def make_output(path: Path, days: float, *, finished: bool = True) -> Path:
    (path / ".hydra").mkdir(parents=True)
    (path / "bundle").mkdir()
    (path / "checkpoints").mkdir()
    for file in (".hydra/config.yaml", "checkpoints/best.ckpt", *(["result.json"] if finished else [])):
        (path / file).write_text("x" * 1000)
    for one in [path, *path.iterdir()]:
        os.utime(one, (time.time() - days * DAY,) * 2)
    return path


def test_what_is_old_goes_and_what_is_needed_stays(tmp_path: Path) -> None:
    root = tmp_path / "outputs" / "train"
    old = [make_output(root / f"2020-0{number}", days=100 - number) for number in range(1, 7)]
    young = make_output(root / "2026-01", days=20)
    unfinished = make_output(root / "2026-02", days=20, finished=False)
    (root / "2019-of-somebody").mkdir()
    unsent = old[0] / "outbox"
    unsent.mkdir()
    (unsent / "journal.jsonl").write_text("{}\n")
    champion = UsedRun("c", old[1].resolve(), time.time() - 99 * DAY)
    keep = Keep(runs=3, days=90, checkpoint_days=14, outputs=str(tmp_path / "outputs"))
    store = ActivationStore(tmp_path / "cache", 1e9)
    elsewhere = make_output(root / "2020-00", days=100)
    for path, uri in ((old[2], URI), (elsewhere, "https://mlflow.example.com")):
        write_json(path / "outbox" / "run.json", {"run_id": "r", "uri": absolute_uri(uri)})
    torn = make_output(root / "2019-12", days=100)
    (torn / "outbox").mkdir()
    (torn / "outbox" / "run.json").write_text('{"run_id": "r", "u')
    for path in (old[0], old[2], elsewhere, torn):
        for one in (path / "outbox", path):
            os.utime(one, (time.time() - 100 * DAY,) * 2)
    found = find_leftovers(keep, URI, [champion], store)
    assert {one.path for one in found if one.kind == "outputs"} == set(old[2:5]), "not the 3 newest, nor what is needed"
    assert {one.path for one in found if one.kind == "checkpoints"} == {
        old[5] / "checkpoints",
        young / "checkpoints",
    }
    assert all(one.remove(store) for one in found)
    assert (unfinished / "checkpoints" / "best.ckpt").exists(), "it may be resumed"
    assert sorted(path.name for path in root.iterdir()) == sorted(
        path.name for path in (torn, elsewhere, old[0], old[1], old[5], young, unfinished, root / "2019-of-somebody")
    )
    assert (old[1] / "checkpoints").is_dir()
    assert (elsewhere / "checkpoints").is_dir(), "another server knows whether it is in use"
    assert (torn / "checkpoints").is_dir(), "nobody knows who does"
    assert not (young / "checkpoints").exists()


def make_segment(store: ActivationStore, number: int, days: float) -> Path:
    """Cache activations of ten images that were used so many days ago."""
    digests, _, _ = distinct(np.arange(20, dtype=np.uint64).reshape(2, -1) + np.uint64(100 * number))
    reserved = store.reserve(store.table({"network": number}), digests, 4, "float32")
    assert reserved is not None
    segment, lock = reserved
    with lock:
        segment.write(0, np.zeros((10, 4), np.float32))
    os.utime(segment.directory / "used", (time.time() - days * DAY,) * 2)
    return segment.directory


def test_activations_stay_that_were_used_since_the_first_model_in_use_was_trained(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "cache", 1e9)
    older, old, young = (make_segment(store, number, days) for number, days in enumerate((130, 100, 10)))
    keep = Keep(days=90, outputs=str(tmp_path / "outputs"))
    assert {one.path for one in find_leftovers(keep, URI, [], store)} == {older, old}
    runs = [UsedRun(str(days), tmp_path / str(days), time.time() - days * DAY) for days in (20, 120)]
    (found,) = find_leftovers(keep, URI, runs, store)
    assert (found.kind, found.path, found.days > 129) == ("activations", older, True)
    assert found.remove(store)
    assert [path.exists() for path in (older, old, young)] == [False, True, True]


def test_what_goes_is_printed_before_it_is_removed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a prune that is stopped there has removed nothing."""
    monkeypatch.chdir(workplace.root)
    old = make_output(workplace.root / "outputs" / "train" / "2020", days=100)
    remove, printed = Leftover.remove, list[str]()

    def looking(self: Leftover, store: ActivationStore) -> bool:
        printed.append(capsys.readouterr().out)
        return remove(self, store)

    monkeypatch.setattr(Leftover, "remove", looking)
    result = compose("prune", ["keep.runs=0", "hydra.run.dir=of-its-own"]).run()
    assert [one["path"] for one in result.facts["removed"]] == ["outputs/train/2020"]
    assert not old.exists()
    (before,) = printed
    assert re.search(r"To be removed.*outputs/train/2020 +outputs +3\.0 KB +100 days", before, re.DOTALL)


def test_a_database_that_is_not_there_says_nothing_of_what_is_needed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.root)
    old = make_output(workplace.root / "outputs" / "train" / "2020", days=100)
    with pytest.raises(UserError, match=r"^There is no tracking database .*none\.db: give the tracking\.uri of one"):
        compose("prune", ["keep.runs=0", "tracking.uri=sqlite:///none.db"]).run()
    assert old.exists()
    assert not Path("none.db").exists()


def test_a_link_that_leads_nowhere_is_a_file_like_any_other(tmp_path: Path) -> None:
    old = make_output(tmp_path / "outputs" / "train" / "2020", days=100)
    for name in ("latest", "checkpoints/latest"):
        (old / name).symlink_to(tmp_path / "gone")
    for one in [old, *old.iterdir()]:
        os.utime(one, (time.time() - 100 * DAY,) * 2, follow_symlinks=False)
    keep = Keep(runs=0, outputs=str(tmp_path / "outputs"))
    (found,) = find_leftovers(keep, URI, [], ActivationStore(tmp_path / "cache", 1e9))
    assert found.path == old
    assert found.bytes == 3000 + 2 * len(str(tmp_path / "gone"))


def test_what_loses_a_file_at_this_moment_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_output(tmp_path / "outputs" / "train" / "2020", days=100)
    monkeypatch.setattr(Path, "iterdir", _with_one_that_is_gone(Path.iterdir))
    assert (
        find_leftovers(Keep(runs=0, outputs=str(tmp_path / "outputs")), URI, [], ActivationStore(tmp_path / "c", 1e9))
        == []
    )


def _with_one_that_is_gone(listed: Callable[[Path], Iterator[Path]]) -> Callable[[Path], Iterator[Path]]:
    def iterdir(folder: Path) -> Iterator[Path]:
        yield from listed(folder)
        yield folder / "gone"

    return iterdir
