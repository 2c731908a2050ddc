"""Ensemble: trained models → those that are better together, chosen on validation → one bundle → test → registered."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graftline.augment.crops import CROP_SETS, check
from graftline.backbones.backbone import Backbone
from graftline.bundle.ensemble import Ensemble, read_replay, save_ensemble
from graftline.bundle.grid import Average, Grid, mean_logits
from graftline.console import say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.calibration import FEWEST_IMAGES, CalibrationFit
from graftline.evaluation.decision import DecisionFit
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.grid import GridCandidate, GridRow, classify, measure, score_candidates
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.evaluation.selection import Selection, select_all, select_greedily, select_last, select_weighted
from graftline.execution import Accelerator, Execution
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.ensembles.member_training import Member, train_members
from graftline.pipeline.ensembles.members import Members, open_members
from graftline.pipeline.ensembles.result import (
    KINDS,
    SOUPS,
    Choose,
    EnsembleOutcome,
    EnsembleResult,
    summarize_ensemble,
    write_ensemble_report,
)
from graftline.pipeline.evaluating.beyond_scores import look_beyond
from graftline.pipeline.evaluating.scoring import log_evaluation, score_tags, write_evaluation
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import TRACKED_AT, RunDirectory
from graftline.pipeline.runs.logged_logits import find_logged_of_members
from graftline.pipeline.runs.setup import log_setup
from graftline.pipeline.searching.winner import IngestOnce, Winner
from graftline.pipeline.train import NEEDED, Train
from graftline.pipeline.training.calibration import learn
from graftline.pipeline.training.drift_reference import leave_ensemble_reference
from graftline.pipeline.training.model_card import write_model_card
from graftline.pipeline.training.result import NOT_TESTED
from graftline.report.grid_tables import crops_in_words, print_selection
from graftline.report.tables import print_scores
from graftline.tracking.names import BUNDLE_DIGEST, STAGE
from graftline.training.fit_directory import FitDirectory
from graftline.training.recipe import Recipe
from graftline.training.trainer import check_spread, make_execution
from graftline.training.trial import make_freeze_context

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


@dataclass(frozen=True)
class MakeEnsemble(Train):
    """The stage ``ensemble`` (Hydra target of conf/ensemble.yaml): trainings whose models become one.

    Attributes:
        runs: of models that are trained already.
        members: how many to train instead.
        folds: whether each of these is trained without another part of the training images.
        backbones: that members take turns with; none: the one of a training.
        crops: name of a set of crops.
        choose: how members are chosen.
        average: what of the crops and members is averaged.
        ms_per_image: that the ensemble may take; None: any.
        accelerator: where the members are run.
    """

    runs: Sequence[str] = ()
    members: int | None = None
    folds: bool = False
    backbones: Sequence[Backbone] = ()
    crops: str = "1"
    choose: Choose = "greedy"
    average: Average = "probabilities"
    ms_per_image: float | None = None
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        if (self.members is None) == (not self.runs):
            raise UserError("MakeEnsemble.runs or MakeEnsemble.members is needed, and not both: say what is averaged.")
        if self.members is not None and self.members < 2:
            raise UserError(f"MakeEnsemble.members is {self.members}, but an ensemble has at least 2.")
        if self.members is not None:
            check_spread(self.trainer, self.cluster)
        if self.folds and self.runs:
            raise UserError("MakeEnsemble.folds is for members that are trained: give MakeEnsemble.members, not runs.")
        if self.train.fold is not None:
            raise UserError("Recipe.fold is each member's own here: leave it out, MakeEnsemble.folds sets it.")
        if self.refuse is not None:
            raise UserError("MakeEnsemble.refuse is for a model of one network: leave it out.")
        if self.crops not in CROP_SETS:
            raise UserError(f"MakeEnsemble.crops is {self.crops}: take one of {', '.join(CROP_SETS)}.")
        if self.ms_per_image is not None and self.choose != "greedy":
            raise UserError(f"MakeEnsemble.ms_per_image is for choose=greedy: leave it out for choose={self.choose}.")
        if self.ms_per_image is not None and not 0 < self.ms_per_image < math.inf:
            raise UserError(f"MakeEnsemble.ms_per_image is {self.ms_per_image}, it must be above 0 and finite.")

    def run(self, directory: Path) -> EnsembleResult:
        """Train members where none are given, choose among them, save, test, track and register the ensemble."""
        files = RunDirectory(directory)
        execution = Execution.local(self.accelerator)
        opened = None if self.members is not None else self._open(self.runs, execution)
        if opened is None:
            self._check_members()
        version = with_parent(self.data, self.tracking).run(NEEDED, self.decision.check_classes).version
        if opened is None:
            self._check_networks(version, files)
        else:
            opened.require_version(version)
            opened.warn_of_refusals()
            if not self._wanted.chooses:
                opened.warn_of_decisions()
        self._check_validation(version)
        files.keep_to_version(version, resumed=self.train.resume is not None)
        with self._start_ensemble(version, files) as run:
            again = files.command(program(), "ensemble", f"train.resume={run.id}", group=TRACKED_AT)
            say(f"Run {run.id}; should it be interrupted, {again} goes on with it.")
            members = opened or self._open(self._train_members(version, files, run.id), execution)
            log_setup(run, version)
            if self.choose in SOUPS:
                members, logits = self._with_soup(members, version, files, execution)
            else:
                logits = self._classify(members, version)
            selection = self._select(members, logits, version)
            adjusted = self._calibrate_mean(members, selection, logits, version)
            bundle = self._save(members, selection, adjusted, version, files)
            outcome = self._test(bundle, members, selection, version, execution)
            mean = adjusted[0].calibration.apply(adjusted[2].logits)
            leave_ensemble_reference(outcome.predictor, bundle, version, mean, self.data.workers)
            uri = self._log_ensemble(run, outcome)
        return summarize_ensemble(outcome, run.id, run.url, uri)

    @property
    def _networks(self) -> list[Backbone]:
        """The different networks of members that are trained, in the order in which they are."""
        assert self.members is not None
        return (list(self.backbones) or [self.backbone])[: self.members]

    @property
    def _recipe_of_members(self) -> Recipe:
        """The recipe by which members of one network find the depth once, where they can: with the same images."""
        shares = self._can_take_depth and not self.folds and self.train.depth_seed is None
        return replace(self.train, depth_seed=self.seed) if shares else self.train

    def _check_members(self) -> None:
        """Find out before images are read what can't go well with any of the members."""
        first, *others = [replace(self, backbone=backbone) for backbone in self._networks]
        first.check()
        for other in others:
            other._check_backbone()
        self._check_average([backbone for backbone in self._networks if backbone.image_size != "auto"])

    def _check_networks(self, version: DatasetVersion, files: RunDirectory) -> None:
        """Find out before the first member is trained what would stop a later one, or the average.

        What stops the first one comes out at once.
        """
        self._check_average(
            [backbone.for_images(version.typical_side(), version.typical_aspect()) for backbone in self._networks]
        )
        for backbone in self._networks[1:]:
            stage = replace(self, backbone=backbone)
            setup = stage._set_up(version, make_execution(self.trainer))
            stage._deadline(setup, time.monotonic())
            if not self.freeze.needs_trials:
                self.freeze.decide(make_freeze_context(setup, FitDirectory(files.checkpoints)))

    def _check_average(self, backbones: Sequence[Backbone]) -> None:
        """Make sure that networks can take the crops, and can be averaged as that was asked.

        Raises:
            UserError: they can't.
        """
        ways = [backbone.preprocessing() for backbone in backbones]
        for backbone, way in zip(backbones, ways, strict=True):
            try:
                check(self.crops, way)
            except UserError as error:
                raise UserError(f"{backbone.name}: {error}") from error
            if self.choose in SOUPS and (backbone.network_name, way) != (backbones[0].network_name, ways[0]):
                names = [one.network_name for one in backbones]
                kinds = [f"{name} at {at.image_size[0]} px" for name, at in zip(names, ways, strict=True)]
                raise UserError(
                    f"MakeEnsemble.choose is {self.choose}, which averages the weights of one network, but members are "
                    f"to be of several ({', '.join(kinds)}): name one backbone and one image size, or average "
                    "probabilities instead."
                )

    def _check_validation(self, version: DatasetVersion) -> None:
        """Make sure that the validation images suffice for what they are to decide; warn where they tell little."""
        counts = version.counts()["validation"]
        self._wanted.check(counts)
        if self.choose != "all" and sum(counts.values()) < FEWEST_IMAGES:
            warn(
                f"Members are chosen by {sum(counts.values())} validation images, which tell little: "
                "choose=all averages all members."
            )

    def _open(self, references: Sequence[str], execution: Execution) -> Members:
        members = open_members(references, self.tracking, self.data.dataset_name(), self.evaluation.engine, execution)
        members.everyone(self.crops, self.average)  # refuses what does not go together
        if self.choose in SOUPS:
            from graftline.bundle.soup import check_soup  # torch and timm, which no other choice needs

            check_soup(members.directories)
        return members

    def _open_alone(self, bundle: Path, execution: Execution) -> Members:
        return open_members([str(bundle)], self.tracking, self.data.dataset_name(), self.evaluation.engine, execution)

    def _train_members(self, version: DatasetVersion, files: RunDirectory, run_id: str) -> list[str]:
        """Train the members, on the same images and cache; returns their directories."""
        assert self.members is not None
        backbones = self._networks
        stage = replace(self, data=IngestOnce.of(self.data, version), train=self._recipe_of_members)
        members = [
            Member(
                Winner(stage, files.path, backbones[number % len(backbones)], version, run_id),
                folder=f"members/{number + 1}",
                seed=self.seed + number // len(backbones),
                fold=f"{number + 1}/{self.members}" if self.folds else None,
            )
            for number in range(self.members)
        ]
        return train_members(members, self.cluster, resume=self.train.resume is not None)

    def _classify(self, members: Members, version: DatasetVersion) -> np.ndarray:
        """Return the logits (M, N, K) of the validation images."""
        grid = Grid(members.predictors, (self.crops,), version.decoding, members.references, self.average)
        logits: np.ndarray = self._logits(grid, version, "validation")[:, 0]
        return logits

    def _with_soup(
        self, members: Members, version: DatasetVersion, files: RunDirectory, execution: Execution
    ) -> tuple[Members, np.ndarray]:
        """Return the members and, as the last, one whose weights are the mean of theirs.

        With them come the logits of the validation images, of all without a calibration, which a soup has none of.
        """
        from graftline.pipeline.ensembles.soup import SoupMaker  # torch and timm, which no other choice needs

        def classify(bundle: Path) -> np.ndarray:
            logits: np.ndarray = self._classify(self._open_alone(bundle, execution), version)[0]
            return logits

        folder, plain = files.path / "soup", members.uncalibrated()
        logits = self._classify(plain, version)
        maker = SoupMaker(plain, plain.label_numbers(version), classify, version)
        of_soup = maker.make_uniform(folder) if self.choose == "soup" else maker.make_greedy(logits, folder)
        return members.joined_by(self._open_alone(folder, execution)), np.concatenate([logits, of_soup[None]])

    def _select(self, members: Members, logits: np.ndarray, version: DatasetVersion) -> Selection:
        """Choose members by their logits (M, N, K) of the validation images, and print that."""
        labels, samples = members.label_numbers(version), version.samples("validation")
        grid = Grid(members.predictors, (self.crops,), version.decoding, members.references, self.average)
        times = measure(grid, samples.paths, self.evaluation.batch_size)[:, 0].tolist()
        if self.choose in SOUPS:
            selection = select_last(logits, labels)
        elif self.choose == "all":
            selection = select_all(logits, labels, self.average)
        elif self.choose == "weighted":
            selection = select_weighted(logits, labels, self.average)
        else:
            selection = select_greedily(logits, labels, times, self.ms_per_image, self.average)
        print_selection(members.labels, members.references, selection, times, crops_in_words(self.crops))
        return selection

    def _calibrate_mean(
        self, members: Members, selection: Selection, logits: np.ndarray, version: DatasetVersion
    ) -> tuple[CalibrationFit, DecisionFit, Predictions]:
        """Calibrate the mean on the validation images and choose the decision, as a training does.

        Both are in the order of classes of the first chosen member, which is that of the bundle. With them comes what
        the mean gave there.
        """
        chosen, shares = members.only(selection.chosen), [selection.shares[number] for number in selection.chosen]
        together = chosen.ensemble(shares, self.crops, {}, self.average)
        order = [members.predictors[0].class_names.index(name) for name in together.class_names]
        mean = mean_logits(logits[selection.chosen], np.array(shares), self.average)[:, order]  # (N, K)
        wanted = replace(self._wanted, weighed=any(one.card.get("weighed") for one in chosen.predictors))
        raw = predict_split(together, version, "validation", known_logits=mean)
        fit, decision = learn(raw, wanted, self.seed)
        say(" ".join(one for one in (fit.sentence, decision.sentence) if one))
        return fit, decision, raw

    def _logits(self, grid: Grid, version: DatasetVersion, split: str) -> np.ndarray:
        """Return the logits (M, S, N, K) of the images of a split, those of one crop as runs have logged them."""
        batch_size = self.evaluation.batch_size
        known = find_logged_of_members(grid.members, grid.crops, version, split, self.tracking, batch_size)
        return classify(grid, version, split, batch_size, known)

    def _save(
        self,
        members: Members,
        selection: Selection,
        adjusted: tuple[CalibrationFit, DecisionFit, Predictions],
        version: DatasetVersion,
        files: RunDirectory,
    ) -> Path:
        fit, decision, raw = adjusted
        right = float((raw.predicted == raw.labels).mean())
        card = {
            "dataset": version.name,
            "dataset_digest": version.digest,
            "validation_digest": version.split_digests["validation"],
            "test_digest": version.test_digest,
            "validation": {"val/loss": selection.loss, "val/log_loss": selection.loss, "val/accuracy": right},
            "members": list(members.only(selection.chosen).references),
            "calibration": fit.to_json(),
            "decision": {"sentence": decision.sentence},
        }
        folders = members.only(selection.chosen).directories
        shares = [selection.shares[number] for number in selection.chosen]
        adjustment = fit.calibration, decision.decision
        return save_ensemble(files.bundle, folders, shares, self.crops, card, *adjustment, self.average)

    def _test(
        self, bundle: Path, members: Members, selection: Selection, version: DatasetVersion, execution: Execution
    ) -> EnsembleOutcome:
        """Test the ensemble once, beside its best member, where there are test images; print and write that."""
        predictor, files = (
            Ensemble.from_directory(bundle, self.evaluation.engine, execution),
            RunDirectory(bundle.parent),
        )
        outcome = EnsembleOutcome(files, version, members, selection, self.choose, predictor)
        if not any(version.counts()["test"].values()):
            warn(NOT_TESTED)
            return outcome
        result, rows = self._score(predictor, members, selection, version)
        outcome = replace(outcome, result=result, rows=rows)
        print_scores(result, f"{version.name}: test split")
        say(outcome.gain)
        write_evaluation(result, files.test)
        return replace(outcome, beyond=look_beyond(result, version, files.test, self.evaluation, self.tracking))

    def _score(
        self, predictor: Ensemble, members: Members, selection: Selection, version: DatasetVersion
    ) -> tuple[EvaluationResult, list[GridRow]]:
        """Return the ensemble's scores, and the rows of its best member with one crop and of itself."""
        sets = tuple(dict.fromkeys(("1", self.crops)))
        numbers = list(dict.fromkeys((*selection.chosen, selection.best)))  # the order of classes is the ensemble's
        tested = members.only(numbers)
        grid = Grid(tested.predictors, sets, version.decoding, tested.references, self.average)
        shares = np.array([selection.shares[number] for number in numbers])
        logits = self._logits(grid, version, "test")  # (M, S, N, K)
        mean = predictor.calibration.apply(mean_logits(logits[:, -1], shares, self.average))
        result = self.evaluation.run(predictor, version, known_logits=mean, known_from="the members' logits")
        times = measure(grid, version.samples("test").paths, self.evaluation.batch_size)
        best, used = numbers.index(selection.best), shares > 0
        candidates = [
            GridCandidate((selection.best,), "1", logits[best, 0], grid.decisions[best], float(times[best, 0])),
            GridCandidate(tuple(selection.chosen), self.crops, mean, predictor.decision, float(times[used, -1].sum())),
        ]
        given = result.predictions
        rows = score_candidates(
            candidates, given.labels, self.evaluation.resamples, self.evaluation.seed, given.drawn_groups
        )
        return result, rows

    def _log_ensemble(self, run: "Run", outcome: EnsembleOutcome) -> str | None:
        """Log and register what came of it; returns the model's URI."""
        version, bundle, values = outcome.version, outcome.files.bundle, dict[str, float]()
        if outcome.result is not None:
            values = log_evaluation(run, outcome.result, outcome.files.test, step=0)
            row = outcome.rows[-1]
            run.log_metrics({"gain/accuracy": row.accuracy_gain.value, "cost/ms_per_image": row.milliseconds}, 0)
        if self.name is None:
            run.rename(outcome.name)
        run.describe(outcome.description(run.id))
        run.log_artifact(write_ensemble_report(outcome, run.id))
        write_model_card(bundle, self.data, version, outcome.result, run.id, outcome.slices)
        example = read_replay(bundle)[0][0].read_bytes()
        run.set_tags({BUNDLE_DIGEST: outcome.predictor.digest})
        tags = {BUNDLE_DIGEST: outcome.predictor.digest, **score_tags(outcome.scores)}
        return run.log_model(bundle, registered_name=version.name, input_example=example, metrics=values, tags=tags)

    def _start_ensemble(self, version: DatasetVersion, files: RunDirectory) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"{KINDS[self.choose]}, {crops_in_words(self.crops)}",  # until it is known of what
            experiment=version.name,
            directory=files.path,
            tags={STAGE: "ensemble"},
            resume_run_id=self.train.resume,
        )
