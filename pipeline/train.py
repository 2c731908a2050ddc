"""Train: dataset version + backbone → freeze plan → fit → bundle → test → MLflow run → registered version."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytorch_lightning as pl

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone
from graftline.backbones.families import is_tried
from graftline.bundle.calibration import UNCALIBRATED
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.golden import BundleOptions, choose_golden
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import check_savable, save_bundle
from graftline.console import say, warn
from graftline.data.folds import without_fold
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.decision import DecisionRule, MostProbable
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.rule import FreezeContext, FreezeDecision, FreezeRule
from graftline.freezing.rules import Nothing
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.evaluating.beyond_scores import look_beyond
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import TRACKED_AT, RunDirectory
from graftline.pipeline.runs.setup import log_setup
from graftline.pipeline.training.bundle import best_epoch_in_words, card_of, is_saved
from graftline.pipeline.training.calibration import Adjustment, Wanted, adjust, refused_by_inputs
from graftline.pipeline.training.decisions import choose_policy, decide_freeze
from graftline.pipeline.training.drift_reference import leave_reference
from graftline.pipeline.training.further_process import announced
from graftline.pipeline.training.neighbors import leave_neighbors
from graftline.pipeline.training.result import NOT_TESTED, TrainOutcome, TrainResult, summarize
from graftline.pipeline.training.run_log import (
    LoggedEvents,
    log_cost,
    log_decision,
    log_outcome,
    log_policy_choice,
    own_name,
    statistics_in_words,
    summary,
)
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.report.tables import print_scores
from graftline.tracking.names import STAGE
from graftline.tracking.tracking import Tracking
from graftline.training import phases
from graftline.training.batchnorm import check_statistics, choose_statistics, prepare_statistics
from graftline.training.budget import check_budget, check_clock, end_seconds, timed
from graftline.training.fit_directory import FitDirectory
from graftline.training.forecast import tell_reduced_jpeg_side
from graftline.training.label_check import with_choice
from graftline.training.launch import current_launch, with_launch
from graftline.training.module import Optimizer, Schedule
from graftline.training.policy_choice import PolicyChoice
from graftline.training.recipe import Recipe
from graftline.training.results import TrainingResult
from graftline.training.setup import TrainingSetup
from graftline.training.sharding import check_sharding
from graftline.training.trainer import check_optimizer, check_trainer, make_execution
from graftline.training.training_source import TrainingSource

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

NEEDED = ("train", "validation")  # splits without which there is no training


@dataclass(frozen=True)
class Train:
    """The stage ``train`` (Hydra target of conf/train.yaml).

    Attributes:
        data: the images, and how they are split.
        augment: what may happen to a training image.
        backbone: the pretrained network.
        freeze: the rule that decides which layers are frozen, and for how many epochs the others are trained.
        features: whether and where the activations of the frozen layers are cached.
        optim: makes the optimizer; with ``lr`` None, the learning rate is the freeze rule's.
        schedule: (step, steps in all) → factor on the learning rate.
        trainer: makes Lightning's trainer; with ``max_epochs`` None, the epochs are the freeze rule's.
        evaluation: how the test images are classified and scored.
        tracking: where the run is logged and the model registered.
        train: how to train: batch size, losses, patience.
        bundle: which images the bundle keeps.
        name: of the run in MLflow; None: network, what of it is trained, image size and seed.
        seed: of the head's weights, of dropout, and of the order, augmentation and mixing of images; 0 to 2^32 - 1.
        minutes: that the whole training may take, test included: depth and length are cut to it; None: there is no
            limit.
        decision: the rule that chooses, on validation images, which class is answered.
        sets: share of new images whose set of classes is to hold the true one; None: no sets are given.
        refuse: share of the images of known classes that may be refused as none of them; None: nothing is refused.
        cluster: over which the frozen pass is spread.
    """

    data: Ingest
    augment: Policy
    backbone: Backbone
    freeze: FreezeRule
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
    minutes: float | None = None
    decision: DecisionRule = MostProbable()  # noqa: RUF009 - immutable
    sets: float | None = None
    refuse: float | None = None
    cluster: NoCluster | RayCluster = NoCluster()  # noqa: RUF009 - immutable

    def run(self, directory: Path) -> TrainResult:
        """Train, test, track and register a model."""
        began, files = time.monotonic(), RunDirectory(directory)
        setup = self._prepare(self.check(), files)
        deadline = self._deadline(setup, began)
        prepare_statistics(setup, FitDirectory(files.checkpoints))
        decide = partial(decide_freeze, setup, self.freeze, self.backbone, files, deadline)
        if not self.freeze.needs_trials:
            decide()  # a rule that does not fit the network is to leave no run behind
        with self._start_run(setup, files) as run:
            again = files.command(program(), "train", f"train.resume={run.id}", group=TRACKED_AT)
            say(f"Run {run.id}; should it be interrupted, {again} goes on with it.")
            decision = decide()
            told = replace(decision, plans=timed(setup, decision.plans, deadline, finished=len(decision.tried)))
            log_decision(run, setup, told, files)
            choice = choose_policy(setup, decision, files, deadline)
            setup = with_choice(setup, choice)
            if choice is not None:
                log_policy_choice(run, choice, files)
            name = self._log_setup(run, setup, told, files)
            events = self._listen(run, files)
            resume = self.train.resume is not None
            with announced(files.path, setup.execution):
                trained = self._train(setup, decision, files, resume=resume, events=events, deadline=deadline)
            self._save_bundle(setup, decision, trained, files)
            adjusted = self._adjust(setup, events.source, files)
            leave_reference(adjusted.predictor, files.bundle, setup.version, events.source, self.data.workers)
            if self.bundle.neighbors > 0:
                leave_neighbors(adjusted.predictor, files.bundle, setup.version, events.source, self.bundle.neighbors)
            result = self._evaluate(setup, events.source, adjusted.predictor)
            beyond = look_beyond(result, setup.version, files.test, self.evaluation, self.tracking)
            outcome = TrainOutcome(
                files,
                self.backbone.network_name,
                setup.version,
                told,
                trained,
                adjusted,
                result,
                choice,
                name,
                beyond,
                statistics_in_words(setup, told),
            )
            model_uri = log_outcome(run, outcome, self.data)
        return summarize(outcome, run.id, run.url, model_uri)

    def work(self, directory: Path) -> None:
        """Train along as a further process of a distributed training; the first one does the rest."""
        files = RunDirectory(directory)
        version = DatasetVersion.load(Path(files.read_dataset()["directory"]))
        setup = self._set_up(version, make_execution(self.trainer))
        if files.policy_choice.exists():
            setup = with_choice(setup, PolicyChoice.from_json(files.read_policy_choice()))
        # what lies in the directory is this run's, or the first process would have removed it
        decision = FreezeDecision.from_json(files.read_freeze_decision())
        prepare_statistics(setup, FitDirectory(files.checkpoints))
        self._train(setup, decision, files, resume=True)

    def check(self) -> Execution:
        """Find out now, not after the images were read, what can't go well: devices, weights, a server that is away."""
        if self.minutes is not None and not 0 < self.minutes < math.inf:  # also catches NaN
            raise UserError(f"Train.minutes is {self.minutes}, it must be above 0 and finite.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"Train.seed is {self.seed}, it must be at least 0 and below 2^32.")
        self._wanted.check_shares()
        self.cluster.check()
        check_optimizer(self.optim)
        execution = check_trainer(self.trainer)
        check_sharding(self.trainer, self.train)
        if self.features.cache is False and self.features.views > 0:
            warn(f"features.views={self.features.views} is for cached activations: features=live leaves it alone.")
        if self.train.depth_seed is not None and not self._can_take_depth:
            warn(f"train.depth_seed={self.train.depth_seed} is for trials without minutes: it is left alone.")
        if self.features.cache is not False and not isinstance(self.freeze, Nothing):
            self.features.check()
        if self.minutes is not None:
            check_clock(self.trainer, execution)
        self._check_backbone()
        self.tracking.check(self.data.dataset_name())
        return execution

    def _check_backbone(self) -> None:
        """Refuse a network that cannot be trained as is asked for, or cannot be saved."""
        self._check_trainable()
        if not is_tried(self.backbone.name):
            say(f"Nobody has tried the family of {self.backbone.name}: it is saved once as a bundle, untrained.")
            graft = replace(self.backbone, weights="none", file=None).build(2)
            check_savable(self.backbone.network_name, graft.network, graft.preprocessing)

    def _check_trainable(self) -> None:
        """Make sure that the network can be trained as is asked for."""
        pretrained = self.backbone.check() is not None
        if not self.freeze.needs_trials:
            self._check_freeze(pretrained=pretrained)
        check_statistics(self.freeze.batchnorm, pretrained=self.backbone.weights != "none")
        if self.train.batch_size == 1 and isinstance(self.freeze, Nothing):
            self.backbone.check_single_image()
        if self.train.grad_checkpointing:
            self.backbone.check_checkpointing()

    def _check_freeze(self, *, pretrained: bool) -> None:
        """Refuse a rule without trials, which decides by the network's layers, if it does not fit them."""
        self.freeze.decide(FreezeContext(self.backbone.build_on_meta(), num_images=1, pretrained=pretrained))

    def _prepare(self, execution: Execution, files: RunDirectory) -> TrainingSetup:
        """Get the images and build the network."""
        version = with_parent(self.data, self.tracking).run(NEEDED, self.decision.check_classes).version
        self._wanted.check(version.counts()["validation"])
        files.keep_to_version(version, resumed=self.train.resume is not None)
        setup = self._set_up(version, execution)
        tell_reduced_jpeg_side(version.samples("train"), setup.graft.preprocessing)
        return setup

    def _set_up(self, version: DatasetVersion, execution: Execution) -> TrainingSetup:
        """Build the network, with a new head that depends on the seed only."""
        pl.seed_everything(self.seed, workers=True, verbose=False)
        version = without_fold(version, self.train.fold)
        graft = self._fit_to_images(version).build(version.class_names)
        say(f"Backbone {self.backbone.network_name}: {graft.weights.describe()}.")
        return TrainingSetup(
            graft=graft,
            version=version,
            policy=self.augment,
            features=self.features,
            recipe=self.train,
            optimizer=self.optim,
            schedule=self.schedule,
            make_trainer=with_launch(self.trainer, current_launch()),
            execution=execution,
            cluster=self.cluster if execution.rank == 0 else NoCluster(),
            seed=self.seed,
            batchnorm=choose_statistics(
                self.freeze.batchnorm, version.num_images("train"), pretrained=graft.weights.pretrained
            ),
        )

    def _fit_to_images(self, version: DatasetVersion) -> Backbone:
        """Return the backbone with the image size and crop that suit the training images, where none were given."""
        side, aspect = version.typical_side(), version.typical_aspect()
        backbone = self.backbone.for_images(side, aspect)
        if backbone.crop_mode != self.backbone.crop_mode:
            say(
                f"Half of the images are {aspect:.1f} times as long as wide, or longer: the network sees them whole, "
                "squashed to a square, not their center alone, which backbone.crop_mode=center asks for."
            )
        if backbone.image_size != self.backbone.image_size:
            own = min(self.backbone.preprocessing().image_size)
            say(
                f"Nine in ten images are at most {side} px wide or high: the network sees them at "
                f"{backbone.image_size} px, not at its own {own} px, which backbone.image_size={own} asks for."
            )
        return backbone

    def _start_run(self, setup: TrainingSetup, files: RunDirectory) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"{self.backbone.network_name} seed{self.seed}",  # until it is known what is frozen
            experiment=setup.version.name,
            directory=files.path,
            tags={STAGE: "train"},
            resume_run_id=self.train.resume,
        )

    def _log_setup(self, run: "Run", setup: TrainingSetup, decision: FreezeDecision, files: RunDirectory) -> str:
        """Log configuration, code and images; returns the run's name."""
        facts = summary(setup, decision, self.backbone.network_name)
        # what the network was built with: the configuration does not say which phi a budget came to
        built = {f"network.{key}": value for key, value in setup.graft.arguments.items()}
        log_setup(run, setup.version, first={**facts, **built})
        if self.name is None:
            run.rename(own_name(facts))
        log_cost(run, setup.graft, self.backbone.network_name, files.cost)
        return self.name or own_name(facts)

    @property
    def _can_take_depth(self) -> bool:
        """Whether trials are made whose depth another training can take: one that no limit of time has shaped."""
        return self.freeze.needs_trials and self.minutes is None

    def _deadline(self, setup: TrainingSetup, began: float) -> float | None:
        """Return the moment of ``time.monotonic`` at which the training is to end, where there are ``minutes``.

        Raises:
            UserError: they do not suffice for a pass of the network over all images, or a training without one.
        """
        if self.minutes is None:
            return None
        deadline = began + 60 * self.minutes - end_seconds(setup)
        freezes = not isinstance(self.freeze, Nothing)
        check_budget(setup, deadline - time.monotonic(), self.minutes, freezes=freezes)
        return deadline

    def _train(
        self,
        setup: TrainingSetup,
        decision: FreezeDecision,
        files: RunDirectory,
        *,
        resume: bool,
        events: LoggedEvents | None = None,
        deadline: float | None = None,
    ) -> TrainingResult:
        """Train what the plans say, in each process of a training; afterwards the network has the best weights."""
        return phases.train(
            setup,
            decision.plans,
            FitDirectory(files.checkpoints),
            events=events,
            resume=resume,
            finished=len(decision.tried),
            first_judged=decision.first_judged,
            deadline=deadline,
        )

    def _listen(self, run: "Run", files: RunDirectory) -> LoggedEvents:
        return LoggedEvents(run, files.augmentation)

    def _save_bundle(
        self, setup: TrainingSetup, decision: FreezeDecision, trained: TrainingResult, files: RunDirectory
    ) -> None:
        version, graft = setup.version, setup.graft
        card = card_of(setup, decision, trained, fold=self.train.fold, cost=files.read_cost())
        told = best_epoch_in_words(setup, decision, trained)
        if self.train.resume is not None and is_saved(files.bundle, card):
            say(f"{told}; its bundle was saved before the run was interrupted.")
            return
        say(f"{told}; saving the bundle.")
        save_bundle(
            files.bundle,
            graft.network,
            timm_name=self.backbone.network_name,
            class_names=version.class_names,
            preprocessing=graft.preprocessing,
            card=card,
            golden=choose_golden(version.samples("validation"), self.bundle.golden),
            decoding=version.decoding,
        )

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.decision, self.sets, self.refuse, self.train.weighs_images)

    def _adjust(self, setup: TrainingSetup, source: TrainingSource | None, files: RunDirectory) -> Adjustment:
        """Calibrate what was saved and choose which class it answers, on validation images."""
        saved = Predictor.from_directory(files.bundle, self.evaluation.engine, setup.execution)
        # a run that was interrupted may have adjusted it before
        predictor = replace(saved, calibration=UNCALIBRATED, decision=MOST_PROBABLE, refusal=None)
        adjusted = adjust(predictor, files.bundle, setup.version, source, self._wanted, self.seed)
        for sentence in adjusted.sentences:
            say(sentence)
        return adjusted

    def _evaluate(
        self, setup: TrainingSetup, source: TrainingSource | None, predictor: Predictor
    ) -> EvaluationResult | None:
        """Score what was saved on the test images, where there are any, and print that."""
        if not any(setup.version.counts()["test"].values()):
            warn(NOT_TESTED)
            return None
        refused = refused_by_inputs(predictor, source, "test")
        is_known = source is not None and (predictor.refusal is None or refused is not None)
        logits = source.logits("test") if source is not None and is_known else None
        known = None if logits is None else predictor.calibration.apply(logits)
        result = self.evaluation.run(predictor, setup.version, known_logits=known, known_refused=refused)
        print_scores(result, f"{setup.version.name}: test split")
        return result
