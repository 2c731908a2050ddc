"""Evaluate: a bundle on the test split of the data set that it was trained on, or on all images of another."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graftline.augment.crops import CROP_SETS
from graftline.bundle.ensemble import AnyPredictor, Ensemble
from graftline.bundle.grid import Average, Grid
from graftline.console import say, warn
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.evaluation.grid import evaluate_grid
from graftline.execution import Accelerator, Execution
from graftline.pipeline.bundles.source import REGISTERED, find_model_uri, open_bundle
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.dataset_versions.trained_on import run_of_bundle
from graftline.pipeline.ensembles.grid_scoring import (
    GRID_FIGURE,
    GRID_TABLE,
    GridOutcome,
    log_grid,
    name_grid,
    write_grid,
)
from graftline.pipeline.ensembles.members import label_of, open_members, shared_backbone
from graftline.pipeline.evaluating.scoring import FIGURES_FOLDER, PREDICTIONS_FILE, log_evaluation, write_evaluation
from graftline.pipeline.evaluating.seen_images import count_seen_images, seen_facts
from graftline.pipeline.evaluating.slices import SliceReport, write_slices
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.logged_logits import find_logged, find_logged_of_members
from graftline.pipeline.runs.missing import missing_of_evaluation
from graftline.pipeline.runs.setup import log_setup
from graftline.pipeline.runs.stage_summaries import find_summaries
from graftline.pipeline.stage import StageResult
from graftline.pipeline.training.result import MOST_PROBABLE_ANSWER
from graftline.report.content import Calibrated, Report
from graftline.report.grid_tables import crops_harm, crops_in_words, print_grid, print_members, sentence
from graftline.report.run_note import run_note
from graftline.report.run_report import write_report
from graftline.report.tables import print_scores
from graftline.tracking.names import SEEN_IN_TRAINING, STAGE
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run


@dataclass(frozen=True, kw_only=True)
class EvaluateResult(StageResult):
    """What the stage ``evaluate`` found, and the run that has it."""

    evaluation: EvaluationResult
    run_id: str


@dataclass(frozen=True)
class Evaluate:
    """The stage ``evaluate`` (Hydra target of conf/evaluate.yaml).

    Attributes:
        data: the images. Of the data set that the model was trained on, its test images are classified; of any other,
            all.
        evaluation: how they are classified and scored.
        tracking: where models and runs are looked up, and the evaluation is logged.
        bundle: a bundle's directory, a run's id or directory, ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``; None:
            ``runs`` are given.
        runs: several of these, ``latest``, or ``best:N``, alone and averaged.
        crops: names of sets of crops; each is averaged over, and they are compared.
        average: what of crops and members is averaged.
        shares: how much each of ``runs`` counts in their averages, beside the others; none: all count alike.
        name: of the run in MLflow; None: the models and the data set.
        accelerator: where the models are run.
        split: train, validation or test: these images are classified; all: all are; None: as is said of ``data``.
        reuse: whether the logits are taken that a run has logged of the same bundle for the same images.
    """

    data: Ingest
    evaluation: Evaluation
    tracking: Tracking
    bundle: str | None = None
    runs: Sequence[str] = ()
    crops: Sequence[str] = ("1",)
    average: Average = "probabilities"
    shares: Sequence[float] = ()
    name: str | None = None
    accelerator: Accelerator = "auto"
    split: Literal["all", "train", "validation", "test"] | None = None
    reuse: bool = True

    def __post_init__(self) -> None:
        if (self.bundle is None) == (not self.runs):
            raise UserError("Evaluate.bundle or Evaluate.runs is needed, and not both: say what is to be evaluated.")
        unknown = [name for name in self.crops if name not in CROP_SETS]
        if unknown or not self.crops:
            raise UserError(
                f"Evaluate.crops has {unknown[0] if unknown else 'nothing'}: take some of {', '.join(CROP_SETS)}."
            )
        for name in ("crops", "runs"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"Evaluate.{name} names the same twice: leave one out.")
        if self.shares and not self.runs:
            raise UserError("Evaluate.shares is of Evaluate.runs that are averaged: name these, or leave it out.")
        if wrong := [one for one in self.shares if not 0 < one < math.inf]:
            raise UserError(f"Evaluate.shares has {wrong[0]:g}: each share is above 0 and finite.")

    def run(self, directory: Path) -> EvaluateResult:
        """Classify the images, score that and track it."""
        self.tracking.check(self.data.dataset_name())
        execution = Execution.local(self.accelerator)
        if self.bundle is None or list(self.crops) != ["1"]:
            return self._run_grid(directory, execution)
        if self.average != "probabilities":
            warn("average is left alone: one bundle with one crop is evaluated, and nothing is averaged.")
        model_uri = find_model_uri(self.bundle, self.tracking)
        predictor, bundle = open_bundle(model_uri or self.bundle, self.tracking, self.evaluation.engine, execution)
        version, split, seen = self._images(predictor, {self.bundle: predictor.card})
        with self._start_run(f"{_name(self.bundle, bundle)} on {version.name}", version, directory, seen) as run:
            say(f"Run {run.id}.")
            log_setup(run, version)
            logged = find_logged(predictor, version, split, self.tracking) if self.reuse else None
            result = self.evaluation.run(
                replace(predictor, decoding=version.decoding),
                version,
                split,
                known_logits=None if logged is None else logged.logits,
                known_from="" if logged is None else str(logged),
                known_refused=None if logged is None else logged.refused,
            )
            result = result.of_split(self.split or split)
            print_scores(result, f"{version.name}: {result.predictions.split_in_words}")
            write_evaluation(result, directory)
            slices = write_slices(result.predictions, version, directory)
            report = self._write_report(result, predictor, bundle, version, directory, slices, run.id, seen)
            log_evaluation(run, result, directory, step=0)
            run.log_artifact(report)
            run.describe(self._note(run.id, result, seen))
        facts = {"model_uri": model_uri, "bundle": self.bundle, "seen_in_training": seen}
        table = [
            ("report", os.path.relpath(report)),
            ("predictions", os.path.relpath(directory / PREDICTIONS_FILE)),
            ("images", f"{result.images_per_second:,.0f} per second"),
        ]
        return _summarize(run, version, result, slices, facts, table)

    def _run_grid(self, directory: Path, execution: Execution) -> EvaluateResult:
        """Classify the images with several members or sets of crops, score all combinations and track that."""
        model_uri = None if self.bundle is None else find_model_uri(self.bundle, self.tracking)
        references = self.runs or [model_uri or str(self.bundle)]
        members = open_members(references, self.tracking, self.data.dataset_name(), self.evaluation.engine, execution)
        members.warn_of_decisions()
        members.warn_of_refusals()
        if self.shares and len(self.shares) != len(members.predictors):
            raise UserError(
                f"Evaluate.shares has {len(self.shares)} numbers, and Evaluate.runs leads to "
                f"{len(members.predictors)} models: give one for each, as in 2,1,1."
            )
        whole = members.everyone(self.crops[-1], self.average, self.shares)
        # it refuses what they cannot take
        grid = Grid(members.predictors, tuple(self.crops), whole.decoding, members.references, self.average)
        cards = [predictor.card for predictor in members.predictors]
        version, split, seen = self._images(whole, dict(zip(members.references, cards, strict=True)))
        whole = replace(whole, decoding=version.decoding)
        grid = replace(grid, decoding=version.decoding)
        name = name_grid(members, self.crops, whole, version)
        with self._start_run(name, version, directory, seen) as run:
            say(f"Run {run.id}.")
            log_setup(run, version)
            result = evaluate_grid(self.evaluation, grid, whole, version, split, self._known(grid, version, split))
            result = replace(result, whole=result.whole.of_split(self.split or split))
            tested = result.whole.predictions
            print_members(members.labels, members.references)
            print_grid(
                result.rows,
                f"{version.name}: {tested.split_in_words}, {len(tested.paths):,} images; [95 % intervals]",
            )
            gain = sentence(result.whole_row, result.rows[0])
            for told in (gain, *result.verdict_notes, *crops_harm(self.crops)):
                say(told)
            slices = write_slices(tested, version, directory)
            outcome = GridOutcome(RunDirectory(directory), version, members, whole, result, slices, seen)
            report = write_grid(outcome, run.id)
            log_evaluation(run, result.whole, directory, step=0)
            log_grid(run, outcome)
            run.log_artifact(report)
        facts = {"model_uri": model_uri, "members": list(members.references), "seen_in_training": seen}
        table = [
            ("report", os.path.relpath(report)),
            ("all combinations", os.path.relpath(directory / GRID_TABLE)),
            ("picture", os.path.relpath(directory / FIGURES_FOLDER / GRID_FIGURE)),
            ("images", f"{result.whole.images_per_second:,.1f} per second, on all crops"),
        ]
        return _summarize(run, version, result.whole, slices, facts, table)

    def _known(self, grid: Grid, version: DatasetVersion, split: str) -> dict[int, np.ndarray]:
        """Return what runs have logged of the members, by their numbers."""
        if not self.reuse:
            return {}
        batch_size = self.evaluation.batch_size
        return find_logged_of_members(grid.members, grid.crops, version, split, self.tracking, batch_size)

    def _images(
        self, predictor: AnyPredictor, cards: Mapping[str, Mapping[str, Any]]
    ) -> tuple[DatasetVersion, str, int]:
        """Return the images to classify: a dataset version, which split of it, and how many have trained a member.

        Args:
            predictor: has the classes and the decoding.
            cards: what is known of the training of each member, by reference; the first one's test images are taken.
        """
        data = with_parent(self.data, self.tracking)
        trained = _trained_digests(next(iter(cards.values())))
        ingested, split = data.run_as_test(predictor.class_names, trained, self.split, predictor.decoding)
        version = ingested.version
        if version.decoding.identity() != predictor.decoding.identity():
            warn("The images are decoded as data.decode says, not as the bundle was trained: leave it out for that.")
        counts = {name: number for name, number in version.counts()[split].items() if number > 0}
        if not counts:
            raise UserError(
                f"There are no {split} images in {version.name}, as the bundle was trained: evaluate it on other "
                "images, or take split=validation or split=all."
            )
        if (absent := len(predictor.class_names) - len(counts)) > 0:
            say(f"The model knows {len(predictor.class_names)} classes; there are no images of {absent} of them.")
        digests = {version.digest}
        if any(version.counts()["test"].values()):  # all splits without images have one digest
            digests.add(version.test_digest)
        may_have_seen = {
            one: card for one, card in cards.items() if split != "test" or not digests & set(_trained_digests(card))
        }
        seen = count_seen_images(version, split, may_have_seen, self.tracking, Path(self.data.directory))
        return version, split, seen

    def _start_run(self, name: str, version: DatasetVersion, directory: Path, seen: int) -> "Run":
        return self.tracking.start(
            run_name=self.name or name,
            experiment=version.name,
            directory=directory,
            tags={STAGE: "evaluate", SEEN_IN_TRAINING: str(seen)},
        )

    def _note(self, run_id: str, result: EvaluationResult, seen: int) -> str:
        """Return what the page of the run shows first."""
        tested = result.predictions
        images = f"{len(tested.paths):,} of {tested.dataset} ({tested.split_in_words}), digest `{tested.split_digest}`"
        facts = {"Bundle": f"`{self.bundle}`", "Images": images, **seen_facts(seen)}
        return run_note(run_id, result.scores, facts)

    def _write_report(
        self,
        result: EvaluationResult,
        predictor: AnyPredictor,
        bundle: Path,
        version: DatasetVersion,
        directory: Path,
        slices: SliceReport,
        run_id: str,
        seen: int,
    ) -> Path:
        tested, card = result.predictions, predictor.card
        told = [card[name]["sentence"] for name in ("decision", "refusal") if name in card and card[name]["sentence"]]
        is_of_training = version.digest == card.get("dataset_digest")
        explains = predictor.digest if is_of_training else ""
        summaries = find_summaries(version, explains, tested.split, shared_backbone([bundle]))
        is_ensemble = isinstance(predictor, Ensemble)
        explained = f"{os.path.relpath(bundle)}/members/1" if is_ensemble else str(self.bundle)
        crops = predictor.crops if isinstance(predictor, Ensemble) else "1"
        report = Report(
            title=f"{bundle.name} on {version.name}",
            kind="evaluation",
            facts={
                "Bundle": f"{self.bundle}, digest {predictor.digest}",
                "Data": f"{version.name}, version {version.digest}",
                "Images": f"{len(tested.paths):,} ({tested.split_in_words}), digest {tested.split_digest}",
                "Speed": f"{result.images_per_second:,.0f} images per second, {crops_in_words(crops)}",
                "Run": run_id,
            },
            result=result,
            calibrated=Calibrated.of_card(card),
            decision=told or [MOST_PROBABLE_ANSWER],
            slices=slices.slices,
            summaries=summaries,
            notes=[*seen_facts(seen).values(), slices.sentence],
            missing=missing_of_evaluation(
                RunDirectory(directory),
                run_id,
                None if is_ensemble else str(self.bundle),
                split=tested.split,
                is_test=tested.split == "test" and seen == 0,
                explained=explained if is_of_training else None,
                summaries=summaries,
            ),
        )
        return write_report(directory, report)


def _summarize(
    run: "Run",
    version: DatasetVersion,
    evaluation: EvaluationResult,
    slices: SliceReport,
    facts: Mapping[str, Any],
    table: Sequence[tuple[str, str]],
) -> EvaluateResult:
    """Return what goes into ``result.json`` and into the table at the end: what all evaluations have, and more."""
    common = {"dataset_digest": version.digest, "run_id": run.id, "run_name": run.name}
    return EvaluateResult(
        facts={**common, "worse_slices": slices.flagged, **facts},
        metrics=evaluation.metrics_json(),
        table=[("run", run.url or run.id), *table],
        evaluation=evaluation,
        run_id=run.id,
    )


def _name(reference: str, bundle: Path) -> str:
    """Return a model's name: as it is registered, of the run that made it, or what it is where that is not known."""
    if reference.startswith(REGISTERED):
        return reference
    return str(RunDirectory(run_of_bundle(bundle)).read_result().get("run_name") or label_of(bundle))


def _trained_digests(card: Mapping[str, Any]) -> list[str]:
    """Return the digests of the version that a model was trained on, and of its test split."""
    return [str(card[key]) for key in ("dataset_digest", "test_digest") if key in card]
