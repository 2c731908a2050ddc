"""Train: dataset version + backbone → freeze plan → fit → bundle → test → MLflow run → registered version."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from omegaconf import OmegaConf

from graftline.augment.policy import Policy
from graftline.augment.preview import preview_sheet
from graftline.backbones.backbone import Backbone, Graft
from graftline.backbones.cost import count
from graftline.backbones.cost.report import Priced, to_json
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import add_to_card, save_bundle
from graftline.console import say
from graftline.data.decode import decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation
from graftline.evaluation.metrics import print_scores
from graftline.features.cache import Features
from graftline.files import write_json
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rules import Rule, refuse_frozen_noise
from graftline.tracking.tracking import Tracking
from graftline.training.fit import Fit, check_optimiser, check_trainer, fit, weight_decay_of
from graftline.training.inputs import Inputs, choose_inputs
from graftline.training.module import GraftModule, Optimiser, Schedule
from graftline.training.progress import Metrics
from graftline.training.recipe import Recipe
from pipeline.group import PARENT
from pipeline.report import Outcome, summarise, write_run_report
from pipeline.stage import StageResult
from pipeline.worker import announced

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


@dataclass(frozen=True)
class Prepared:
    """What is known before the first optimiser step."""

    version: DatasetVersion
    graft: Graft
    plan: FreezePlan


@dataclass(frozen=True)
class Train:
    """The stage ``train`` (Hydra target of conf/train.yaml)."""

    data: Ingest
    augment: Policy
    backbone: Backbone
    freeze: Rule
    features: Features
    optim: Optimiser
    schedule: Schedule
    trainer: Callable[..., pl.Trainer]
    evaluation: Evaluation
    tracking: Tracking
    train: Recipe
    name: str | None = None
    seed: int = 0

    def run(self, directory: Path) -> StageResult:
        """Train, test, track and register a model."""
        self._check()
        prepared = self._prepare()
        with self._start_run(prepared, directory) as run:
            say(f"Run {run.id}; should it be interrupted, make train train.resume={run.id} goes on with it.")
            self._log_setup(run, prepared, directory)
            inputs = self._choose_inputs(prepared)
            fitted = self._fit(prepared, inputs, directory, run.log_metrics)
            bundle = self._save_bundle(prepared, fitted, directory / "bundle")
            predictor = Predictor.from_directory(bundle, engine=self.evaluation.engine)
            result = self.evaluation.run(predictor, prepared.version, directory / "test")
            outcome = Outcome(directory, self.backbone.name, prepared.version, prepared.plan, inputs, fitted, result)
            model_uri = self._log_outcome(run, outcome)
        return summarise(outcome, run.id, run.url, model_uri)

    def work(self, directory: Path) -> None:
        """Train along as a further process of a distributed training; the first one does the rest."""
        prepared = self._prepare()
        self._fit(prepared, self._choose_inputs(prepared), directory, on_epoch=_tell_nobody)

    def _check(self) -> None:
        """Find out now, not after the images were read, what can't go well: devices, weights, a server that is away."""
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}, it must be at least 0 and below 2^32.")
        check_optimiser(self.optim)
        check_trainer(self.trainer)
        self.backbone.check()
        self.tracking.check()

    def _prepare(self) -> Prepared:
        """Get the images, build the network and decide what of it is trained."""
        pl.seed_everything(self.seed, workers=True, verbose=False)
        version = self.data.run().version
        graft = self.backbone.build(len(version.class_names))
        num_train = len(version.samples("train").paths)
        plan = self.freeze.plan(graft.network, images_per_class=num_train / len(version.class_names))
        refuse_frozen_noise(plan, pretrained=graft.weights.pretrained)
        plan.apply(graft.network)
        say(f"Backbone {self.backbone.name}: {graft.weights.describe()}.")
        say(f"Freeze: {plan.sentence(graft.network)}.")
        return Prepared(version, graft, plan)

    def _start_run(self, prepared: Prepared, directory: Path) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"{self.backbone.name} {directory.name}",
            experiment=prepared.version.name,
            directory=directory,
            tags={"graftline.stage": "train", "graftline.freeze": prepared.plan.reason},
            parent_run_id=os.environ.get(PARENT),
            resume_run_id=self.train.resume,
        )

    def _log_setup(self, run: "Run", prepared: Prepared, directory: Path) -> None:
        """Log what the run is made of: configuration, code, images, and a look at their augmentation."""
        config = OmegaConf.load(directory / ".hydra" / "config.yaml")
        nested = OmegaConf.to_container(config, resolve=True)
        assert isinstance(nested, dict)
        # what the network was built with: the configuration does not say which phi a budget came to
        params = {**{str(key): value for key, value in nested.items()}, "network": dict(prepared.graft.arguments)}
        run.log_params(params, OmegaConf.to_yaml(config))
        run.log_environment()
        run.log_dataset(prepared.version)
        run.log_artifact(prepared.version.directory.parent / "findings.json", "data")
        self._log_cost(run, prepared.graft, directory / "cost.json")
        image = decode_rgb(prepared.version.samples("train").paths[0])
        preview_sheet(image, self.augment, prepared.graft.preprocessing, self.seed).savefig(directory / "augment.png")
        run.log_artifact(directory / "augment.png", "figures")

    def _log_cost(self, run: "Run", graft: Graft, file: Path) -> None:
        """Log what a forward pass of the network costs per image, with the head that is trained."""
        size, channels = graft.preprocessing.image_size, graft.preprocessing.channels
        cost = count(graft.network, size, channels, self.backbone.name)
        values = {
            "cost/parameters": cost.parameters,
            "cost/gmacs": cost.macs / 1e9,
            "cost/activation_mb": cost.activation_bytes / 1e6,
        }
        run.log_metrics(values, step=0)
        write_json(file, to_json(Priced(self.backbone.name, cost)))
        run.log_artifact(file, "cost")

    def _choose_inputs(self, prepared: Prepared) -> Inputs:
        """Decide whether images or cached activations are trained on; the frozen pass happens here."""
        return choose_inputs(
            prepared.graft, prepared.plan, prepared.version, self.augment, self.features, self.train, self.seed
        )

    def _fit(
        self, prepared: Prepared, inputs: Inputs, directory: Path, on_epoch: Callable[[Metrics, int], None]
    ) -> Fit:
        """Train what the plan says; afterwards the network has the weights of the best epoch."""
        version, num_classes = prepared.version, len(prepared.version.class_names)
        say(inputs.sentence)
        module = GraftModule(
            inputs.network,
            optimiser=self.optim,
            schedule=self.schedule,
            weight_decay=weight_decay_of(self.optim),
            label_smoothing=self.train.label_smoothing,
            class_weights=self.train.class_weight_tensor(version.samples("train"), num_classes),
            use_sample_weights=self.train.sample_weights,
            mixer=self.train.mixer(num_classes),
        )
        with announced(directory):
            return fit(
                module,
                self.trainer,
                inputs.make_loaders,
                directory=directory / "checkpoints",
                on_epoch=on_epoch,
                patience=self.train.patience,
                ema_decay=self.train.ema_decay,
                resume=self.train.resume is not None,
                threads=inputs.threads,
            )

    def _save_bundle(self, prepared: Prepared, fitted: Fit, directory: Path) -> Path:
        say(f"Best epoch {fitted.best['epoch'] + 1:.0f} of {len(fitted.history)}; saving the bundle.")
        version, graft = prepared.version, prepared.graft
        card = {
            "dataset": version.name,
            "dataset_digest": version.digest,
            "freeze_plan": prepared.plan.describe(graft.network),
            "weights": graft.weights.describe(),
            "validation": fitted.best,
        }
        return save_bundle(
            directory,
            graft.network,
            timm_name=self.backbone.name,
            class_names=version.class_names,
            preprocessing=graft.preprocessing,
            card=card,
        )

    def _log_outcome(self, run: "Run", outcome: Outcome) -> str | None:
        """Print, log and register what came of the training; returns the model's URI."""
        version, result, bundle = outcome.version, outcome.result, outcome.directory / "bundle"
        print_scores(result.scores, f"{version.name}: test split")
        add_to_card(bundle, metrics=result.metrics_json())
        values = {f"test/{name}": interval.value for name, interval in result.scores.items()}
        run.log_metrics(values, step=outcome.fitted.steps)
        run.log_artifact(write_run_report(outcome))
        run.log_artifact(result.predictions, "test")
        run.log_artifact(result.predictions.parent / "figures", "figures")
        example = Path(version.samples("test").paths[0]).read_bytes()
        return run.log_model(bundle, registered_name=version.name, input_example=example, metrics=values)


def _tell_nobody(metrics: Metrics, step: int) -> None:
    """The first process tells."""
