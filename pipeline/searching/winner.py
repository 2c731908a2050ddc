"""Training what a search has found: a run of the stage ``train`` as any other, in a directory of its own."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from graftline.backbones.backbone import Backbone
from graftline.data.ingest import CheckClasses, Ingest, IngestResult
from graftline.data.version import DatasetVersion
from graftline.files import write_json, write_text
from graftline.freezing.rules import AllAfterHead, AllButHead
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.train import Train
from graftline.pipeline.training.result import TrainResult
from graftline.pipeline.training.run_log import LoggedEvents

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

OTHERS = {"_target_", "weights", "experiment", "debug"}  # of a configuration, beside the fields of Train
TRAIN_FOLDER, HEAD_FOLDER, ENSEMBLE_FOLDER = "train", "head", "ensemble"  # in the output directory of a search


@dataclass(frozen=True)
class IngestOnce(Ingest):
    """An ingest that is done already; its images are not looked at again.

    Attributes:
        version: that it gave.
    """

    version: DatasetVersion | None = None

    def run(
        self,
        needed: Sequence[str] = (),  # noqa: ARG002 - that of an ingest
        check_classes: CheckClasses | None = None,  # noqa: ARG002 - likewise
    ) -> IngestResult:
        """Return the version that is there."""
        assert self.version is not None
        return IngestResult(self.version, [], is_new=False)

    @classmethod
    def of(cls, ingest: Ingest, version: DatasetVersion) -> "IngestOnce":
        """Return an ingest as one that is done."""
        return cls(**{field.name: getattr(ingest, field.name) for field in fields(Ingest)}, version=version)


@dataclass(frozen=True)
class WinnerTraining(Train):
    """A training that an interrupt may end with its best epoch so far: saved, tested and registered as any other.

    Attributes:
        ends: decides that, once an epoch is done.
    """

    ends: Callable[[KeyboardInterrupt], bool] = lambda _: False

    def _listen(self, run: "Run", files: RunDirectory) -> LoggedEvents:
        return LoggedEvents(run, files.augmentation, self.ends)


@dataclass(frozen=True)
class Winner:
    """What a search trains in the end.

    Attributes:
        search: its settings: a training, and more.
        directory: output directory of the search, which has its configuration.
        backbone: that was chosen, with its image size.
        version: the dataset version.
        parent_run_id: of the search in MLflow.
    """

    search: Train
    directory: Path
    backbone: Backbone
    version: DatasetVersion
    parent_run_id: str

    @property
    def _name(self) -> str | None:
        """Name of its run, where the search's has one that was given."""
        return None if self.search.name is None else f"{self.search.name}, {self.backbone.name}"

    @property
    def is_saved(self) -> bool:
        """Whether a training has come as far as to save the model, of which there is to be no other one then."""
        return any(RunDirectory(self.directory / folder).bundle.is_dir() for folder in (TRAIN_FOLDER, ENSEMBLE_FOLDER))

    def discard_earlier(self) -> None:
        """Remove the models of an earlier search in the same directory."""
        shutil.rmtree(RunDirectory(self.directory / TRAIN_FOLDER).bundle, ignore_errors=True)
        shutil.rmtree(self.directory / ENSEMBLE_FOLDER, ignore_errors=True)

    @property
    def finished_members(self) -> list[str]:
        """The directories of the members that ``train_ensemble`` has trained so far."""
        results = (self.directory / ENSEMBLE_FOLDER / "members").glob("*/result.json")
        return sorted(str(result.parent) for result in results)

    def train(self, minutes: float, ends: Callable[[KeyboardInterrupt], bool], *, whole: bool = False) -> TrainResult:
        """Train, test, track and register the model as it was configured, in so many minutes.

        Args:
            minutes: that it takes.
            ends: as for ``WinnerTraining``.
            whole: freeze nothing, whatever was configured, unless that is not likely better than the head.
        """
        changes, configured = self._freeze(AllAfterHead) if whole else ({}, {})
        kind, own = partial(WinnerTraining, ends=ends), {"minutes": minutes, "name": self._name}
        return self._run(TRAIN_FOLDER, {**changes, **own}, {**configured, **own}, kind)

    def train_head(self) -> TrainResult:
        """Train its head alone, in seconds where the activations are there; test, track and register that.

        It is trained on activations of plain images, as it was scored, since one on images would take its epochs.
        """
        changes, configured = self._freeze(AllButHead)
        features = replace(self.search.features, cache=True, views=0)
        recipe = replace(self.search.train, mixup_alpha=0.0, cutmix_alpha=0.0)
        changes |= {"minutes": None, "name": self._name, "features": features, "train": recipe}
        configured |= {"minutes": None, "name": self._name, "features.cache": True, "features.views": 0}
        configured |= {"train.mixup_alpha": 0.0, "train.cutmix_alpha": 0.0}
        return self._run(HEAD_FOLDER, changes, configured)

    def _freeze(self, rule: type[AllButHead | AllAfterHead]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return another freeze rule in place of the search's, as a change of the stage and of its configuration."""
        batchnorm = self.search.freeze.batchnorm
        target = f"{rule.__module__}.{rule.__name__}"
        return {"freeze": rule(batchnorm=batchnorm)}, {"freeze": {"_target_": target, "batchnorm": batchnorm}}

    def train_ensemble(self, kind: type[Train], own: Mapping[str, Any], *, whole: bool = False) -> TrainResult:
        """Train several models and average them: tested, tracked and registered as one.

        Args:
            kind: the stage ``ensemble``.
            own: its own fields, and ``minutes`` of each model.
            whole: freeze nothing, whatever was configured, unless that is not likely better than the head.
        """
        changes, configured = self._freeze(AllAfterHead) if whole else ({}, {})
        target = {"_target_": f"{kind.__module__}.{kind.__name__}"}
        own = {**own, "name": self._name}
        return self._run(ENSEMBLE_FOLDER, {**changes, **own}, {**configured, **own, **target}, kind, stage="ensemble")

    def train_member(self, folder: str, seed: int, fold: str | None, resume: str | None = None) -> TrainResult:
        """Train a model of the same settings with another seed or fold, or go on with the run that was begun there.

        It is not registered by itself.
        """
        tracking = replace(self.search.tracking, parent_run_id=self.parent_run_id, register=False)
        recipe = replace(self.search.train, fold=fold, resume=resume)
        configured = {"seed": seed, "tracking.register": False, "train.fold": fold, "train.resume": resume}
        configured["train.depth_seed"] = recipe.depth_seed
        return self._run(folder, {"seed": seed, "tracking": tracking, "train": recipe}, configured)

    def train_challenger(self, folder: str, resume: str | None) -> TrainResult:
        """Train a model, or go on with the run that was begun in the folder; it is not registered by itself."""
        tracking = replace(self.search.tracking, parent_run_id=self.parent_run_id, register=False)
        recipe = replace(self.search.train, resume=resume)
        configured = {"tracking.register": False, "train.resume": resume}
        return self._run(folder, {"train": recipe, "tracking": tracking}, configured)

    def _run(
        self,
        folder: str,
        changes: Mapping[str, Any],
        configured: Mapping[str, Any],
        kind: Callable[..., Train] = Train,
        stage: str = "train",
    ) -> TrainResult:
        """Run a stage in a folder of the search; ``configured`` is what ``changes`` is in the configuration."""
        files = RunDirectory(self.directory / folder)
        if configured.get("train.resume") is None:
            shutil.rmtree(files.bundle, ignore_errors=True)  # of an earlier search in the same directory
        self._configure(files, configured)
        start = time.perf_counter()
        own = {field.name: getattr(self.search, field.name) for field in fields(Train)}
        tracking = replace(self.search.tracking, parent_run_id=self.parent_run_id)
        data = IngestOnce.of(self.search.data, self.version)
        of_winner = {"backbone": self.backbone, "data": data, "tracking": tracking}
        result = kind(**{**own, **of_winner, **changes}).run(files.path)
        seconds = round(time.perf_counter() - start, 1)
        write_json(files.result, {"stage": stage, "seconds": seconds, **result.facts, "metrics": result.metrics})
        return result

    def _configure(self, files: RunDirectory, configured: Mapping[str, Any]) -> None:
        """Write configuration and overrides of the run, by which it can be resumed."""
        of_search = RunDirectory(self.directory)
        config = OmegaConf.load(of_search.config)
        assert isinstance(config, DictConfig)
        known = {field.name for field in fields(Train)} | OTHERS
        kind = type(self.backbone)
        values = {"backbone": {"_target_": f"{kind.__module__}.{kind.__name__}", **asdict(self.backbone)}}
        with open_dict(config):
            for key in config.keys() - known:
                del config[key]
            config["_target_"] = f"{Train.__module__}.{Train.__name__}"
            for key, value in {**values, "tracking.parent_run_id": self.parent_run_id, **configured}.items():
                OmegaConf.update(config, key, value, merge=False, force_add=True)
        typed: list[str] = yaml.safe_load(of_search.overrides.read_text(encoding="utf-8"))
        own = {"backbone": self.backbone.name, "backbone.image_size": self.backbone.given_size}
        own |= {key: configured.get(key) for key in ("members", "crops")}
        kept = [
            text for text in typed if text.lstrip("+").split("=")[0].split(".")[0] in known - {"minutes", "backbone"}
        ]
        kept += [f"{key}={value}" for key, value in own.items() if value is not None]
        write_text(files.config, OmegaConf.to_yaml(config), private=True)
        write_text(files.overrides, yaml.safe_dump(kept, allow_unicode=True), private=True)
        files.write_config_dir(of_search.read_config_dir())
