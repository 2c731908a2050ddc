"""A run that is resumed: what it goes on with, and what would make it another run."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from PIL import Image
from workplace import TINY, Workplace

from conftest import paint
from graftline.errors import UserError
from graftline.pipeline.cli import ComposedStage, compose
from graftline.pipeline.cli.ray_training import RayTraining
from graftline.tracking.names import OUTPUT_DIRECTORY

TYPED = [*(line for line in TINY if not line.startswith("trainer.max")), "data=folder", "data.path=photos", "seed=3"]


@dataclass(frozen=True)
class Begun:
    """A run that was killed: what is on disk and in MLflow."""

    run_id: str
    directory: Path

    def resume(self, *overrides: str) -> ComposedStage:
        return compose("train", [f"train.resume={self.run_id}", *overrides])


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Path:
    """A folder with an MLflow database and an experiment."""
    root = make_workplace("resume").root
    MlflowClient(f"sqlite:///{root / 'mlflow.db'}").create_experiment("photos")
    return root


@pytest.fixture
def begin(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Begun]:
    monkeypatch.chdir(place)

    def begun(*overrides: str) -> Begun:
        client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
        directory = Path(tempfile.mkdtemp(dir=place))
        (directory / ".hydra").mkdir(parents=True)
        composed = compose("train", [*TYPED, *overrides])
        OmegaConf.save(composed.config, directory / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(composed.overrides), directory / ".hydra" / "overrides.yaml")
        tags = {OUTPUT_DIRECTORY: str(directory)}
        experiment = client.get_experiment_by_name("photos")
        assert experiment is not None
        return Begun(client.create_run(experiment.experiment_id, tags=tags).info.run_id, directory)

    return begun


def test_it_is_the_run_that_it_was_with_what_may_change(begin: Callable[..., Begun]) -> None:
    begun = begin("trainer.max_epochs=4")
    composed = begun.resume("max_epochs=9", "evaluation.resamples=200", "tracking.register=false")
    assert composed.directory == begun.directory
    before = OmegaConf.load(begun.directory / ".hydra" / "config.yaml")
    changes = {
        "train.resume": begun.run_id,
        "trainer.max_epochs": 9,
        "evaluation.resamples": 200,
        "tracking.register": False,
    }
    for key, value in changes.items():
        OmegaConf.update(before, key, value)
    assert composed.config == before
    assert {"seed=3", "trainer.max_epochs=9", "evaluation.resamples=200"} <= set(composed.overrides)
    assert "trainer.max_epochs=4" not in composed.overrides


def test_todays_files_are_not_read_into_it(begin: Callable[..., Begun]) -> None:
    """As if conf/ had other defaults now, and other choices."""
    begun = begin()
    file = begun.directory / ".hydra" / "config.yaml"
    stored = OmegaConf.load(file)
    stored.train.patience = 77
    stored.backbone.name = "resnet18"
    OmegaConf.save(stored, file)
    composed = begun.resume("train.workers=1")
    assert (composed.config.train.patience, composed.config.train.workers) == (77, 1)
    assert composed.config.backbone.name == "resnet18"


def test_what_is_typed_again_as_it_was_is_no_change(begin: Callable[..., Begun]) -> None:
    assert begin().resume(*TYPED).config.seed == 3
    begun = begin("freeze=first_stages", "freeze.number=2")
    assert begun.resume("freeze.number=2", "seed=3", "backbone.image_size=32", "number=2").config.freeze.number == 2


def test_what_ray_began_it_goes_on_with(begin: Callable[..., Begun]) -> None:
    """Its processes have written what each of them is: one of torch's, which spreads nothing."""
    typed = ["trainer=ray", "trainer.devices=2", "cluster=ray", "cluster.address=10.0.0.1:6379"]
    begun = begin(*typed)
    job = compose("train", [*TYPED, *typed])
    on_ray = RayTraining.of(job)
    assert on_ray is not None
    (begun.directory / ".hydra" / "config.yaml").write_text(on_ray._remote(earlier=[]).config)

    resumed = begun.resume(*typed, "trainer.max_epochs=7")
    assert (resumed.config.trainer, resumed.config.cluster) == (
        {**job.config.trainer, "max_epochs": 7},
        job.config.cluster,
    )
    assert begun.resume("trainer=ray", "trainer.devices=4").config.trainer.devices == 4
    assert RayTraining.of(begun.resume("trainer.devices=2")) is None, "two processes of this machine"
    with pytest.raises(UserError, match="trainer=ray would change them"):
        begin().resume("trainer=ray")


def test_what_computed_on_a_cluster_goes_on_without_it(begin: Callable[..., Begun]) -> None:
    begun = begin("cluster=ray", "cluster.address=10.0.0.1:6379")
    assert begun.resume().config.cluster.address == "10.0.0.1:6379"
    assert begun.resume("cluster.address=10.0.0.2:6379").config.cluster.address == "10.0.0.2:6379"
    here = begun.resume("cluster=none")
    assert here.config == {**begun.resume().config, "cluster": {"_target_": "graftline.ray_cluster.NoCluster"}}
    assert begin().resume("cluster=ray", "cluster.num_workers=2").config.cluster.num_workers == 2


def test_activations_get_more_room_or_another_place(begin: Callable[..., Begun]) -> None:
    features = begin().resume("features.max_gb=50", "features.directory=/scratch/activations").config.features
    assert (features.max_gb, features.directory) == (50, "/scratch/activations")
    with pytest.raises(UserError, match=r"features\.views=2 would change them"):
        begin().resume("features.views=2", "features.max_gb=50")


def test_all_that_would_change_it_is_refused_at_once(begin: Callable[..., Begun]) -> None:
    begun = begin()
    changes = ["lr=1.0", "backbone=resnet18", "freeze=gradual", "experiment=finetune", "optim.eps=0.1"]
    with pytest.raises(UserError) as refused:
        begun.resume("seed=3", "trainer.max_epochs=5", *changes)
    told = str(refused.value).partition(" would change them")[0].partition("but ")[2]
    assert set(told.split(", ")) == {*changes[1:], "optim.lr=1.0"}


def test_mistakes_are_mistakes_in_what_it_was(begin: Callable[..., Begun]) -> None:
    begun = begin()
    with pytest.raises(
        UserError, match=r"2 mistakes[^!]*trainer\.max_epoch=3: no such key[^!]*freeze\.number=2: no such"
    ):
        begun.resume("trainer.max_epoch=3", "freeze.number=2")
    with pytest.raises(UserError, match="One run can be resumed at a time"):
        begun.resume("trainer.max_epochs=5,6")
    with pytest.raises(UserError, match="There is no run 0123"):
        compose("train", ["resume=0123"])
    with pytest.raises(UserError, match=r"tracking\.uri is mlruns, a folder"):
        compose("train", ["resume=0123", "uri=mlruns"])


def test_one_that_was_killed_before_its_first_epoch_begins_anew_and_one_that_is_done_wants_more(
    begin: Callable[..., Begun],
) -> None:
    begun = begin("trainer.max_epochs=4")
    assert begun.resume().directory == begun.directory
    (begun.directory / "result.json").write_text(json.dumps({"epochs": 4}))
    with pytest.raises(UserError, match=r"finished after 4 epochs: give it more with trainer\.max_epochs=8"):
        begun.resume()
    assert begun.resume("max_epochs=5").config.trainer.max_epochs == 5
    config = begun.directory / ".hydra" / "config.yaml"
    config.write_text(config.read_text() + "members: 2\n")  # as that of an ensemble
    (begun.directory / "result.json").write_text(json.dumps({"shares": [0.5, 0.5]}))
    with pytest.raises(UserError, match=r"^The ensemble is finished: start a new one, which may average the same mod"):
        begun.resume()


def test_what_a_later_run_has_written_into_its_directory_is_that_ones(
    begin: Callable[..., Begun], tmp_path: Path
) -> None:
    begun, later = begin(), "b" * 32
    file = begun.directory / "outbox" / "run.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"run_id": begun.run_id, "uri": "sqlite:///mlflow.db"}))
    assert begun.resume().directory == begun.directory
    file.write_text(json.dumps({"run_id": later, "uri": "sqlite:///mlflow.db"}))
    told = f"^Run {later} has written into {begun.directory} since, so that nothing of run {begun.run_id} is left"
    with pytest.raises(UserError, match=told):
        begun.resume("trainer.max_epochs=9")
    with pytest.raises(UserError, match=told):
        compose("sync", [f"run_id={begun.run_id}"]).stage.run(tmp_path)
    assert [path.name for path in file.parent.iterdir()] == ["run.json"], "nothing of it was touched"


@pytest.mark.long
def test_it_goes_on_with_the_images_that_it_began_with(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "photos"
    shutil.copytree(color_folder, images)
    typed = [*TINY, "trainer.max_epochs=1", "tracking.register=false", "data=folder", f"data.path={images}"]
    begun = compose("train", typed)
    result = begun.run().facts
    resume = [f"train.resume={result['run_id']}", "trainer.max_epochs=2"]
    Image.new("RGB", (40, 40), (10, 200, 200)).save(images / "green" / "new.png")
    with pytest.raises(UserError, match=f"now dataset version [0-9a-f]+, but .* version {result['dataset_digest']}"):
        compose("train", resume).run()
    (images / "green" / "new.png").unlink()
    (images / "yellow").mkdir()
    for seed in range(12):
        paint((220, 220, 0), 5000 + seed).save(images / "yellow" / f"{seed}.png")
    with pytest.raises(UserError, match=f"now dataset version [0-9a-f]+, but .* version {result['dataset_digest']}"):
        compose("train", resume).run()
    shutil.rmtree(images / "yellow")
    resumed = compose("train", resume)
    assert resumed.directory == begun.directory
    again = resumed.run().facts
    assert (again["run_id"], again["epochs"]) == (result["run_id"], 2)
    log = (begun.directory / "log.txt").read_text()
    assert log.count("train: done in") == 2, "a log goes on too"


def test_one_of_another_version_of_graftline_is_told_apart(begin: Callable[..., Begun]) -> None:
    begun = begin()
    file = begun.directory / ".hydra" / "config.yaml"
    stored = OmegaConf.load(file)
    stored.data.on_bad = "leave_out"
    OmegaConf.save(stored, file)
    with pytest.raises(UserError, match="of another version of graftline"):
        begun.resume()
