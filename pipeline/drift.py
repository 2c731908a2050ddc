"""Drift: images that a model has seen lately, beside those that it was judged on → an alarm, or none, with its page."""

import io
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graftline.bundle.ensemble import AnyPredictor
from graftline.bundle.reference import Reference
from graftline.console import counted, print_table, say, warn
from graftline.data.file_names import to_text
from graftline.data.image_list import find_images
from graftline.errors import UserError
from graftline.execution import Accelerator, Execution
from graftline.monitoring.accuracy import EstimatedAccuracy, estimate_accuracy
from graftline.monitoring.drift import (
    FEWEST_IMAGES,
    MOST_COMPARED,
    Drift,
    check_budget,
    check_reference,
    find_drift,
    most_moved,
)
from graftline.monitoring.gauges import write_gauges
from graftline.monitoring.store import read_window
from graftline.monitoring.window import Window, look_at_files
from graftline.pipeline.bundles.reference import load_reference
from graftline.pipeline.bundles.source import open_model
from graftline.pipeline.program import program
from graftline.pipeline.retraining.trigger import UNITS, read_time
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.stage import StageResult
from graftline.report.drift_page import NAMES, DriftReport, describe_chance, write_drift_page
from graftline.report.run_note import markdown_table
from graftline.report.thumbnails import Thumbnail, picture, thumbnails
from graftline.tracking.drift_checks import drift_tags
from graftline.tracking.tracking import Tracking

if TYPE_CHECKING:  # it loads MLflow, which a mistyped key must not wait for
    from graftline.tracking.run import Run

PAGE_FILE, GAUGES_FILE = "drift.html", "drift.prom"
COLUMNS = ("statistic", "distance", "usually", "rings\nbeyond", "by chance", "")
MOST_SHOWN = 12  # images that moved it most
SIDE = 192  # px of their pictures
MOST_CLASSES = 12  # whose shares are told


@dataclass(frozen=True, kw_only=True)
class DriftResult(StageResult):
    """What the stage ``drift`` found.

    Attributes:
        drift: what has changed.
        accuracy: what can be said of it.
        page: a file.
    """

    drift: Drift
    accuracy: EstimatedAccuracy
    page: Path


@dataclass(frozen=True)
class DriftStage:
    """The stage ``drift`` (Hydra target of conf/drift.yaml).

    Attributes:
        tracking: where the model is registered, and the check is logged.
        model: name of a registered model, which stands for its champion, or while it has none for the newest version
            that the gate has not refused; ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run's id, directory or
            bundle.
        images: a folder of images that is the window; None: what was monitored is.
        monitor: directory that servers and predictions have kept what they saw in.
        window: how far back it goes from now, such as ``7d``.
        checks_per_alarm: of how many checks of unchanged images one rings, on average.
        prometheus: file that the gauges go to, beside the one in the output directory; None: no other.
        seed: of draws.
        accelerator: where the model runs on ``images``.
    """

    tracking: Tracking
    model: str
    images: str | None = None
    monitor: str = "monitor"
    window: str = "7d"
    checks_per_alarm: int = 365
    prometheus: str | None = None
    seed: int = 0
    accelerator: Accelerator = "auto"

    def __post_init__(self) -> None:
        check_budget(self.checks_per_alarm)
        if read_time(self.window) in (None, 0):
            raise UserError(
                f"DriftStage.window is '{self.window}': give a time such as 7d or 12h ({', '.join(UNITS)})."
            )

    def run(self, directory: Path) -> DriftResult:
        """Compare the window with the model's reference, and write, log and print what that gives."""
        if self.prometheus is not None:
            _check_gauges(Path(self.prometheus).expanduser(), self.prometheus)
        files = None if self.images is None else self._find_files(Path(self.images).expanduser())
        name, predictor, bundle, origin = open_model(
            self.model, self.tracking, "onnx", Execution.onnx(self.accelerator)
        )
        reference = load_reference(bundle, origin.uri)
        check_reference(reference)
        window = self._look_back(predictor, origin.uri) if files is None else self._look(predictor, reference, files)
        if window.num_unreadable:
            unread = f"{window.num_unreadable:,} of {window.num_seen:,} images"
            warn(f"{unread} could not be read or answered, and are left out.")
        drift = find_drift(reference, window.observed, self.checks_per_alarm, self.seed)
        accuracy = estimate_accuracy(reference, window.observed, drift, self.seed)
        now = datetime.now(UTC)
        proposal = _proposal(drift, predictor)
        report = DriftReport(
            model=origin.uri,
            class_names=predictor.class_names,
            reference=reference,
            window=window,
            drift=drift,
            accuracy=accuracy,
            moved=self._moved(reference, window, drift, predictor),
            moved_by=drift.changes[0].name,
            proposal=proposal,
            facts=_facts_of_page(self, predictor, window),
            when=now,
        )
        page = write_drift_page(report, directory / PAGE_FILE)
        for file in (directory / GAUGES_FILE, *([Path(self.prometheus).expanduser()] if self.prometheus else [])):
            write_gauges(file, name, drift, accuracy, now.timestamp())
        run_id = self._log(predictor, drift, accuracy, directory)
        _print(drift)
        say(accuracy.sentence)
        if drift.rings:
            say(proposal)
        return _summarize(drift, accuracy, window, predictor, page, origin.uri, run_id)

    def _find_files(self, images: Path) -> list[Path]:
        """Return the files of the window.

        Raises:
            UserError: there are fewer than can be compared, which is told before the model is loaded.
        """
        files = find_images(images)
        if len(files) < FEWEST_IMAGES:
            raise UserError(
                f"DriftStage.images={self.images} is {len(files)} file{'' if len(files) == 1 else 's'}, and "
                f"{FEWEST_IMAGES} images are the fewest that can be compared: give more images."
            )
        return files

    def _look(self, predictor: AnyPredictor, reference: Reference, files: list[Path]) -> Window:
        """Classify files, or some of very many."""
        if len(files) > MOST_COMPARED:
            rows = np.sort(np.random.default_rng(self.seed).permutation(len(files))[:MOST_COMPARED])
            say(f"Of {len(files):,} files {MOST_COMPARED:,} are drawn: more would tell nothing more.")
            files = [files[row] for row in rows]
        with counted("Looking at images", len(files)) as advance:
            paths = [to_text(file) for file in files]
            return look_at_files(predictor, reference, paths, advance)

    def _look_back(self, predictor: AnyPredictor, uri: str) -> Window:
        """Read what was monitored."""
        directory, end = Path(self.monitor).expanduser(), time.time()
        seconds = read_time(self.window)
        assert seconds is not None, "it was read at the start"
        window = read_window(directory / predictor.digest, end - seconds, end, MOST_COMPARED, self.seed)
        if window is None:
            raise UserError(
                f"DriftStage.monitor={self.monitor} has nothing of {uri} in the last {self.window}: start "
                f"`{program()} serve` with its key monitor={self.monitor}, or give DriftStage.images, a folder."
            )
        return window

    def _moved(
        self, reference: Reference, window: Window, drift: Drift, predictor: AnyPredictor
    ) -> list[tuple[int, Thumbnail | None]]:
        """Return the images that moved the window most; those of a server only with pictures if it kept some."""
        rows = most_moved(reference, window.observed, drift.changes[0]).tolist()
        if self.images is not None:
            rows = rows[:MOST_SHOWN]
            return list(
                zip(rows, thumbnails([window.names[row] for row in rows], predictor.decoding, SIDE), strict=True)
            )
        rows = ([row for row in rows if row in window.pictures] or rows)[:MOST_SHOWN]
        kept = [window.pictures.get(row) for row in rows]
        return [(row, None if one is None else picture(io.BytesIO(one))) for row, one in zip(rows, kept, strict=True)]

    def _log(self, predictor: AnyPredictor, drift: Drift, accuracy: EstimatedAccuracy, directory: Path) -> str:
        """Log the check as a run; returns its id."""
        tracking = replace(self.tracking, system_metrics=False)
        with tracking.start(
            run_name=f"drift {predictor.digest[:8]}",
            experiment=str(predictor.card.get("dataset", "drift")),
            directory=directory,
            tags=drift_tags(predictor.digest, rings=drift.rings, monitored=self.images is None),
        ) as run:
            _log_metrics(run, drift, accuracy)
            run.log_artifact(directory / PAGE_FILE)
            run.log_artifact(directory / GAUGES_FILE)
            run.describe(self._note(predictor, drift, accuracy, directory))
            return run.id

    def _note(self, predictor: AnyPredictor, drift: Drift, accuracy: EstimatedAccuracy, directory: Path) -> str:
        """Return what the page of the run shows first."""
        facts = [
            f"- **Model**: {self.model}, digest `{predictor.digest}`",
            f"- **Images**: {self.images or f'{self.monitor}, the last {self.window}'}",
            f"- **Budget**: one false alarm in {self.checks_per_alarm:,} checks",
        ]
        if (files := RunDirectory(directory)).overrides.exists():  # not where Python calls the stage
            facts.append(f"- **Again**: `{files.command(program(), 'drift')}`")
        head = f"**{'Drift' if drift.rings else 'No drift'}**, {drift.num_images:,} images beside the reference"
        table = markdown_table([column.replace("\n", " ") for column in COLUMNS], _rows(drift))
        return "\n\n".join([head, accuracy.sentence, "\n".join(facts), table])


def _check_gauges(file: Path, given: str) -> None:
    """Make sure, before images are classified, that the gauges can be written beside a file's place, as they are.

    Raises:
        UserError: they cannot.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.stem}."):
            pass
        why = "is a directory" if file.is_dir() else None
    except OSError as error:
        why = f"cannot be written ({error.strerror})"
    if why is not None:
        raise UserError(f"DriftStage.prometheus={given} {why}: give a file, in a directory that you may write to.")


def _proposal(drift: Drift, predictor: AnyPredictor) -> str:
    ringing = ", ".join(NAMES[change.name] for change in drift.changes if change.rings)
    return (
        f"Look at the images that moved it first: a camera or a light may only need to be set right. If they are what "
        f"is to come, label some of them, add them to '{predictor.card.get('dataset')}' and run `{program()} retrain`."
        if ringing
        else ""
    )


def _facts_of_page(stage: DriftStage, predictor: AnyPredictor, window: Window) -> list[tuple[str, str]]:
    shares = _class_shares(window, predictor)
    return [
        ("images", stage.images or f"{stage.monitor}, the last {stage.window}"),
        ("unreadable", f"{window.num_unreadable:,}"),
        ("refused by the model", f"{window.num_refused:,}"),
        *([("classes to be expected, by the probabilities", _told_shares(shares))] if shares is not None else []),
        ("model", f"{stage.model}, digest {predictor.digest}"),
        ("budget", f"one false alarm in {stage.checks_per_alarm:,} checks"),
    ]


def _class_shares(window: Window, predictor: AnyPredictor) -> dict[str, float] | None:
    """Return the share of each class that is to be expected by all probabilities; None where they were not kept."""
    if window.class_shares is None:
        return None
    return dict(zip(predictor.class_names, window.class_shares.tolist(), strict=True))


def _told_shares(shares: dict[str, float]) -> str:
    """Return the largest shares in words."""
    largest = sorted(shares.items(), key=lambda one: -one[1])[:MOST_CLASSES]
    return ", ".join(f"{name} {share:.1%}" for name, share in largest) + (", …" if len(shares) > MOST_CLASSES else "")


def _log_metrics(run: "Run", drift: Drift, accuracy: EstimatedAccuracy) -> None:
    values = {f"drift/{change.name}": change.distance for change in drift.changes}
    values |= {f"drift_limit/{change.name}": change.limit for change in drift.changes}
    values |= {"drift/rings": float(drift.rings), "drift/p_value": drift.p_value, "drift/images": drift.num_images}
    if accuracy.estimate is not None:
        values["drift/estimated_accuracy"] = accuracy.estimate.value
    run.log_metrics(values, step=0)


def _print(drift: Drift) -> None:
    print_table(
        f"{drift.num_images:,} images beside the reference: " + ("drift" if drift.rings else "no drift"),
        COLUMNS,
        _rows(drift),
    )


def _rows(drift: Drift) -> list[tuple[str, ...]]:
    """Return what is known of each statistic, as it is read."""
    return [
        (
            NAMES[change.name],
            f"{change.distance:.3f}",
            f"{change.usual:.3f}",
            f"{change.limit:.3f}",
            describe_chance(change.p_value),
            "rings" if change.rings else "",
        )
        for change in drift.changes
    ]


def _summarize(
    drift: Drift,
    accuracy: EstimatedAccuracy,
    window: Window,
    predictor: AnyPredictor,
    page: Path,
    model_uri: str,
    run_id: str,
) -> DriftResult:
    ringing = [change.name for change in drift.changes if change.rings]
    estimate = accuracy.estimate
    told = "cannot be known without labels"
    if estimate is not None:
        told = f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return DriftResult(
        drift=drift,
        accuracy=accuracy,
        page=page,
        facts={
            "outcome": "drift" if drift.rings else "no drift",
            "ringing": ringing,
            "p_value": drift.p_value,
            "checks_per_alarm": drift.checks_per_alarm,
            "changes": [asdict(change) for change in drift.changes],
            "accuracy_sentence": accuracy.sentence,
            "outside": accuracy.outside,
            "class_shares": _class_shares(window, predictor),
            "images": window.num_seen,
            "compared": drift.num_images,
            "unreadable": window.num_unreadable,
            "bundle_digest": predictor.digest,
            "dataset_digest": predictor.card.get("dataset_digest"),
            "model_uri": model_uri,
            "run_id": run_id,
        },
        metrics={} if estimate is None else {"estimated_accuracy": asdict(estimate)},
        table=[
            ("outcome", f"drift: {', '.join(NAMES[name] for name in ringing)}" if ringing else "no drift"),
            ("estimated accuracy", told),
            ("images", f"{drift.num_images:,} of {window.num_seen:,}"),
            ("page", os.path.relpath(page)),
        ],
    )
