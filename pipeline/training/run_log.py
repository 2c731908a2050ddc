"""What MLflow gets of a training, beside its artifacts: what the network costs, its epochs, that frozen was frozen."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.backbones.backbone import Graft
from graftline.backbones.cost import NetworkCost, count
from graftline.bundle.golden import read_golden
from graftline.bundle.layout import read_description
from graftline.bundle.save import add_to_card
from graftline.console import reworded, say
from graftline.data.ingest import Ingest
from graftline.data.loaders import decode_sample
from graftline.evaluation.metrics import metrics_json
from graftline.files import atomic_file, write_json
from graftline.freezing.batchnorm import BatchNormStatistics, statistics
from graftline.freezing.rule import FreezeDecision
from graftline.pipeline.evaluating.scoring import log_evaluation, score_tags, write_evaluation
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.training.model_card import write_model_card
from graftline.pipeline.training.result import (
    TrainOutcome,
    print_measurement,
    print_policy_choice,
    write_run_report,
)
from graftline.report.cost_tables import to_json
from graftline.tracking.names import (
    BUNDLE_DIGEST,
    FROZEN_DIGEST,
    PREDICTIONS,
    VALIDATION,
    VALIDATION_ACCURACY,
    VALIDATION_LOSS,
)
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.optimizers import optimizer_class
from graftline.training.policy_choice import PolicyChoice
from graftline.training.results import TrainingResult, log_loss
from graftline.training.setup import TrainingSetup
from graftline.training.training_source import TrainingSource

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

STATISTICS: Mapping[BatchNormStatistics, str] = {
    "trained": "BatchNorm's statistics are trained along",
    "frozen": "BatchNorm keeps the statistics that the weights came with",
    "adapted": "BatchNorm begins with statistics of the training images",
}


class LoggedEvents(FitEvents):
    """Says what is trained on what, shows how it is augmented, and logs each epoch.

    Attributes:
        source: what the last phase was trained on; None before it, and where a resume found it finished.
    """

    def __init__(
        self, run: "Run", augmentation: Path, ends: Callable[[KeyboardInterrupt], bool] = lambda _: False
    ) -> None:
        """Listen.

        Args:
            run: that is told.
            augmentation: picture of what the network sees of a training image, where images are augmented.
            ends: whether an interrupt ends a fit with its best epoch so far, not the whole run.
        """
        self.source: TrainingSource | None = None
        self._run, self._augmentation, self._ends = run, augmentation, ends

    def on_source(self, source: TrainingSource) -> None:
        """Say what is trained on what, and show what is made of it."""
        self.source = source
        say(reworded(source.sentence))
        if source.augmented:
            log_augmentation(self._run, source.setup, self._augmentation)

    def on_start(self, learning_rates: Metrics, step: int) -> None:
        """Log the learning rates of a phase's first step; a resume does not log them again."""
        self._run.log_metrics(learning_rates, step, once=True)

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        """Log an epoch's metrics; one that a resume trains again is not logged again."""
        self._run.log_metrics(metrics, step, once=True)

    def on_begin_anew(self, step: int) -> None:
        """Log the epochs of the phase once more."""
        self._run.begin_anew(step)

    def on_interrupt(self, interrupt: KeyboardInterrupt) -> bool:
        """Ask whoever started the run."""
        return self._ends(interrupt)


def summary(setup: TrainingSetup, decision: FreezeDecision, backbone: str) -> dict[str, str | int]:
    """Return what tells runs apart, for the first parameters of the run and for its name."""
    height, width = setup.graft.preprocessing.image_size
    is_timed = any(plan.seconds is not None for plan in decision.plans)
    return {
        "network": backbone,
        "trained": decision.trained_part(setup.graft.network),
        "image_size": height if height == width else f"{height} x {width}",
        "epochs": "by the clock" if is_timed else sum(plan.epochs for plan in decision.plans),
        "optimizer": optimizer_class(setup.optimizer).__name__,
        "seed": setup.seed,
        **({"batchnorm": setup.batchnorm} if statistics_in_words(setup, decision) else {}),
    }


def statistics_in_words(setup: TrainingSetup, decision: FreezeDecision) -> str:
    """Return what becomes of BatchNorm's statistics, beside those of frozen layers, which keep theirs; maybe nothing.

    ``setup.batchnorm`` is what ``freeze.batchnorm=auto`` has come to.
    """
    only_head = all(plan.only_head for plan in decision.plans)
    if not statistics(setup.graft.network) or (only_head and setup.batchnorm != "adapted"):
        return ""
    return STATISTICS[setup.batchnorm]


def own_name(facts: Mapping[str, str | int]) -> str:
    """Return a name that says what is special about a run.

    >>> own_name({"network": "resnet50.a1_in1k", "trained": "head", "image_size": 224, "epochs": 30, "seed": 0})
    'resnet50.a1_in1k head 224px seed0'
    """
    return f"{facts['network']} {facts['trained']} {facts['image_size']}px seed{facts['seed']}"


def log_decision(run: "Run", setup: TrainingSetup, decision: FreezeDecision, files: RunDirectory) -> None:
    """Say, draw and log what is frozen and why."""
    run.log_artifact(files.freeze_decision, "freeze")
    if decision.measurement is not None:
        from graftline.report.depth_figure import depth_figure  # matplotlib takes a second
        from graftline.report.style import save

        print_measurement(decision.measurement)
        if (figure := depth_figure(decision.measurement)) is not None:
            run.log_artifact(save(figure, files.measurement), "freeze")
    for plan in decision.plans:
        say(f"Freeze: {plan.sentence(setup.graft.network)}.")
    if setup.frozen_statistics and (sentence := statistics_in_words(setup, decision)):
        say(f"{sentence} (freeze.batchnorm).")
    run.set_tags({"graftline.freeze": decision.reason})


def log_best_epoch(run: "Run", trained: TrainingResult) -> None:
    """Log what the epoch that is kept came to on validation images, by which runs are chosen."""
    best, steps = trained.history.best, trained.history.steps
    run.log_metrics({VALIDATION_LOSS: log_loss(best), VALIDATION_ACCURACY: best["val/accuracy"]}, step=steps)


def log_augmentation(run: "Run", setup: TrainingSetup, file: Path) -> None:
    """Draw and log what the policy makes of a training image."""
    from graftline.augment.preview import preview_sheet  # matplotlib takes a second
    from graftline.report.style import COMPRESSION

    image = decode_sample(setup.version.samples("train"), 0)
    sheet = preview_sheet(image, setup.policy, setup.graft.preprocessing, setup.seed)
    with atomic_file(file) as temporary:
        sheet.savefig(temporary, format="png", pil_kwargs={"compress_level": COMPRESSION})
    run.log_artifact(file, "figures")


def log_cost(run: "Run", graft: Graft, name: str, file: Path) -> None:
    """Log what a forward pass of the network costs per image, with the head that is trained."""
    size, channels = graft.preprocessing.image_size, graft.preprocessing.channels
    cost = count(graft.network, size, channels, name)
    values = {
        "cost/parameters": cost.parameters,
        "cost/gmacs": cost.macs / 1e9,
        "cost/activation_mb": cost.activation_bytes / 1e6,
    }
    run.log_metrics(values, step=0)
    write_json(file, to_json(NetworkCost(name, cost)))
    run.log_artifact(file, "cost")


def log_policy_choice(run: "Run", choice: PolicyChoice, files: RunDirectory) -> None:
    """Say and log which transforms are used and why."""
    print_policy_choice(choice)
    say(f"Augmentation: {choice.sentence()}.")
    run.log_artifact(files.policy_choice, "augment")
    run.set_tags({"graftline.augment": ", ".join(choice.kept) or "none"})


def log_calibration(run: "Run", outcome: TrainOutcome) -> None:
    """Log how the probabilities are calibrated, what that does to validation images it was not fitted on, and those."""
    fit = outcome.adjusted.calibration
    values = {"temperature": fit.calibration.temperature, "log_loss_change": fit.log_loss_change}
    metrics = {f"calibration/{name}": value for name, value in values.items() if value is not None}
    run.log_metrics(metrics, step=outcome.trained.history.steps)
    if outcome.adjusted.validation is not None:
        run.log_artifact(outcome.adjusted.validation.save(outcome.files.validation / PREDICTIONS), VALIDATION)


def log_freeze_check(run: "Run", outcome: TrainOutcome) -> None:
    """Say and log that what was frozen in the phase that is kept has not moved, and what the cache changed."""
    phase, steps = outcome.trained.kept, outcome.trained.history.steps
    record = phase.freeze_record
    frozen = "nothing was frozen"
    if record["frozen_tensors"] > 0:
        frozen = f"{record['frozen_tensors']} frozen tensors are bit for bit what they were"
    seen = f"{record['tensors_with_gradient']} of {record['trained_tensors']} trained ones had gradients"
    say(f"Freeze check: {frozen}, {seen}.")
    counts = {f"freeze/{name}": float(value) for name, value in record.items() if isinstance(value, int)}
    run.log_metrics(counts, step=steps)
    run.set_tags({FROZEN_DIGEST: record["frozen_digest"]})
    if (change := phase.cache_change) is not None:
        say(f"Cached activations change a predicted probability by {change:.1e} at most (of those looked at).")
        run.log_metrics({"features/largest_change": change}, step=steps)
    checkpoints = outcome.files.checkpoints
    for file in FitDirectory(checkpoints).freeze_checks():
        run.log_artifact(file, str(Path("freeze") / file.parent.relative_to(checkpoints)))


def log_outcome(run: "Run", outcome: TrainOutcome, data: Ingest) -> str | None:
    """Log and register what came of a training on images from a source; returns the model's URI."""
    version, result, bundle = outcome.version, outcome.result, outcome.files.bundle
    add_to_card(bundle, metrics=metrics_json(outcome.scores))
    values: dict[str, float] = {}
    if result is not None:
        write_evaluation(result, outcome.files.test)
        values = log_evaluation(run, result, outcome.files.test, step=outcome.trained.history.steps)
    log_calibration(run, outcome)
    log_freeze_check(run, outcome)
    log_best_epoch(run, outcome.trained)
    run.describe(outcome.description(run.id))
    run.log_artifact(write_run_report(outcome, run.id))
    write_model_card(bundle, data, version, result, run.id, outcome.slices)
    example = read_golden(bundle)[0][0].read_bytes()  # a made-up image where real ones may not leave
    run.set_tags({BUNDLE_DIGEST: read_description(bundle)["digest"]})
    tags = {BUNDLE_DIGEST: read_description(bundle)["digest"], **score_tags(outcome.scores)}
    return run.log_model(bundle, registered_name=version.name, input_example=example, metrics=values, tags=tags)
