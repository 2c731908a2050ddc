"""Ensemble: trained models → those that are better together, chosen on validation → one bundle → test → registered."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from graftline.augment.crops import CROP_SETS
from graftline.backbones.backbone import Backbone
from graftline.bundle.ensemble import Ensemble, read_replay, save_ensemble
from graftline.bundle.grid import Average, Grid, mean_logits
from graftline.console import progress, say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.calibration import FEWEST_IMAGES, CalibrationFit
from graftline.evaluation.decision import DecisionFit
from graftline.evaluation.evaluation import EvaluationResult
from graftline.evaluation.grid import Candidate, GridRow, measure, score_candidates
from graftline.evaluation.predictions import predict_split
from graftline.evaluation.selection import Selection, select_all, select_greedily, select_last
from graftline.execution import Accelerator, Execution
from graftline.pipeline.calibration import learn
from graftline.pipeline.members import Members, open_members
from graftline.pipeline.missing import comparison_of
from graftline.pipeline.model_card import write_model_card
from graftline.pipeline.parent import with_parent
from graftline.pipeline.run_directory import RunDirectory
from graftline.pipeline.run_setup import log_setup
from graftline.pipeline.scoring import log_evaluation, score_tags, write_evaluation
from graftline.pipeline.train import NEEDED, Train
from graftline.pipeline.train_result import NOT_TESTED, TrainResult
from graftline.pipeline.winner import IngestOnce, Winner
from graftline.report.content import Calibrated, MembersAndCrops, Report
from graftline.report.grid_tables import crops_in_words, print_selection, sentence
from graftline.report.notebook import ScoresTable
from graftline.report.run_report import write_report
from graftline.report.tables import print_scores
from graftline.tracking.names import STAGE

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


SOUPS = ("soup", "greedy_soup")  # ways to choose that average weights, not probabilities


@dataclass(frozen=True, kw_only=True)
class EnsembleResult(TrainResult):
    """What the stage ``ensemble`` made, beside what a training gives.

    Attributes:
        selection: which members were chosen.
        rows: the best member with one crop, and the ensemble, on the test images; none where there are none.
    """

    selection: Selection
    rows: Sequence[GridRow]


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
    choose: Literal["greedy", "all", "soup", "greedy_soup"] = "greedy"
    average: Average = "probabilities"
    ms_per_image: float | None = None
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        if (self.members is None) == (not self.runs):
            raise UserError("MakeEnsemble.runs or MakeEnsemble.members is needed, and not both: say what is averaged.")
        if self.members is not None and self.members < 2:
            raise UserError(f"MakeEnsemble.members is {self.members}, but an ensemble has at least 2.")
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
            self._check()
        version = with_parent(self.data, self.tracking).run(NEEDED).version
        if opened is not None:
            _require_version(opened, version)
        self._check_validation(version)
        with self._start_ensemble(version, files) as run:
            members = opened or self._open(self._train_members(version, files, run.id), execution)
            log_setup(run, version)
            selection, times, logits = self._select(members, version)
            if self.choose in SOUPS:
                members = self._with_soup(members, selection, version, files, execution)
                selection, times, logits = self._select(members, version)
            print_selection(members.labels, members.references, selection, times.tolist(), crops_in_words(self.crops))
            adjusted = self._calibrate_mean(members, selection, logits, version)
            bundle = self._save(members, selection, adjusted, version, files)
            return self._finish(run, bundle, members, selection, version, execution)

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

    def _train_members(self, version: DatasetVersion, files: RunDirectory, run_id: str) -> list[str]:
        """Train the members one after the other, on the same images and cache; returns their directories."""
        assert self.members is not None
        backbones = list(self.backbones) or [self.backbone]
        stage = replace(self, data=IngestOnce.of(self.data, version))
        folders = []
        for number in range(self.members):
            backbone, seed = backbones[number % len(backbones)], self.seed + number // len(backbones)
            fold = f"{number + 1}/{self.members}" if self.folds else None
            without = "" if fold is None else f", without part {fold} of the training images"
            say(f"\nMember {number + 1} of {self.members}: {backbone.name}, seed {seed}{without}.")
            folder = f"members/{number + 1}"
            Winner(stage, files.path, backbone, version, run_id).train_member(folder, seed, fold)
            folders.append(str(files.path / folder))
        return folders

    def _select(self, members: Members, version: DatasetVersion) -> tuple[Selection, np.ndarray, np.ndarray]:
        """Return which members are chosen by the validation images, the ms (M,) that each takes, and the logits.

        Those are (N, K), of the chosen members together, for the validation images.
        """
        samples = version.samples("validation")
        grid = Grid(members.predictors, (self.crops,), version.decoding, members.references, self.average)
        times = measure(grid, samples.paths, self.evaluation.batch_size)[:, 0]
        logits = self._logits(grid, version, "validation")[:, 0]  # (M, N, K)
        numbers = [grid.class_names.index(name) for name in version.class_names]
        labels = np.array(numbers)[samples.labels]
        if self.choose in SOUPS:
            selection = select_last(logits, labels)
        elif self.choose == "all":
            selection = select_all(logits, labels, self.average)
        else:
            selection = select_greedily(logits, labels, times.tolist(), self.ms_per_image, self.average)
        return selection, times, mean_logits(logits, np.array(selection.shares), self.average)

    def _with_soup(
        self,
        members: Members,
        selection: Selection,
        version: DatasetVersion,
        files: RunDirectory,
        execution: Execution,
    ) -> Members:
        """Return the members and, as the last, one whose weights are the mean of theirs."""
        from graftline.pipeline.soup import make_soup, make_uniform_soup  # as above

        folder = files.path / "soup"
        if self.choose == "soup":
            make_uniform_soup(members, version, folder, self.evaluation)
        else:
            make_soup(members, selection.alone, version, folder, self.evaluation)
        return self._open([*members.references, str(folder)], execution)

    def _calibrate_mean(
        self, members: Members, selection: Selection, logits: np.ndarray, version: DatasetVersion
    ) -> tuple[CalibrationFit, DecisionFit]:
        """Calibrate the mean (N, K) on the validation images and choose the decision, as a training does."""
        everyone = members.ensemble(selection.shares, self.crops, {}, self.average)
        predictions = predict_split(everyone, version, "validation", known_logits=logits)
        fit, decision = learn(predictions, self._wanted, self.seed)
        say(" ".join(one for one in (fit.sentence, decision.sentence) if one))
        return fit, decision

    def _logits(self, grid: Grid, version: DatasetVersion, split: str) -> np.ndarray:
        """Return the logits (M, S, N, K) of the images of a split."""
        paths = version.samples(split).paths
        with progress(f"Classifying the {split} images with {len(grid.members)} models", total=len(paths)) as bar:
            return grid.logits(paths, self.evaluation.batch_size, lambda done: bar.advance(bar.task_ids[0], done))

    def _save(
        self,
        members: Members,
        selection: Selection,
        adjusted: tuple[CalibrationFit, DecisionFit],
        version: DatasetVersion,
        files: RunDirectory,
    ) -> Path:
        fit, decision = adjusted
        card = {
            "dataset": version.name,
            "dataset_digest": version.digest,
            "validation_digest": version.split_digests["validation"],
            "test_digest": version.test_digest,
            "validation": {"val/loss": selection.loss},
            "members": [members.references[number] for number in selection.chosen],
            "calibration": fit.to_json(),
            "decision": {"sentence": decision.sentence},
        }
        folders = [members.directories[number] for number in selection.chosen]
        shares = [selection.shares[number] for number in selection.chosen]
        adjustment = fit.calibration, decision.decision
        return save_ensemble(files.bundle, folders, shares, self.crops, card, *adjustment, self.average)

    def _finish(
        self,
        run: "Run",
        bundle: Path,
        members: Members,
        selection: Selection,
        version: DatasetVersion,
        execution: Execution,
    ) -> EnsembleResult:
        """Test the ensemble once, beside its best member; print, log and register it."""
        predictor = Ensemble.from_directory(bundle, self.evaluation.engine, execution)
        result, rows, values = None, list[GridRow](), dict[str, float]()
        files = RunDirectory(run.directory)
        if not any(version.counts()["test"].values()):
            warn(NOT_TESTED)
        else:
            result, rows = self._test(predictor, members, selection, version)
            print_scores(result.scores, f"{version.name}: test split")
            say(f"On the test images, over its best member with one crop: {sentence(rows[-1], rows[0])}")
            write_evaluation(result, files.test)
            values = log_evaluation(run, result, files.test, step=0)
            run.log_metrics(
                {"gain/accuracy": rows[-1].accuracy_gain.value, "cost/ms_per_image": rows[-1].milliseconds}, 0
            )
            page = self._write_report(predictor, members, result, rows, version, run)
            run.log_artifact(page)
        write_model_card(bundle, self.data, version, result, run.id)
        example = read_replay(bundle)[0][0].read_bytes()
        tags = {"graftline.bundle_digest": predictor.digest, **score_tags({} if result is None else result.scores)}
        uri = run.log_model(bundle, registered_name=version.name, input_example=example, metrics=values, tags=tags)
        return EnsembleResult(
            selection=selection,
            rows=rows,
            run_id=run.id,
            model_uri=uri,
            directory=files.path,
            version=version,
            scores=ScoresTable({} if result is None else result.scores),
            facts={"dataset_digest": version.digest, "run_id": run.id, "model_uri": uri, "shares": selection.shares},
            metrics={} if result is None else result.metrics_json(),
            table=[
                ("ensemble", os.path.relpath(bundle)),
                ("run", run.url or run.id),
                ("model", uri or "not in the registry"),
            ],
        )

    def _write_report(
        self,
        predictor: Ensemble,
        members: Members,
        result: EvaluationResult,
        rows: Sequence[GridRow],
        version: DatasetVersion,
        run: "Run",
    ) -> Path:
        tested = result.predictions
        report = Report(
            title=f"{len(predictor.members)} models on {version.name}, {crops_in_words(self.crops)}",
            kind="ensemble",
            facts={
                "Data": f"{version.name}, version {version.digest}",
                "Images": f"{len(tested.paths):,} ({tested.split} split), digest {tested.split_digest}",
                "Average": f"of {self.average}",
                "Run": run.id,
            },
            result=result,
            calibrated=Calibrated.of_card(predictor.card),
            members_and_crops=MembersAndCrops(
                rows,
                [f"{label}, {reference}" for label, reference in zip(members.labels, members.references, strict=True)],
                [f"Over its best member with one crop: {sentence(rows[-1], rows[0])}"],
            ),
            missing=[comparison_of(run.id)],
        )
        return write_report(run.directory, report)

    def _test(
        self, predictor: Ensemble, members: Members, selection: Selection, version: DatasetVersion
    ) -> tuple[EvaluationResult, list[GridRow]]:
        """Return the ensemble's scores, and the rows of its best member with one crop and of itself."""
        sets = tuple(dict.fromkeys(("1", self.crops)))
        numbers = sorted({*selection.chosen, selection.best})
        tested = tuple(members.predictors[number] for number in numbers)
        names = tuple(members.references[number] for number in numbers)
        grid = Grid(tested, sets, version.decoding, names, self.average)
        shares = np.array([selection.shares[number] for number in numbers])
        logits = self._logits(grid, version, "test")  # (M, S, N, K)
        mean = predictor.calibration.apply(mean_logits(logits[:, -1], shares, self.average))
        result = self.evaluation.run(predictor, version, known_logits=mean)
        times = measure(grid, version.samples("test").paths, self.evaluation.batch_size)
        best, used = numbers.index(selection.best), shares > 0
        candidates = [
            Candidate((selection.best,), "1", logits[best, 0], float(times[best, 0])),
            Candidate(tuple(selection.chosen), self.crops, mean, float(times[used, -1].sum())),
        ]
        labels = result.predictions.labels
        return result, score_candidates(candidates, labels, self.evaluation.resamples, self.evaluation.seed)

    def _start_ensemble(self, version: DatasetVersion, files: RunDirectory) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"ensemble {files.path.name}",
            experiment=version.name,
            directory=files.path,
            tags={STAGE: "ensemble"},
        )


def _require_version(members: Members, version: DatasetVersion) -> None:
    """Make sure that no member has been trained on the images that choose among them, or test them.

    Raises:
        UserError: a member was trained on a version with other validation or test images.
    """
    held_out = {"validation_digest": version.split_digests["validation"], "test_digest": version.test_digest}
    for reference, predictor in zip(members.references, members.predictors, strict=True):
        trained = predictor.card.get("dataset_digest")
        if trained != version.digest and any(predictor.card.get(key) != held_out[key] for key in held_out):
            raise UserError(
                f"{reference} was trained on dataset version {trained}, but the images are now version "
                f"{version.digest}, of which it may have seen those that test it: leave it out, or train it anew."
            )
