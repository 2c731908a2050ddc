"""Runs with a model are found: the newest, the best, what they were tested on; members are part of their ensemble."""

from dataclasses import replace
from pathlib import Path

import pytest

from graftline.errors import UserError
from graftline.tracking.client import connect
from graftline.tracking.registry import Registry
from graftline.tracking.run import Run
from graftline.tracking.tracking import Tracking


def test_what_a_tested_run_gave_is_found_on_every_machine(uri: str, directory: Path, cache: Path) -> None:
    name = f"tested-{directory.parent.parent.name}"
    tracking, registry, ids = Tracking(uri=uri, system_metrics=False, experiment=name), Registry(uri), list[str]()
    trained = {"graftline.stage": "train"}
    with pytest.raises(UserError, match=f"^There is no experiment '{name}' in the "):
        registry.newest_training(name)
    for number, loss in enumerate((0.5, 0.1, 0.3)):
        folder = directory / str(number)
        folder.mkdir()
        (folder / "predictions.parquet").write_bytes(b"parquet %d" % number)
        with tracking.start(run_name=f"run {number}", experiment=name, directory=folder, tags=trained) as run:
            run.set_tags({"graftline.bundle_digest": f"bundle {number % 2}", "graftline.test_digest": "images"})
            run.log_metrics({"test/accuracy": 0.9, "validation/log_loss": loss}, step=0)
            if number != 1:
                run.log_artifact(folder / "predictions.parquet", "test")
            if number == 2:
                (folder / "other").mkdir()
                (folder / "other" / "predictions.parquet").write_bytes(b"of validation images")
                run.log_artifact(folder / "other" / "predictions.parquet", "validation")
        ids.append(run.id)
    assert registry.newest_training(name).id == registry.newest_training().id == ids[2]
    images = registry.newest_training(name).images
    best = registry.best_trainings(name, images)
    assert [(run.id, run.validation_loss) for run in best] == [(ids[1], 0.1), (ids[2], 0.3), (ids[0], 0.5)]
    assert [run.id for run in registry.best_trainings(name, images, most=1)] == [ids[1]]
    assert registry.best_trainings(name, {**images, "graftline.validation_digest": "others"}) == []
    newest = registry.newest_tested(name)
    assert (newest.id, newest.name, newest.test_digest, newest.dataset) == (ids[2], "run 2", "images", name)
    assert registry.newest_tested(name, skip="bundle 0").id == ids[1]
    assert registry.tested_run(ids[0]).bundle_digest == "bundle 0"
    file = registry.predictions(newest, cache)
    assert file is not None
    assert file.read_bytes() == b"parquet 2"
    assert file.is_relative_to(cache) == uri.startswith("http")
    other = registry.predictions(newest, cache, of="validation")
    assert other is not None
    assert (other.read_bytes(), file.read_bytes()) == (b"of validation images", b"parquet 2")
    assert registry.predictions(registry.tested_run(ids[1]), cache) is None
    assert registry.aliased("nothing", "champion") is None
    connect(uri).delete_run(ids[1])
    with pytest.raises(
        UserError, match=f"^The experiment '{name}' has no training or ensemble that was tested beside the ch"
    ):
        registry.newest_tested(name, skip="bundle 0")


def test_the_newest_model_is_of_a_training_or_an_ensemble_and_of_no_evaluation(uri: str, directory: Path) -> None:
    name = f"models-{directory.parent.parent.name}"
    tracking, registry, ids = Tracking(uri=uri, system_metrics=False, experiment=name), Registry(uri), list[str]()
    for number, stage in enumerate(("train", "ensemble", "evaluate")):
        folder = directory / stage
        folder.mkdir()
        tags = {"graftline.stage": stage}
        with tracking.start(run_name=stage, experiment=name, directory=folder, tags=tags) as run:
            run.set_tags({"graftline.bundle_digest": f"bundle {number}"})
            run.log_metrics({"test/accuracy": 0.9}, step=0)  # as an earlier graftline has it of any split
        ids.append(run.id)
    assert registry.newest_tested(name).id == ids[1]
    assert registry.newest_tested(name, skip="bundle 1").id == ids[0]
    assert registry.newest_training(name).id == ids[0]
    assert registry.tested_run(ids[2]).is_tested, "it is found by its id"


def test_members_of_an_ensemble_are_part_of_it_and_a_sweep_s_trainings_are_models(uri: str, directory: Path) -> None:
    name = f"members-{directory.parent.parent.name}"
    tracking, registry = Tracking(uri=uri, system_metrics=False, experiment=name), Registry(uri)
    images, ids = {"graftline.test_digest": "images", "graftline.validation_digest": "others"}, dict[str, str]()

    def log(run: Run, loss: float) -> None:
        run.set_tags({**images, "graftline.bundle_digest": run.id})
        run.log_metrics({"test/accuracy": 0.9, "validation/log_loss": loss}, step=0)

    def train(run_name: str, loss: float, parent: str | None = None) -> None:
        own, folder = replace(tracking, parent_run_id=parent), directory / run_name
        with own.start(run_name=run_name, experiment=name, directory=folder, tags={"graftline.stage": "train"}) as run:
            log(run, loss)
        ids[run_name] = run.id

    for run_name in ("ensemble", "sweep"):
        kind = {"graftline.stage": "ensemble"} if run_name == "ensemble" else {"graftline.group": "true"}
        with tracking.start(run_name=run_name, experiment=name, directory=directory / run_name, tags=kind) as group:
            ids[run_name] = group.id
            train(f"{run_name} 1", 0.2, group.id)
            train(f"{run_name} 2", 0.1, group.id)
            if run_name == "ensemble":
                with pytest.raises(UserError, match=r"has no finished training beside members of ensembles: train fi"):
                    registry.newest_training(name)
                assert registry.newest_training(name, members=True).id == ids["ensemble 2"]
                log(group, 0.05)
        newest = "ensemble" if run_name == "ensemble" else "sweep 2"
        assert registry.newest_tested(name).name == newest
    assert registry.newest_tested(name, skip=ids["sweep 2"]).name == "sweep 1"
    assert registry.newest_training(name).name == "sweep 2"
    connect(uri).delete_run(ids["sweep 1"])
    connect(uri).delete_run(ids["sweep 2"])
    assert registry.newest_tested(name).name == "ensemble", "which began before its members and ended after them"
    with pytest.raises(UserError, match="has no training or ensemble that was tested beside the champion"):
        registry.newest_tested(name, skip=ids["ensemble"])
    assert [run.name for run in registry.best_trainings(name, images)] == ["ensemble 2", "ensemble 1"]
