"""Train: dataset version + backbone → freeze plan → fit → bundle → test → MLflow run → registered version."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl
from omegaconf import OmegaConf

from graftline.augment.policy import Policy
from graftline.augment.preview import preview_sheet
from graftline.backbones.backbone import Backbone, Graft
from graftline.backbones.cost import NetworkCost, count
from graftline.bundle.golden import BundleOptions, choose_golden
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import add_to_card, save_bundle
from graftline.console import say, warn
from graftline.data.decode import decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation
from graftline.features.cache import Features
from graftline.files import write_json
from graftline.freezing.plan import FreezePlan
from graftline.freezing.rules import FreezeContext, Rule
from graftline.report.cost_tables import to_json
from graftline.report.depth_figure import depth_figure
from graftline.report.style import save
from graftline.report.tables import print_scores
from graftline.tracking.tracking import Tracking
from graftline.training.fit import check_optimizer, check_trainer
from graftline.training.fitting import CONTRACT_FILE, TrainingSetup, with_learning_rate
from graftline.training.measured import Measured
from graftline.training.measurement import DepthMeasurement, print_measurement
from graftline.training.module import Optimizer, Schedule
from graftline.training.phases import TrainingResult, fit_phases
from graftline.training.progress import Metrics
from graftline.training.recipe import Recipe
from pipeline.parent import with_parent
from pipeline.report import Outcome, summarize, write_run_report
from pipeline.scoring import log_evaluation, write_evaluation
from pipeline.stage import StageResult
from pipeline.worker import announced

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


DATASET_FILE = "dataset.json"  # in the output directory: the version that the run is trained on
MEASUREMENT_FILE = "measurement.json"  # in the output directory: what freeze=measured found


@dataclass(frozen=True)
class Prepared:
    """What is known before it is decided what to freeze."""

    version: DatasetVersion
    graft: Graft

    @property
    def context(self) -> FreezeContext:
        """What freeze rules decide by."""
        num_classes = len(self.version.class_names)
        images_per_class = len(self.version.samples("train").paths) / num_classes
        return FreezeContext(images_per_class, num_classes, self.graft.weights.pretrained)


@dataclass(frozen=True)
class Train:
    """The stage ``train`` (Hydra target of conf/train.yaml)."""

    data: Ingest
    augment: Policy
    backbone: Backbone
    freeze: Rule | Measured
    features: Features
    optim: Optimizer
    schedule: Schedule
    trainer: Callable[..., pl.Trainer]
    evaluation: Evaluation
    tracking: Tracking
    train: Recipe
    bundle: BundleOptions
    name: str | None = None
    seed: int = 0

    def run(self, directory: Path) -> StageResult:
        """Train, test, track and register a model."""
        self._check()
        prepared = self._prepare()
        self._keep_version(prepared.version, directory / DATASET_FILE)
        if not isinstance(self.freeze, Measured):
            self._decide(prepared, directory)  # a rule that does not fit the network is to leave no run behind
        with self._start_run(prepared, directory) as run:
            say(f"Run {run.id}; should it be interrupted, make train train.resume={run.id} goes on with it.")
            self._log_setup(run, prepared, directory)
            plans = self._decide(prepared, directory)
            self._log_decision(run, prepared, plans, directory)
            trained = self._train(prepared, plans, directory, run)
            plan = plans[trained.best_phase]
            bundle = self._save_bundle(prepared, plan, trained, directory / "bundle")
            predictor = Predictor.from_directory(bundle, engine=self.evaluation.engine)
            result = self.evaluation.run(predictor, prepared.version)
            outcome = Outcome(directory, self.backbone.name, prepared.version, plans, trained, result)
            model_uri = self._log_outcome(run, outcome)
        return summarize(outcome, run.id, run.url, model_uri)

    def work(self, directory: Path) -> None:
        """Train along as a further process of a distributed training; the first one does the rest."""
        prepared = self._prepare()
        self._train(prepared, self._decide(prepared, directory), directory, run=None)

    def _check(self) -> None:
        """Find out now, not after the images were read, what can't go well: devices, weights, a server that is away."""
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}, it must be at least 0 and below 2^32.")
        check_optimizer(with_learning_rate(self.optim, learning_rate=1.0))
        check_trainer(self.trainer)
        if self.features.cache is False and self.features.views > 0:
            warn(f"features.views={self.features.views} is for cached activations: features=live leaves it alone.")
        self.backbone.check()
        self.tracking.check()

    def _prepare(self) -> Prepared:
        """Get the images and build the network."""
        pl.seed_everything(self.seed, workers=True, verbose=False)
        version = with_parent(self.data, self.tracking).run().version
        graft = self.backbone.build(len(version.class_names))
        say(f"Backbone {self.backbone.name}: {graft.weights.describe()}.")
        return Prepared(version, graft)

    def _keep_version(self, version: DatasetVersion, file: Path) -> None:
        """Note which images the run is trained on; one that is resumed goes on with the same."""
        begun = json.loads(file.read_text(encoding="utf-8"))["digest"] if file.exists() else version.digest
        if self.train.resume is not None and begun != version.digest:
            raise UserError(
                f"The images are now dataset version {version.digest}, but the run began with version {begun}: "
                "bring those back, or start a new run."
            )
        write_json(file, {"name": version.name, "digest": version.digest})

    def _start_run(self, prepared: Prepared, directory: Path) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"{self.backbone.name} {directory.name}",
            experiment=prepared.version.name,
            directory=directory,
            tags={"graftline.stage": "train"},
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
        write_json(file, to_json(NetworkCost(self.backbone.name, cost)))
        run.log_artifact(file, "cost")

    def _decide(self, prepared: Prepared, directory: Path) -> list[FreezePlan]:
        """Decide what of the network is frozen, in each phase of the training; ``measured`` tries it out here."""
        context = replace(prepared.context, epochs=getattr(self.trainer, "keywords", {}).get("max_epochs"))
        if not isinstance(self.freeze, Measured):
            return self.freeze.phases(prepared.graft.network, context)
        file = directory / MEASUREMENT_FILE
        if not file.exists():  # a resumed run, and a further process, keep to what was measured
            measurement = self.freeze.measure(prepared.graft, context, self._fitting(prepared), directory)
            print_measurement(measurement)
            write_json(file, measurement.to_json())
            if (figure := depth_figure(measurement)) is not None:
                save(figure, file.with_suffix(".png"))
        measured = DepthMeasurement.from_json(json.loads(file.read_text(encoding="utf-8"))).plan
        return [context.finalize(prepared.graft.network, measured)]

    def _log_decision(self, run: "Run", prepared: Prepared, plans: list[FreezePlan], directory: Path) -> None:
        """Say and log what is frozen and why."""
        sentences = [plan.sentence(prepared.graft.network) for plan in plans]
        for sentence in sentences:
            say(f"Freeze: {sentence}.")
        run.set_tags({"graftline.freeze": "; then ".join(plan.decision for plan in plans)})
        for file in (directory / MEASUREMENT_FILE, (directory / MEASUREMENT_FILE).with_suffix(".png")):
            if file.exists():
                run.log_artifact(file, "freeze")

    def _train(self, prepared: Prepared, plans: list[FreezePlan], directory: Path, run: "Run | None") -> TrainingResult:
        """Train what the plans say; afterwards the network has the best weights."""

        def log(metrics: Metrics, step: int) -> None:
            if run is not None:
                run.log_metrics(metrics, step)

        with announced(directory):
            return fit_phases(
                self._fitting(prepared),
                prepared.graft,
                plans,
                directory / "checkpoints",
                on_epoch=log,
                on_start=log,
                on_source=lambda inputs: say(inputs.sentence),
                resume=self.train.resume is not None,
            )

    def _fitting(self, prepared: Prepared) -> TrainingSetup:
        return TrainingSetup(
            prepared.version,
            self.augment,
            self.features,
            self.train,
            self.optim,
            self.schedule,
            self.trainer,
            self.seed,
        )

    def _save_bundle(self, prepared: Prepared, plan: FreezePlan, trained: TrainingResult, directory: Path) -> Path:
        say(f"Best epoch {trained.fit.best['epoch'] + 1:.0f} of {len(trained.fit.history)}; saving the bundle.")
        version, graft = prepared.version, prepared.graft
        card = {
            "dataset": version.name,
            "dataset_digest": version.digest,
            "freeze_plan": plan.describe(graft.network),
            "weights": graft.weights.describe(),
            "validation": trained.fit.best,
        }
        return save_bundle(
            directory,
            graft.network,
            timm_name=self.backbone.name,
            class_names=version.class_names,
            preprocessing=graft.preprocessing,
            card=card,
            golden=choose_golden(version.samples("validation"), self.bundle.golden),
        )

    def _log_outcome(self, run: "Run", outcome: Outcome) -> str | None:
        """Print, log and register what came of the training; returns the model's URI."""
        version, result, bundle = outcome.version, outcome.result, outcome.directory / "bundle"
        print_scores(result.scores, f"{version.name}: test split")
        add_to_card(bundle, metrics=result.metrics_json())
        figures = write_evaluation(result, outcome.directory / "test")
        values = log_evaluation(run, result, outcome.directory / "test", step=outcome.trained.fit.steps)
        _log_contracts(run, outcome)
        run.log_artifact(write_run_report(outcome, figures))
        example = Path(version.samples("test").paths[0]).read_bytes()
        return run.log_model(bundle, registered_name=version.name, input_example=example, metrics=values)


def _log_contracts(run: "Run", outcome: Outcome) -> None:
    """Say and log that what was frozen has not moved."""
    record = outcome.trained.last.contract
    frozen = "nothing was frozen"
    if record["frozen_tensors"] > 0:
        frozen = f"{record['frozen_tensors']} frozen tensors are bit for bit what they were"
    seen = f"{record['tensors_with_gradient']} of {record['trained_tensors']} trained ones had gradients"
    say(f"Freeze check: {frozen}, {seen}.")
    counts = {f"freeze/{name}": float(value) for name, value in record.items() if isinstance(value, int)}
    run.log_metrics(counts, step=outcome.trained.fit.steps)
    run.set_tags({"graftline.frozen_digest": record["frozen_digest"]})
    if (change := outcome.trained.last.cache_change) is not None:
        say(f"Cached activations change a predicted probability by {change:.1e} at most (of those looked at).")
        run.log_metrics({"features/largest_change": change}, step=outcome.trained.fit.steps)
    checkpoints = outcome.directory / "checkpoints"
    for file in sorted(checkpoints.rglob(CONTRACT_FILE)):
        run.log_artifact(file, str(Path("freeze") / file.parent.relative_to(checkpoints)))
