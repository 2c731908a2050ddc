"""Train what is to challenge the champion: from the pretrained weights, from the champion's own, or both."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from graftline.backbones.backbone import Backbone
from graftline.bundle.golden import read_golden
from graftline.bundle.layout import WEIGHTS_FILE, read_description
from graftline.console import print_table, say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import UnreachableError, UserError, first_line
from graftline.evaluation.metrics import Interval
from graftline.pipeline.evaluating.scoring import score_tags
from graftline.pipeline.retraining.options import Start
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.winner import Winner
from graftline.pipeline.train import Train
from graftline.tracking.names import BUNDLE_DIGEST
from graftline.tracking.outbox import clear_outbox
from graftline.tracking.registry import RegisteredVersion
from graftline.tracking.retrainings import find_registered
from graftline.training.results import log_loss


@dataclass(frozen=True)
class Challenger:
    """A model that was trained.

    Attributes:
        start: what its training began with.
        directory: of its run.
        run_id: of its run.
        loss: log loss on the validation images, by which challengers are chosen.
        metrics: of the test images, as in ``result.json``.
    """

    start: Start
    directory: Path
    run_id: str
    loss: float
    metrics: dict[str, Any]

    @classmethod
    def read(cls, start: Start, directory: Path) -> "Challenger | None":
        """Return the challenger that was trained in a directory; None if that has not come to its end."""
        files = RunDirectory(directory)
        if not files.result.exists():
            return None
        result = json.loads(files.result.read_text(encoding="utf-8"))
        loss = log_loss(read_description(files.bundle)["card"]["validation"])
        return cls(start, directory, result["run_id"], float(loss), result["metrics"])


@dataclass(frozen=True)
class Challengers:
    """Trains challengers, each in a folder of the retraining; what is trained already is not trained again.

    Attributes:
        stage: the settings of the trainings.
        directory: output directory of the retraining, which has its configuration.
        version: the images.
        run_id: of the retraining in MLflow.
        champion: the version that is in use; None: there is none.
    """

    stage: Train
    directory: Path
    version: DatasetVersion
    run_id: str
    champion: RegisteredVersion | None

    def train(self, start: Start) -> Challenger:
        """Train one or two challengers; returns the better one on the validation images.

        One that is registered already was that one, whoever has become champion since.
        """
        if (registered := self._find_registered()) is not None:
            return registered
        found = [self._train(one, backbone) for one, backbone in self._starts(start).items()]
        best = min(found, key=lambda one: one.loss)
        if len(found) > 1:
            rows = [(one.start, f"{one.loss:.4f}", "goes on" if one is best else "") for one in found]
            print_table("Challengers, by log loss on the validation images", ("start", "log loss", ""), rows)
        return best

    def _find_registered(self) -> Challenger | None:
        """Return the challenger that was put into the registry before; None if none was."""
        starts: tuple[Start, ...] = ("fresh", "warm")
        for start in starts:
            done = Challenger.read(start, self.directory / start)
            if done is not None and self._find_uri(done) is not None:
                _say_done(done)
                return done
        return None

    def _find_uri(self, challenger: Challenger) -> str | None:
        return find_registered(self.stage.tracking.uri, self.version.name, challenger.run_id)

    def _starts(self, start: Start) -> dict[Start, Backbone]:
        """Return what trainings begin with, and the backbone that says so."""
        fresh, chosen = self.stage.backbone, dict[Start, Backbone]()
        if start in ("fresh", "both"):
            chosen["fresh"] = fresh
        if start in ("warm", "both"):
            try:
                chosen["warm"] = self._find_warm()
            except UserError as error:
                warn(f"No warm start ({first_line(error)}): the training begins with the pretrained weights.")
        return chosen or {"fresh": fresh}

    def _find_warm(self) -> Backbone:
        """Return the backbone with the champion's weights.

        Raises:
            UserError: there are none that it could have.
        """
        if self.champion is None:
            raise UserError("there is no champion yet.")
        bundle, name = self.stage.tracking.registry().bundle(self.champion.uri), self.stage.backbone.network_name
        if not (bundle / WEIGHTS_FILE).is_file():
            raise UserError("the champion is an ensemble.")
        network = read_description(bundle)["timm_name"]
        if _without_tag(network) != _without_tag(name):
            raise UserError(f"the champion is a {network}, not a {name}.")
        backbone = replace(self.stage.backbone, weights="file", file=str(bundle / WEIGHTS_FILE))
        backbone.build(self.version.class_names)
        return backbone

    def _train(self, start: Start, backbone: Backbone) -> Challenger:
        directory = self.directory / start
        if (done := Challenger.read(start, directory)) is not None:
            _say_done(done)
            return done
        resume = _begun(directory, backbone)
        if resume is None:  # as long as the configuration there names the weights that its checkpoints began with
            RunDirectory(directory).discard_training()
            clear_outbox(directory)
        say(f"\nChallenger, {start} start{'' if resume is None else f': goes on with run {resume}'}.")
        stage = replace(self.stage, tracking=replace(self.stage.tracking, parent_run_id=self.run_id))
        Winner(stage, self.directory, backbone, self.version, self.run_id).train_challenger(start, resume)
        trained = Challenger.read(start, directory)
        assert trained is not None
        return trained

    def register(self, chosen: Challenger) -> str:
        """Put a challenger into the registry, once; returns its URI.

        Raises:
            UnreachableError: MLflow has not taken it.
        """
        tracking = replace(self.stage.tracking, parent_run_id=self.run_id, register=True, system_metrics=False)
        if (uri := self._find_uri(chosen)) is not None:
            return uri
        bundle = RunDirectory(chosen.directory).bundle
        with tracking.start(
            run_name="",
            experiment=self.version.name,
            directory=chosen.directory,
            tags={},
            resume_run_id=chosen.run_id,
        ) as run:
            run.log_dataset(self.version)
            run.log_environment()
            registered = run.log_model(
                bundle,
                registered_name=self.version.name,
                input_example=read_golden(bundle)[0][0].read_bytes(),
                metrics={f"test/{name}": score["value"] for name, score in chosen.metrics.items()},
                tags={
                    BUNDLE_DIGEST: read_description(bundle)["digest"],
                    **score_tags({name: Interval(**score) for name, score in chosen.metrics.items()}),
                },
            )
        if registered is None:
            raise UnreachableError(
                f"MLflow has not taken the model of run {chosen.run_id}, and nothing is promoted: start the retraining "
                "again when it answers, it goes on from here."
            )
        return registered


def _without_tag(network: str) -> str:
    """Return a network's name without the tag of its weights, and the head that reads all stages.

    >>> _without_tag("resnet50.a1_in1k+stages"), _without_tag("resnet50")
    ('resnet50+stages', 'resnet50')
    """
    name, plus, head = network.partition("+")
    return name.partition(".")[0] + plus + head


def _begun(directory: Path, backbone: Backbone) -> str | None:
    """Return the id of the run that was begun in a directory with the same weights; None if none was.

    One with a warm start from a model that is not the champion any more is not gone on with: its checkpoints are of
    another network.
    """
    files = RunDirectory(directory)
    if (run_id := files.last_run_id) is None:
        return None
    return run_id if OmegaConf.select(OmegaConf.load(files.config), "backbone.file") == backbone.file else None


def _say_done(challenger: Challenger) -> None:
    say(f"The challenger with a {challenger.start} start was trained before: run {challenger.run_id}.")
