"""What the gate looks at: both bundles, opened and run now on the same test images, and what is known of each."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd

from graftline.bundle.ensemble import AnyPredictor, Ensemble, load_predictor
from graftline.bundle.layout import freeze_checks
from graftline.bundle.verify import verify_bundle
from graftline.console import counted, track, warn
from graftline.data.file_names import to_path
from graftline.data.image_bytes import is_there
from graftline.data.references import file_of, find_place, find_url
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError, first_line
from graftline.evaluation.contestant import Contestant, ModelFacts, TestImages, frequencies
from graftline.evaluation.gate import NO_FLIPS, Gate, GateResult, examine
from graftline.evaluation.gate_guards import Guard
from graftline.evaluation.metrics import format_score
from graftline.evaluation.model_guards import ModelLimits
from graftline.evaluation.paired import measure_in_turns
from graftline.execution import Accelerator, Execution, available_cores
from graftline.files import atomic_file, sha256_file
from graftline.pipeline.dataset_versions.trained_on import trained_on
from graftline.pipeline.evaluating.slices import slice_columns
from graftline.pipeline.program import program
from graftline.serving.answers import REFUSED, SET
from graftline.tracking.registry import RegisteredVersion
from graftline.tracking.tracking import Tracking

TIMED_SECONDS, TIMED_ROUNDS, MOST_TIMED = 0.3, 5, 32  # of one measurement, how many, and the images of each
SECONDS_TO_REFUSE = 4.0  # of further measurements where a model would be refused: other work may have disturbed a few
BATCH_SIZE = 32


@dataclass(frozen=True)
class _Opened:
    """A registered version that is open."""

    version: RegisteredVersion
    bundle: Path
    predictor: AnyPredictor

    @property
    def name(self) -> str:
        return f"version {self.version.version}"


@dataclass(frozen=True)
class Examined:
    """What an examination found.

    Attributes:
        result: of the gate.
        images: the test images; None where it came to nothing.
        version: of the data set that they are of.
    """

    result: GateResult
    images: TestImages | None = None
    version: DatasetVersion | None = None

    @classmethod
    def failed(cls, name: str, reason: str) -> "Examined":
        """Return an examination that came to nothing."""
        guard = Guard(name, "", "", "", passed=False, reason=reason)
        return cls(GateResult((guard,), "Nothing was compared.", 0, NO_FLIPS))

    @property
    def is_of_the_moment(self) -> bool:
        """Whether the same gate may find something else another time; not where the classes do not fit."""
        failing = {guard.name for guard in self.result.guards if not guard.passed}
        return not self.result.is_final or bool(failing & {"bundle", "examination"})

    def flips_table(self, file: Path) -> None:
        """Write the images that turn from right to wrong."""
        with atomic_file(file) as temporary:
            self.result.flips.to_csv(temporary, index=False)


@dataclass(frozen=True)
class Examination:
    """Run both models on the same test images, and hold the challenger against the champion.

    Attributes:
        gate: what it must show.
        tracking: where the versions are registered.
        challenger: the new version.
        champion: the version that it is compared with; None: it is the first.
        rollback_reason: why the challenger, which has been champion, was rolled back, in a sentence; None: it was not.
        accelerator: where they are run.
    """

    gate: Gate
    tracking: Tracking
    challenger: RegisteredVersion
    champion: RegisteredVersion | None
    rollback_reason: str | None = None
    accelerator: Accelerator = "auto"

    def run(self) -> Examined:
        """Return what was found.

        Raises:
            ChangedBundleError: the files of a bundle are not those that were logged.
            UserError: the images are not on this machine or have changed, or they cannot be compared on, or MLflow does
                not answer.
        """
        challenger = self.opened_challenger
        version = self._trained_on(challenger)
        samples = version.samples("test")
        self.gate.check_weights(samples.weights)
        self._require_images(samples)
        champion = None if self.champion is None else self._open(self.champion)
        labels = np.asarray(version.class_names, dtype=object)[samples.labels]
        before = None if champion is None else self._known_dataset(champion)
        images = TestImages(
            paths=samples.paths,
            labels=labels,
            sha256=samples.sha256,
            dataset=version.name,
            split_digest=version.test_digest,
            decoding=version.decoding,
            columns=None
            if champion is None
            else slice_columns(version, samples.paths, samples.sha256, samples.decoding),
            seen=None if before is None else before.seen_in_training(samples.sha256),
            groups=version.groups("test"),
            weights=samples.weights,
        )
        opened = [challenger] if champion is None else [challenger, champion]
        times = _measure(opened, samples.paths, self.gate)
        models = [self._contestant(one, images, seconds) for one, seconds in zip(opened, times, strict=True)]
        other = models[1] if champion is not None else frequencies(version.counts()["train"], images)
        tests = [] if champion is None else _same_test(before, version, self.gate.relabeled)
        facts = [*tests, *self._not_rolled_back()]
        return Examined(examine(self.gate, images, models[0], other, facts), images, version)

    @cached_property
    def opened_challenger(self) -> _Opened:
        """The challenger, opened.

        Raises:
            ChangedBundleError: its files are not those that were logged.
            UserError: it has none, they are no bundle, or MLflow does not answer.
        """
        return self._open(self.challenger)

    def _require_images(self, samples: Samples) -> None:
        """Make sure that the test images are here, and those that were tested; shards tell that themselves."""
        paths, of = samples.paths, f"of the {len(samples.paths):,} test images of version {self.challenger.version}"
        asked = [path for number, path in enumerate(paths) if number == 0 or file_of(path) is not None]  # of URLs one
        missing = [path for path in asked if not is_there(path)]
        if missing:
            raise UserError(
                f"{len(missing):,} {of} are not on this machine (first: {missing[0]}): promote it where they are, or "
                "bring them back."
            )
        files = {
            Path(to_path(path)): sha256
            for path, sha256 in zip(paths, samples.sha256, strict=True)
            if find_place(path) is None and find_url(path) is None
        }
        with ThreadPoolExecutor(available_cores()) as pool:  # hashing runs outside Python's lock
            found = list(track(pool.map(sha256_file, files), "Checking the test images", len(files)))
        changed = [file for file, sha256 in zip(files, found, strict=True) if sha256 != files[file]]
        if changed:
            raise UserError(
                f"{len(changed):,} {of} have changed since it was trained (first: {changed[0]}): bring them back, or "
                f"make a dataset version of the images of now with {program()} ingest, and train on it."
            )

    def _open(self, version: RegisteredVersion) -> _Opened:
        bundle = self.tracking.registry().bundle(version.uri)
        return _Opened(version, bundle, load_predictor(bundle, "onnx", self._execution))

    @property
    def _execution(self) -> Execution:
        return Execution.local(self.accelerator)

    def _trained_on(self, opened: _Opened) -> DatasetVersion:
        return trained_on(opened.predictor.card, opened.version.uri, self.tracking)

    def _known_dataset(self, champion: _Opened) -> DatasetVersion | None:
        """Return what a champion was trained on; None with a warning where that is not known."""
        try:
            return self._trained_on(champion)
        except UserError as error:
            warn(f"What {champion.name} was trained on is not known ({first_line(error)}).")
            return None

    def _contestant(self, opened: _Opened, images: TestImages, seconds: float) -> Contestant:
        predictor = opened.predictor
        with counted(f"Classifying the test images with {opened.name}", len(images.paths)) as advance:
            logits = predictor.logits(images.paths, BATCH_SIZE, advance)
        verification = verify_bundle(opened.bundle, "onnx", self._execution)
        return Contestant(
            name=opened.name,
            class_names=tuple(predictor.class_names),
            logits=logits,
            bundle_digest=predictor.digest,
            decision=predictor.decision,
            facts=ModelFacts(
                milliseconds=1000 * seconds,
                megabytes=_megabytes(opened.bundle),
                input=_input(predictor),
                output=_output(predictor),
                golden_problem=verification.problem,
                frozen=_frozen(predictor),
            ),
        )

    def _not_rolled_back(self) -> list[Guard]:
        reason = self.rollback_reason
        return [] if reason is None else [Guard("rolled back", "", "yes", "", passed=False, reason=reason)]


def _same_test(before: DatasetVersion | None, now: DatasetVersion, most: float) -> list[Guard]:
    """Return the guard on the champion's test images: whether they still test, with the labels that they had.

    Args:
        before: what the champion was trained on; None: nobody knows, which a row of the table says.
        now: the dataset version of the challenger.
        most: share of the images that may be gone or have another label.
    """
    if before is None:
        number = sum(now.counts()["test"].values())
        return [Guard("test images", "unknown", f"{number:,}", "not compared", passed=True)]
    if not any(before.counts()["test"].values()):
        return []
    tables = [version.table() for version in (before, now)]
    was, is_now = (table.loc[table["split"] == "test"].drop_duplicates("sha256") for table in tables)
    labels = pd.Series(is_now["label"].to_numpy(), index=is_now["sha256"]).reindex(was["sha256"])
    gone = int(labels.isna().sum())
    relabeled = int((labels.notna().to_numpy() & (labels.to_numpy() != was["label"].to_numpy())).sum())
    share = (gone + relabeled) / len(was)
    passed = share <= most
    reason = (
        f"Of the {len(was):,} images that tested the champion {gone:,} are gone and {relabeled:,} have another label, "
        f"{format_score('accuracy', share)} together, more than {format_score('accuracy', most)}: "
        "look at the data before the model."
    )
    return [
        Guard(
            name="test images",
            champion=f"{len(was):,}",
            challenger=f"{len(is_now):,}",
            difference=f"{gone:,} gone, {relabeled:,} relabeled",
            passed=passed,
            reason="" if passed else reason,
            figures=(share,),
        )
    ]


def _measure(opened: Sequence[_Opened], paths: Sequence[str], limits: ModelLimits) -> list[float]:
    """Return the seconds per image of each model, taken in turns; more often where they would refuse the first one."""

    def seconds(one: _Opened, count: int) -> float:
        start = time.perf_counter()
        one.predictor.logits(paths[:count], BATCH_SIZE)
        return (time.perf_counter() - start) / count

    timed: list[Callable[[], float]] = []
    for one in opened:
        seconds(one, 1)  # the first call also allocates
        count = int(np.clip(TIMED_SECONDS / seconds(one, 1), 1, min(MOST_TIMED, len(paths))))
        timed.append(partial(seconds, one, count))
    times = measure_in_turns(timed, TIMED_ROUNDS)
    until = time.perf_counter() + SECONDS_TO_REFUSE
    while limits.refuse_time(*(1000 * one for one in times)) and time.perf_counter() < until:
        times = [min(pair) for pair in zip(times, measure_in_turns(timed, 1), strict=True)]
    return times


def _megabytes(bundle: Path) -> float:
    """Return the size of the networks, and of what else is loaded to answer."""
    files = [file for pattern in ("*.onnx*", "references.npy") for file in bundle.rglob(pattern)]
    return sum(file.stat().st_size for file in files) / 1e6


def _frozen(predictor: AnyPredictor) -> str | None:
    """Return what the freeze checks came to, which a bundle notes as they have held; None: a network has no record."""
    networks = predictor.members if isinstance(predictor, Ensemble) else (predictor,)
    counts = freeze_checks([network.card for network in networks])
    if counts is None:
        return None
    return f"{sum(counts):,} frozen" + (f" in {len(counts)} trainings" if len(counts) > 1 else "")


def _input(predictor: AnyPredictor) -> str:
    one = predictor.members[0] if isinstance(predictor, Ensemble) else predictor
    settings = ", ".join(f"{name} {value}" for name, value in predictor.decoding.identity().items())
    color = "gray" if one.preprocessing.channels == 1 else "RGB"
    return f"{color}, {settings}" if settings else color


def _output(predictor: AnyPredictor) -> tuple[str, ...]:
    refuses = not isinstance(predictor, Ensemble) and predictor.refusal is not None
    return (*([SET] if predictor.decision.set_threshold is not None else []), *([REFUSED] if refuses else []))
