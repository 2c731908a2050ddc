"""A year of a model that nobody looks at: images arrive, it is retrained, judged, killed, rolled back, and goes on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from factory import NAME, Factory
from http_server import Asking, HttpServer
from workplace import Ran, Workplace

from graftline.data.version import DatasetVersion
from graftline.files import sha256_file
from graftline.tracking.lease import Lease

FEW, MORE = "trainer.max_epochs=6", "trainer.max_epochs=60"
NOTHING_NEW = """
import sys
from graftline.pipeline.__main__ import main
assert main(sys.argv[1:]) == 0
assert main([*sys.argv[1:], "retrain.when=new_images>=50 or age>=30d"]) == 0
print("loaded:", *sorted({"torch", "pytorch_lightning", "timm", "albumentations", "sklearn"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def factory(make_workplace: Callable[[str], Workplace]) -> Factory:
    return Factory(make_workplace("year"))


def test_a_year(factory: Factory) -> None:
    """One test, since each month begins with what the one before has left."""
    _the_first_model_becomes_champion(factory)
    serve = (f"model=models:/{NAME}@champion", "poll_seconds=1")
    with HttpServer(factory.place.root, *serve) as server, Asking(server) as asking:
        _nothing_heavy_is_loaded_where_nothing_is_new(factory)
        asking.wait_for(1)
        _a_better_one_takes_its_place(factory)
        asking.wait_for(2)
        _shuffled_labels_are_refused(factory)
        _images_that_cannot_be_seen_are_not_removed_ones(factory)
        _a_new_class_arrives(factory)
        asking.wait_for(4)
        _it_is_rolled_back(factory)
        asking.wait_for(2)
        _its_class_goes(factory)
        asking.wait_for(5)
        _history_tells_the_story(factory)
        _others_are_at_it(factory)
        _a_class_becomes_part_of_another(factory)
        _nine_in_ten_images_go(factory)
        _what_is_old_is_removed(factory)
    assert asking.failures == [], "no request failed"
    assert asking.versions == [1, 2, 4, 2, 5], "and each was answered by the champion of its time"
    assert asking.count > 20


def _the_first_model_becomes_champion(factory: Factory) -> None:
    factory.paint(20)
    killed = factory.die("pytorch_lightning:Trainer.save_checkpoint", "after 3", FEW)
    assert "epoch   3 of 6" not in killed.output
    ran = factory.retrain(FEW, "notify.command=cat > told.json", "notify.url=http://127.0.0.1:9/")
    assert ran.code == 0, ran.output
    assert "Going on with run" in ran.output
    assert "goes on with run" in ran.output, "its training, too"
    assert "epoch   1 of 6" not in ran.output
    assert "is killed" not in ran.output
    assert ran.result["outcome"] == "promoted", ran.output
    told = json.loads((factory.place.root / "told.json").read_text())
    assert (told["outcome"], told["model_uri"]) == ("promoted", f"models:/{NAME}/1")
    assert "! notify.url at 127.0.0.1 was not reached" in ran.output
    factory.check(1)


def _nothing_heavy_is_loaded_where_nothing_is_new(factory: Factory) -> None:
    command = [sys.executable, "-c", NOTHING_NEW, "retrain", *factory.settings, FEW]
    environment = factory.place.environment()
    done = subprocess.run(command, cwd=factory.place.root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [result["outcome"] for result in factory.results()[-2:]] == ["nothing new", "not due"]
    assert done.stdout.splitlines()[-1] == "loaded:"


def _a_better_one_takes_its_place(factory: Factory) -> None:
    before = factory.newest.table()
    tested = set(before.loc[before["split"] == "test", "sha256"])
    factory.paint(10)
    typed = (FEW, "retrain.start=both", "retrain.when=new_images>=30 and age<1d")
    killed = factory.die("graftline.tracking.promotions:Promotions.append", "after", *typed)
    assert "30 new images" in killed.output
    after = factory.newest.table().query("split != 'test'")
    new = len(set(after["sha256"]) - set(before["sha256"]))
    assert f"Running the frozen network once: {new}\n" in killed.output, "the new ones, and no other"
    assert "with their own head, which is for the same classes" in killed.output, "the warm start"
    champion = factory.champion
    assert champion is not None
    assert champion.version == 1, "it was decided, and the alias has not moved"
    ran = _fire_schedule(factory, *typed)
    assert "The challenger with a warm start was trained before" in ran.output, "the one that is registered"
    assert "of 6: train loss" not in ran.output
    assert ran.result["outcome"] == "promoted", ran.output
    assert ran.result["start"] == "warm", "it goes on where the other one ended"
    assert tested < set(factory.newest.samples("test").sha256), "the test split has grown and lost nothing"


def _fire_schedule(factory: Factory, *typed: str) -> Ran:
    """Run the line of a crontab as cron does; tests/pipeline/test_schedule.py has a real one, which takes a minute."""
    made = factory.place.run("schedule", "every=Mon 03:00", *factory.settings, *typed)
    assert made.code == 0, made.output
    _, line, _ = (made.directory / "crontab").read_text().splitlines()
    *_, command = line.split(" ", 5)
    few = {"HOME": str(Path.home()), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh", "-c", command], cwd="/", env=few, check=False)
    return Ran(done.returncode, (factory.place.root / "outputs" / "schedule" / f"{NAME}.log").read_text())


def _shuffled_labels_are_refused(factory: Factory) -> None:
    folders = sorted(factory.images.iterdir())
    for folder, other in zip(folders, folders[1:] + folders[:1], strict=True):
        for file in sorted(folder.glob("*.png"))[:20]:
            file.rename(other / f"shuffled-{file.name}")
    ran = factory.retrain(FEW)
    assert ran.code == 0, ran.output
    assert "images with another label, in the split that they were in" in ran.output
    assert (ran.result["outcome"], ran.result["champion"]) == ("refused", 2)
    for folder, other in zip(folders, folders[1:] + folders[:1], strict=True):
        for file in other.glob("shuffled-*"):
            file.rename(folder / file.name.removeprefix("shuffled-"))


def _images_that_cannot_be_seen_are_not_removed_ones(factory: Factory) -> None:
    versions = factory.versions
    away = factory.images.rename(factory.place.root / "unmounted")
    factory.images.mkdir()
    ran = factory.retrain("notify.command=cat > told.json")
    assert ran.code == 1
    assert "data.path=images is empty: nothing is trained" in ran.output.splitlines()[-1]
    assert factory.results()[-1]["outcome"] == "failed"
    assert json.loads((factory.place.root / "told.json").read_text())["outcome"] == "failed"
    factory.images.rmdir()
    away.rename(factory.images)

    hidden = factory.place.root / "hidden"
    for folder in sorted(factory.images.iterdir()):
        (hidden / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[5:]:
            file.rename(hidden / folder.name / file.name)
    ran = factory.retrain()
    assert ran.code == 1
    assert "75 of 90 images are gone, more than 20 % (retrain.max_shrink)" in ran.output
    assert "retrain.allow_shrink=true" in ran.output
    for file in hidden.glob("*/*"):
        file.rename(factory.images / file.parent.name / file.name)
    assert factory.versions == versions, "nothing was trained"


def _a_new_class_arrives(factory: Factory) -> None:
    champion = factory.champion
    assert champion is not None
    before = DatasetVersion.load(factory.registry.dataset(champion.uri))
    factory.paint(24, "yellow")
    ran = factory.retrain(MORE)
    assert ran.code == 0, ran.output
    for split in ("train", "validation", "test"):
        assert set(before.samples(split).sha256) <= set(factory.newest.samples(split).sha256), "who came back is there"
    assert "new: class 'yellow', so that the head is a new one" in ran.output
    assert (ran.result["outcome"], ran.result["champion"]) == ("promoted", 4), ran.output


def _it_is_rolled_back(factory: Factory) -> None:
    ran = factory.place.run("rollback", f"model={NAME}", "reason=yellow is not wanted")
    assert ran.code == 0, ran.output
    champion = factory.champion
    assert champion is not None
    assert champion.version == 2


def _its_class_goes(factory: Factory) -> None:
    assert factory.outcome(MORE) == "nothing new", "what was rolled back does not come back"
    shutil.rmtree(factory.images / "yellow")
    factory.paint(6)
    refused = factory.retrain(FEW)
    assert refused.code == 1
    assert "All images of the class 'yellow' are gone: nothing is trained" in refused.output.splitlines()[-1]
    typed = (FEW, "retrain.start=warm", "retrain.allow_shrink=true")
    killed = factory.die("graftline.pipeline.train:Train._save_bundle", "after", *typed)
    assert "gone with all of its images: class 'yellow'" in killed.output
    ran = factory.retrain(*typed)
    assert ran.code == 0, ran.output
    assert "its bundle was saved before the run was interrupted" in ran.output
    assert "of 6: train loss" not in ran.output
    assert (ran.result["outcome"], ran.result["champion"]) == ("promoted", 5), ran.output
    factory.check(5)


def _history_tells_the_story(factory: Factory) -> None:
    history = factory.place.run("history", f"model={NAME}")
    assert history.code == 0, history.output
    assert "The chain holds: 6 lines" in history.output
    lines = [json.loads(line) for line in (history.directory / "ledger.jsonl").read_text().splitlines()]
    told = [(line["kind"], line["version"], line["after"]) for line in lines]
    assert told == [
        ("promoted", 1, 1),
        ("promoted", 2, 2),
        ("refused", 3, 2),
        ("promoted", 4, 4),
        ("rolled back", 2, 2),
        ("promoted", 5, 5),
    ]


def _others_are_at_it(factory: Factory) -> None:
    lease = Lease(factory.registry.uri, NAME, factory.place.root / "another-machine", "The retraining of colors")
    lease.acquire()
    with lease:
        ran = factory.retrain("retrain.wait=0.1")
        assert (ran.code, ran.result["outcome"]) == (0, "held")
        assert f"(process {os.getpid()})" in ran.output
    away = factory.retrain("tracking=server", "tracking.uri=http://127.0.0.1:9")
    assert away.code == 1
    assert "does not answer" in away.output.splitlines()[-1]
    assert "Traceback" not in away.output


def _a_class_becomes_part_of_another(factory: Factory) -> None:
    green, blue = factory.images / "green", factory.images / "blue"
    moved = [file.rename(blue / f"was-green-{file.name}") for file in sorted(green.iterdir())]
    green.rmdir()
    ran = factory.retrain(FEW)
    assert ran.code == 0, ran.output
    assert f"{len(moved)} images with another label, in the split that they were in" in ran.output
    assert "gone: class 'green', whose images have another label now" in ran.output
    assert (ran.result["outcome"], ran.result["champion"]) == ("refused", 5)
    assert "It no longer knows green, which whoever asks it may wait for." in ran.result["reasons"]
    (row,) = [line.split() for line in ran.output.splitlines() if line.startswith("classes ")]
    assert row == ["classes", "3", "2", "-", "green", "FAILS"]
    assert "version 6 does not know green" in ran.output
    green.mkdir()
    for file in moved:
        file.rename(green / file.name.removeprefix("was-green-"))


def _nine_in_ten_images_go(factory: Factory) -> None:
    """It is what `retrain.allow_shrink` allows; the gate looks at the test images."""
    champion, table = factory.champion, factory.newest.table()
    splits = dict(zip(table["sha256"], table["split"], strict=True))
    images = sorted(factory.images.glob("*/*.png"))
    left = {(file.parent, splits[sha256_file(file)]): file for file in images}  # one of each class and split
    gone = [file for file in images if file not in left.values()]
    assert len(gone) > 0.9 * len(images)
    for file in gone:
        file.rename(factory.place.root / "hidden" / file.parent.name / file.name)
    ran = factory.retrain(FEW, "retrain.allow_shrink=true")
    assert ran.code == 0, ran.output
    assert f"{len(gone)} images gone, which are not trained or tested on any more" in ran.output
    assert (ran.result["outcome"], factory.champion) == ("refused", champion)
    assert any("look at the data before the model" in reason for reason in ran.result["reasons"])
    for file in gone:
        (factory.place.root / "hidden" / file.parent.name / file.name).rename(file)


def _what_is_old_is_removed(factory: Factory) -> None:
    outputs = factory.place.root / "outputs" / "retrain"
    for path in [*outputs.glob("*"), *outputs.glob("*/*"), *outputs.glob("*/*/*")]:
        os.utime(path, (1.7e9, 1.7e9))
    before = set(outputs.iterdir())
    prune = ("prune", "keep.runs=0", "keep.days=30", "keep.checkpoint_days=30")
    ran = factory.place.run(*prune, "dry_run=true")
    assert ran.code == 0, ran.output
    assert set(outputs.iterdir()) == before
    listed = {Path(one["path"]) for one in ran.result["removed"]}
    ran = factory.place.run(*prune)
    assert {Path(one["path"]) for one in ran.result["removed"]} == listed
    gone = before - set(outputs.iterdir())
    assert gone
    assert {Path(path).name for path in gone} <= {path.name for path in listed}
    used = {factory.registry.version(f"models:/{NAME}@{alias}").run_id for alias in ("champion", "previous")}
    for run in (factory.place.mlflow.get_run(str(run_id)) for run_id in used):
        assert Path(run.data.tags["graftline.output_dir"], "checkpoints", "best.ckpt").is_file()
    assert factory.outcome(FEW, "retrain.start=warm") == "nothing new", "it goes on with what is left"


def test_an_interrupted_retraining_comes_to_its_end_though_images_arrive(
    make_workplace: Callable[[str], Workplace],
) -> None:
    """The images that have come since are trained on by the next one."""
    factory = Factory(make_workplace("arrivals"))
    factory.paint(20)
    factory.die("pytorch_lightning:Trainer.save_checkpoint", "after 3", FEW)
    begun = factory.newest.digest
    factory.paint(1, "red")
    ran = factory.retrain(FEW)
    assert ran.code == 0, ran.output
    assert "Going on with run" in ran.output
    assert f"It is of dataset version {begun}: what has come since is for the next retraining.\n" in ran.output
    assert "epoch   1 of 6" not in ran.output
    assert ran.result["dataset_digest"] == begun
    again = factory.retrain(FEW)
    assert again.code == 0, again.output
    assert "Since the last time: 1 new images" in again.output
    assert again.result["dataset_digest"] == factory.newest.digest != begun
    factory.check(2)
