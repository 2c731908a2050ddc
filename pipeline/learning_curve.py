"""Learning curve: activations → heads on ever more training images → what twice the labels would bring."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from graftline.backbones.backbone import Backbone
from graftline.console import counted, print_table, say, warn
from graftline.data.folds import assign_folds
from graftline.data.ingest import Ingest
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.bootstrap import require_resampling
from graftline.evaluation.class_value import PER_LABELS, ClassValues, class_values, num_fits
from graftline.evaluation.head_score import fit_head
from graftline.evaluation.learning_curve import (
    Activated,
    LearningCurve,
    check_validation,
    measure_curve,
    num_heads,
    subset_sizes,
)
from graftline.evaluation.metrics import Interval, metrics_json
from graftline.evaluation.notes import groups_in_words
from graftline.evaluation.subset import warn_of_one_group
from graftline.execution import Accelerator, Execution
from graftline.features.cache import Features
from graftline.files import atomic_file
from graftline.pipeline.dataset_versions.head_activations import activate, cut_below_head
from graftline.pipeline.dataset_versions.parent import with_parent
from graftline.pipeline.program import program
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.runs.setup import log_setup
from graftline.pipeline.runs.stage_summaries import CURVE_PICTURE
from graftline.pipeline.stage import StageResult
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.report.learning_curve_figure import gain_in_words, learning_curve_figure
from graftline.report.run_note import markdown_table
from graftline.report.style import save
from graftline.tracking.names import STAGE
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

FACTORS = (1.5, 2, 4)  # times the labels that there are
GAIN_COLUMNS = ("times the labels", "labels", "accuracy")
FEWEST_SEEDS = 3  # fewer say nothing of how much parts of one size differ


@dataclass(frozen=True, kw_only=True)
class LearningCurveResult(StageResult):
    """What the stage ``learning-curve`` found.

    Attributes:
        curve: what was measured, and what follows from it.
        classes: what the labels of each class are worth.
        run_id: of the MLflow run.
    """

    curve: LearningCurve
    classes: ClassValues
    run_id: str


@dataclass(frozen=True)
class LearningCurveStage:
    """The stage ``learning-curve`` (Hydra target of conf/learning-curve.yaml).

    Attributes:
        data: the images; those of the test split are not looked at.
        backbone: the network whose head is fitted, to more and more images.
        features: where its activations are cached.
        tracking: where the run is logged, and ``data.parent`` looked up if it is a run or a model.
        seeds: how many orders of the training images, at least 3; each gives a subset of each size. So many halves of
            each class are left out, too.
        resamples: how many give an interval, at least 100.
        name: of the run in MLflow; None: “learning curve of” the network.
        accelerator: where the activations are computed.
        cluster: over which the frozen pass is spread.
    """

    data: Ingest
    backbone: Backbone
    features: Features
    tracking: Tracking
    seeds: int = 10
    resamples: int = 1000
    name: str | None = None
    accelerator: Accelerator = "auto"
    cluster: NoCluster | RayCluster = NoCluster()  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        if self.seeds < FEWEST_SEEDS:
            raise UserError(
                f"LearningCurveStage.seeds is {self.seeds}, but it takes {FEWEST_SEEDS} to see how parts differ."
            )
        require_resampling("LearningCurveStage", self.resamples, seed=0)

    def run(self, directory: Path) -> LearningCurveResult:
        """Measure the curve, carry it on, print and draw it."""
        self.tracking.check(self.data.dataset_name())
        self.backbone.check()
        self.cluster.check()
        self.features.check()
        execution = Execution.local(self.accelerator)
        version = with_parent(self.data, self.tracking).run(("train", "validation")).version
        counts = {split: sum(classes.values()) for split, classes in version.counts().items()}
        check_validation(counts["validation"])
        subset_sizes(counts["train"], len(version.class_names))  # it says if there are too few
        warn_of_one_group(version.groups("train"))
        trunk = cut_below_head(self.backbone, version, self.features, execution, self.cluster)
        train, validation = activate(trunk, "train"), activate(trunk, "validation")
        curve = self._measure(train, validation, len(version.class_names))
        classes = self._value_classes(train, validation, version.class_names)
        if (groups := len(set(validation.groups))) < len(validation):
            say(f"{groups_in_words(len(validation), groups)}.")
        _print_curve(curve)
        _print_classes(classes)
        subtitle = f"heads on {self.backbone.name}, {version.name}; {len(validation):,} validation images"
        picture = save(learning_curve_figure(curve, subtitle), directory / CURVE_PICTURE)
        table = _write_points(curve, directory / "learning_curve.csv")
        with self._start_run(version, directory) as run:
            _log(run, version, curve, [picture, table])
            run.describe(self._note(version, curve, classes, RunDirectory(directory)))
        return LearningCurveResult(
            curve=curve,
            classes=classes,
            run_id=run.id,
            facts={
                "dataset_digest": version.digest,
                "backbone": self.backbone.name,
                "image_size_px": trunk.setup.graft.preprocessing.image_size[0],
                "run_id": run.id,
                "run_name": run.name,
                "sizes": curve.sizes.tolist(),
                "accuracy": [round(1 - error, 5) for error in curve.errors.tolist()],
                "check_holds": curve.check.holds,
                "label_next": classes.best,
            },
            metrics=_metrics(curve),
            table=[
                ("twice the labels", gain_in_words(curve, 2)),
                ("label next", classes.best or "no class in particular"),
                ("run", run.url or run.id),
                ("picture", os.path.relpath(picture)),
            ],
        )

    def _measure(self, train: Activated, validation: Activated, num_classes: int) -> LearningCurve:
        with counted("Fitting heads to parts", num_heads(len(train), num_classes, self.seeds)) as advance:
            return measure_curve(
                train, validation, num_classes, self.seeds, resamples=self.resamples, on_progress=advance
            )

    def _value_classes(self, train: Activated, validation: Activated, class_names: Sequence[str]) -> ClassValues:
        folds = assign_folds(train.labels, train.groups)
        head = fit_head(train.activations, train.labels, len(class_names), folds)
        with counted("Leaving out half of a class", num_fits(train, class_names, self.seeds)) as advance:
            return class_values(
                head, train, validation, class_names, self.seeds, resamples=self.resamples, on_progress=advance
            )

    def _note(self, version: DatasetVersion, curve: LearningCurve, classes: ClassValues, files: RunDirectory) -> str:
        """Return what the page of the run shows first."""
        told = [
            f"**Twice the labels: {gain_in_words(curve, 2)} of accuracy**",
            _check_in_words(curve),
            classes.sentence,
            markdown_table(GAIN_COLUMNS, _gain_rows(curve)),
            f"- **Data**: {version.name}, version `{version.digest}`, {curve.images:,} training images",
            f"- **Network**: heads on {self.backbone.name}",
        ]
        if files.overrides.exists():  # not where Python calls the stage
            told.append(f"- **Again**: `{files.command(program(), 'learning-curve')}`")
        return "\n\n".join(told[:4]) + "\n\n" + "\n".join(told[4:])

    def _start_run(self, version: DatasetVersion, directory: Path) -> "Run":
        return self.tracking.start(
            run_name=self.name or f"learning curve of {self.backbone.name}",
            experiment=version.name,
            directory=directory,
            tags={STAGE: "learning-curve"},
        )


def _print_curve(curve: LearningCurve) -> None:
    """Print the accuracy at each size and what more labels would bring, and whether such a forecast has held here."""
    rows = [
        (
            f"{size:,}",
            f"{100 * (1 - error):.1f} %",
            f"{100 * (1 - curve.law.error(size)[0]):.1f} %",
            f"{100 * spread:.1f}",
        )
        for size, error, spread in zip(
            curve.sizes.tolist(), curve.errors.tolist(), curve.by_seed.std(axis=0, ddof=1).tolist(), strict=True
        )
    ]
    print_table(
        "Accuracy on validation images", ("labels", "measured", "power law", "spread of the parts, points"), rows
    )
    print_table("What more labels would bring; 95 % intervals", GAIN_COLUMNS, _gain_rows(curve))
    tell = say if curve.check.holds else warn
    tell(_check_in_words(curve))


def _gain_rows(curve: LearningCurve) -> list[tuple[str, str, str]]:
    """Return what some times the labels would bring."""
    return [(f"{factor:g}", f"{factor * curve.images:,.0f}", gain_in_words(curve, factor)) for factor in FACTORS]


def _check_in_words(curve: LearningCurve) -> str:
    """Say how a forecast from few labels has held."""
    check = curve.check
    predicted, low, high = (100 * value for value in (check.predicted.value, check.predicted.low, check.predicted.high))
    sentence = (
        f"Checked where it is known: from up to {check.size:,} labels, {curve.images:,} were expected to bring "
        f"{predicted:+.1f} [{low:.1f}, {high:.1f}] points; they brought {100 * check.measured:+.1f}."
    )
    broken = "The curve is no power law here: trust the forecast less than its interval."
    return sentence if check.holds else f"{sentence} {broken}"


def _print_classes(classes: ClassValues) -> None:
    print_table(
        f"What {PER_LABELS} labels of a class are worth in log loss, from what half of them did; 95 % intervals",
        ("class", "images", "log loss", "interval"),
        [
            (
                one.name,
                f"{one.images:,}",
                f"{-one.worth.value:+.4f}",
                f"{-one.worth.high:+.4f} to {-one.worth.low:+.4f}",
            )
            for one in classes.values
        ],
    )
    say(classes.sentence)


def _write_points(curve: LearningCurve, file: Path) -> Path:
    """Write the accuracy of each size and seed as a table."""
    seeds = [f"seed_{seed}" for seed in range(len(curve.by_seed))]
    table = pd.DataFrame({"labels": curve.sizes, **dict(zip(seeds, 1 - curve.by_seed, strict=True))})
    with atomic_file(file) as temporary:
        table.to_csv(temporary, index=False)
    return file


def _metrics(curve: LearningCurve) -> dict[str, dict[str, float]]:
    """Return what more labels would bring, as ``result.json`` has it; shares of 1, not points."""
    gains: dict[str, Interval] = {f"gain/times_{factor:g}": curve.gain(factor) for factor in FACTORS}
    return metrics_json({**gains, "check/predicted": curve.check.predicted})


def _log(run: "Run", version: DatasetVersion, curve: LearningCurve, files: Sequence[Path]) -> None:
    """Log configuration, images, the curve over the number of labels as steps, what it promises, and its files."""
    log_setup(run, version)
    for size, error in zip(curve.sizes.tolist(), curve.errors.tolist(), strict=True):
        run.log_metrics({"learning_curve/accuracy": 1 - error}, step=size)
    gain = curve.gain(2)
    gains = {"": gain.value, "_low": gain.low, "_high": gain.high}
    run.log_metrics({f"learning_curve/gain_of_twice{end}": value for end, value in gains.items()}, step=curve.images)
    for file in files:
        run.log_artifact(file, "learning_curve")
