"""Where a retraining begins: what was decided on the same images before, and the splits that they keep."""

import errno
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from past_retrainings import NAME, Past
from workplace import TINY

from conftest import paint
from graftline.bundle.layout import CARD_FILE, FORMAT
from graftline.data import version
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.errors import DivergenceError, UnreachableError, UserError
from graftline.evaluation.recalls import FindClasses
from graftline.files import write_json
from graftline.pipeline.cli import compose
from graftline.pipeline.retrain import Retrain, RetrainResult
from graftline.pipeline.retraining.challengers import Challengers
from graftline.pipeline.retraining.situation import NotDue, Situation, require_images
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.winner import Winner
from graftline.tracking.drift_checks import drift_tags
from graftline.tracking.ledger import Kind
from graftline.tracking.names import BUNDLE_DIGEST
from graftline.tracking.retrainings import MODEL, Retrainings
from graftline.training.lost_process import LostProcessError


def test_what_was_decided_on_these_images_counts_while_its_model_is_in_use(past: Past) -> None:
    assert past.look().settled is None
    first = past.retrain("promoted")
    assert past.look().settled is not None, "nothing new"
    past.paint(12, 18)
    assert past.look().settled is None
    second = past.retrain("promoted")
    past.remove(12, 18)
    assert past.look().settled is None, "the champion is that of the images that are gone"
    past.decide("rolled back", first)
    known = past.look().settled
    assert known is not None
    assert known.version == first, "the champion is of these images"
    past.paint(12, 18)
    known = past.look().settled
    assert known is not None
    assert known.version == second, "what was rolled back does not come back"


def test_what_another_moment_may_find_otherwise_is_decided_on_once_more(past: Past) -> None:
    number = past.retrain("refused")
    known = past.look().settled
    assert known is not None
    assert past.look().is_open(known), "its line has no digest of the gate"
    assert not past.look().is_open(replace(known, is_here=False)), "it was trained on another machine"
    past.decide("refused", number)
    assert not past.look().is_open(known), "not at each hour of a schedule"


def test_what_is_decided_on_once_more_is_what_was_registered(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a version has become champion since, from which a warm start could be trained now."""
    number = past.retrain("refused")
    known = past.look().settled
    assert known is not None
    entries = ("timm_name", "class_names", "preprocessing", "files", "digest", "embedding_size")
    for start, run_id, loss in (("fresh", known.run_id, 0.5), ("warm", "registered by nobody", 0.4)):
        files, card = RunDirectory(known.directory / start), {"validation": {"val/log_loss": loss}}
        write_json(files.result, {"run_id": run_id, "metrics": {}})
        write_json(files.bundle / CARD_FILE, {**dict.fromkeys(entries), "format": FORMAT, "card": card})

    def train(*_: object) -> None:
        raise AssertionError

    stage = compose("retrain", [*TINY, "data=folder", "data.path=images", f"tracking.uri={past.tracking.uri}"]).stage
    assert isinstance(stage, Retrain)
    challengers = Challengers(stage._train_stage(), known.directory, past.look().version, known.run_id, None)
    monkeypatch.setattr(Challengers, "_find_warm", lambda self: self.stage.backbone)
    monkeypatch.setattr(Winner, "train_challenger", train)
    for _ in range(2):
        chosen = challengers.train("both")
        assert (chosen.start, challengers.register(chosen)) == ("fresh", f"models:/{NAME}/{number}")
        shutil.rmtree(known.directory / "warm", ignore_errors=True)


def test_the_settings_of_a_champion_that_no_retraining_has_made_are_not_known(past: Past) -> None:
    past.retrain("promoted", tags={})
    seen = past.look()
    assert (seen.last, seen.settled) == (None, None)
    assert seen.changes is not None
    assert seen.what_changed(seen.changes).startswith("The champion was trained on these images by no retraining")
    past.retrain("promoted")
    assert past.look(recipe="other").what_changed(seen.changes).startswith("Since the last time: the same images")


def test_what_was_refused_is_tried_again_once_others_were_decided_on(past: Past) -> None:
    past.retrain("promoted")
    past.paint(12, 18)
    past.retrain("refused")
    assert past.look().settled is not None
    past.paint(18, 24)
    past.retrain("promoted")
    past.remove(18, 24)
    assert past.look().settled is None


def test_a_retraining_whose_model_was_deleted_settles_nothing(past: Past) -> None:
    client = past.place.mlflow
    first = past.retrain("promoted", "a")
    past.retrain("refused", "b")
    client.delete_model_version(NAME, "2")
    assert past.look(recipe="b").settled is not None, "refused ones are pruned"
    past.retrain("promoted", "c")
    past.decide("rolled back", first)
    client.delete_model_version(NAME, "3")
    assert past.look(recipe="c").settled is not None, "what was rolled back does not come back"
    client.delete_model_version(NAME, "1")
    assert past.look(recipe="a").settled is None
    client.delete_registered_model(NAME)
    assert past.look(recipe="b").settled is None


def test_recipes_that_take_turns_are_each_retrained_once(past: Past) -> None:
    decided: dict[str, Kind] = {"a": "promoted", "b": "promoted", "c": "refused"}
    for recipe, kind in decided.items():
        past.retrain(kind, recipe)
    for recipe in decided:  # the champion was promoted against a, and refuses c
        assert past.look(recipe=recipe).settled is not None, recipe
    past.retrain("promoted", "d")
    assert past.look(recipe="a").settled is None, "d was not compared with it"


@pytest.mark.parametrize("known_by", ["the last retraining", "the champion"])
def test_a_machine_that_has_not_seen_the_images_keeps_their_splits(
    past: Past, known_by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    past.paint(12, 40)
    before = past.look().version
    past.retrain("promoted")
    if known_by == "the champion":
        client = past.place.mlflow
        (experiment,) = (one.experiment_id for one in client.search_experiments() if one.name == NAME)
        for run in client.search_runs([experiment]):
            client.set_tag(run.info.run_id, MODEL, "another")
    assert past.look("there").version.digest == before.digest, "nothing is new"
    assert f"Dataset version {before.digest} was trained on elsewhere" in capsys.readouterr().out
    past.paint(40, 44)
    now_is = past.look("elsewhere").version
    for split in ("train", "validation", "test"):
        assert set(before.samples(split).sha256) <= set(now_is.samples(split).sha256), f"{split} has lost nothing"
    drawn = replace(past.look("nowhere").data, parent="none").run().version
    assert not set(before.samples("test").sha256) <= set(drawn.samples("test").sha256), "as a new draw would have"


def test_after_a_clock_was_set_back_a_retraining_is_due_by_age(
    past: Past, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    past.retrain("promoted")
    assert past.look().why_not_due("age>=30d") == NotDue("age is 0.0d, and it is due by 'age>=30d'", None)
    earlier = time.time() - 3 * 3600
    monkeypatch.setattr(time, "time", lambda: earlier)
    assert past.look().why_not_due("age>=30d") is None
    assert "hours from now, a clock was set back: this one is due by age" in capsys.readouterr().out


def test_a_check_for_drift_leads_to_one_retraining(past: Past) -> None:
    past.retrain("promoted")
    past.place.mlflow.set_model_version_tag(NAME, "1", BUNDLE_DIGEST, "d")

    def check() -> None:
        tags = drift_tags("d", rings=True, monitored=True)
        with past.tracking.start(run_name="", experiment=NAME, directory=past.place.root / "drift", tags=tags):
            pass

    check()
    assert past.look().why_not_due("drift") is None
    past.retrain("refused")
    assert past.look().why_not_due("drift") == NotDue("drift is 0, and it is due by 'drift'", None)
    check()
    assert past.look().why_not_due("drift") is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train.label_smoothing=3", r"^train\.label_smoothing is 3(\.0)?, it must be"),
        ("optim.weight_decay=-1", r"^The optimizer cannot be made"),
        ("backbone.weights=packaged", r"^No installed package has weights for"),
        ("trainer.precision=64-true", r"^trainer\.precision is 64-true, which would change"),
    ],
)
def test_a_mistake_in_the_training_is_told_before_the_images_are_read(
    past: Past, typed: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not due: what was not trained by before may be wrong."""
    monkeypatch.chdir(past.place.root)
    keys = {line.partition("=")[0]: line for line in (*TINY, typed, "data=folder", "data.path=images")}
    retrain = compose("retrain", list(keys.values()))
    with pytest.raises(UserError, match=said):
        retrain.run()
    assert not list(Path("data").rglob("*.parquet")), "no image was looked at"
    assert past.place.mlflow.search_registered_models() == [], "the lease is given back"


def test_a_class_that_is_not_there_is_told_before_the_images_are_read(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(past.place.root)
    typed = [*TINY, "data=folder", "data.path=images", "decision=recall", "decision.class_name=violet"]
    with pytest.raises(UserError, match=r"^decision\.class_name is 'violet', but the classes are"):
        compose("retrain", typed).run()
    assert not list(Path("data").rglob("*.parquet")), "no image was looked at"
    assert past.place.mlflow.search_registered_models() == [], "the lease is given back"


def test_the_classes_that_count_are_those_of_the_source(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a condition is looked at, and though what was decided last knows no such class."""
    past.retrain("promoted")

    def look() -> Situation:
        return replace(past.look(), decision=FindClasses("violet"))

    def read(*_: object) -> None:
        raise AssertionError("images are read")

    said = r"^FindClasses\.class_name is 'violet', but the classes are"
    with monkeypatch.context() as patch:
        patch.setattr("graftline.data.checks.check_images", read)
        with pytest.raises(UserError, match=said):
            _ = look().version
        with pytest.raises(UserError, match=said):
            look().why_not_due("new_images>0")
    (past.images / "violet").mkdir()
    for number in range(12):
        paint((130, 40, 200), 9000 + number, 16).save(past.images / "violet" / f"{number:03}.png")
    assert look().why_not_due("new_classes>0") is None
    assert look().version.class_names == ("blue", "green", "red", "violet")


def test_a_gate_that_cannot_decide_on_these_images_is_told_before_the_training(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(past.place.root)
    typed = [*TINY, "data=folder", "data.path=images", "gate.metric=accuracy_weighted"]
    with pytest.raises(UserError, match=r"^gate\.metric is accuracy_weighted, but the test images have no weights"):
        compose("retrain", typed).run()
    assert past.place.mlflow.search_experiments(filter_string="name = 'images'") == [], "nothing was trained"


def test_a_training_that_has_failed_is_noted_until_it_is_tried_again(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(past.place.root)
    stage = compose("retrain", [*TINY, "data=folder", "data.path=images"]).stage
    assert isinstance(stage, Retrain)

    def failed(error: Exception) -> bool:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(Challengers, "train", fail)
        with pytest.raises(type(error)):
            stage.run(past.place.root / "outputs" / "retrain")
        (begun,) = Retrainings(past.tracking.uri, "images", "images").unfinished(stage._recipe)
        return begun.training_failed

    assert failed(DivergenceError("The training diverged."))
    assert not failed(OSError(errno.ENOSPC, "No space left on device"))


def test_looks_that_find_nothing_due_leave_no_version(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at each hour of a schedule, which would fill the disk in a year."""
    past.retrain("promoted")
    before, opened = past.look().version, list[Path]()
    read = version._read_summary

    def note(directory: Path) -> dict[str, object]:
        opened.append(directory)
        return read(directory)

    monkeypatch.setattr(version, "_read_summary", note)
    for number in range(10):
        past.paint(12 + number, 13 + number)
        not_due = past.look().why_not_due("new_images>=1000 or removed_images>0")
        assert not_due is not None
        assert not_due.changes is not None
        assert not_due.reason.startswith(f"new_images is {3 * number + 3}, removed_images is 0")
    folder = past.place.root / "here" / "data" / NAME
    assert {path.name for path in folder.iterdir()} == {before.digest, "checked.parquet"}
    assert len(opened) <= 10 * 3
    due = past.look()
    assert due.why_not_due("new_images>=30") is None
    assert due.changes is not None
    assert (due.changes.added, due.changes.relabeled, due.version.parent) == (30, 0, before.digest)
    for split in ("train", "validation", "test"):
        assert set(before.samples(split).sha256) < set(due.version.samples(split).sha256)


def test_what_another_process_has_written_since_a_look_is_what_the_version_grows_from(past: Past) -> None:
    past.retrain("promoted")
    past.paint(12, 15)
    seen = past.look()
    assert seen.why_not_due("new_images>=9") is None
    past.paint(15, 18)
    other = past.look().version
    assert seen.version.digest == other.digest
    assert seen.changes is not None
    assert seen.changes.added == 18


@pytest.mark.parametrize(
    ("error", "trains", "goes_on"),
    [
        (KeyboardInterrupt(), True, True),
        (UnreachableError("It is away."), True, True),
        (OSError(errno.ENOSPC, "No space left on device"), True, True),
        (LostProcessError("Another process of this training has ended."), True, True),
        (RuntimeError("It diverges."), True, False),
        (RuntimeError("The champion is damaged."), False, True),
    ],
)
def test_an_interrupted_retraining_is_gone_on_with_though_images_have_come(
    past: Past, error: BaseException, trains: bool, goes_on: bool
) -> None:
    """Else none would end that takes longer than the images need to come; one that fails by itself would never end."""
    past.retrain("promoted")
    past.paint(12, 15)
    digest = past.begin(error, trains=trains)
    now = past.look()
    then, begun = now.unfinished()
    assert then is now
    assert begun is not None, "nothing has changed"
    past.paint(15, 16)
    now = past.look()
    then, found = now.unfinished()
    assert (found is not None) == goes_on
    if found is None:
        assert then is now
        return
    assert (found.run_id, then.version.digest, then.key) == (begun.run_id, digest, begun.key)
    assert (then.changes is not None, now.version.parent) == (True, digest)
    assert then.changes is not None
    assert then.changes.added == 9


def test_an_interrupted_retraining_is_given_up_once_its_images_or_the_last_one_are_others(past: Past) -> None:
    past.retrain("promoted")
    past.paint(12, 15)
    past.begin(KeyboardInterrupt())
    past.paint(15, 16)
    red, green = (past.images / name / "014.png" for name in ("red", "green"))
    red.rename(green.with_name("moved.png"))
    assert past.look().unfinished()[1] is None, "it has another label"
    green.with_name("moved.png").rename(red)
    assert past.look(recipe="another").unfinished()[1] is None
    assert past.look("there").unfinished()[1] is None, "its version is on another machine"
    assert past.look().unfinished()[1] is not None
    past.retrain("refused")
    past.paint(16, 17)
    assert past.look().unfinished()[1] is None, "it would not have what was trained on since"


def test_images_that_are_gone_are_counted_from_the_last_retraining(past: Past) -> None:
    past.retrain("promoted")
    past.remove(6, 12)
    changes = past.look().changes
    assert changes is not None
    with pytest.raises(UserError, match=r"18 of 36 images are gone, more than 20 %"):
        changes.refuse_shrink(0.2, "images")


def test_images_that_are_gone_are_told_by_a_look_that_finds_nothing_due(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that is half mounted would never be due by its new images."""
    monkeypatch.chdir(past.place.root)
    past.retrain("promoted")
    past.remove(6, 12)
    typed = [*TINY, "data=folder", f"data.path={past.images}", f"data.name={NAME}"]

    def retrain(*more: str) -> str:
        result = compose("retrain", [*typed, f"tracking.uri={past.tracking.uri}", *more]).stage.run(past.place.root)
        assert isinstance(result, RetrainResult)
        return result.outcome

    with pytest.raises(UserError, match=r"18 of 36 images are gone, more than 20 %"):
        retrain("retrain.when='new_images>=200'")
    assert retrain("retrain.when='new_images>=200'", "retrain.allow_shrink=true") == "not due"
    assert retrain("retrain.when='age>=30d and new_images>=200'") == "not due", "it has not looked"


def test_images_at_a_url_are_looked_for_by_whoever_lists_them() -> None:
    require_images(Ingest("pets", "s3://bucket/pets", Folder(), Split()), allow_shrink=False)
    with pytest.raises(UserError, match="is not there: nothing is trained"):
        require_images(Ingest("pets", "/nowhere/pets", Folder(), Split()), allow_shrink=False)
