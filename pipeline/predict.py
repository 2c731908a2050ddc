"""Predict: a model on as many images as there are, as a table in parts."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from graftline.bundle.answers import Stream
from graftline.bundle.batch import PART_ROWS, BatchJob, TableFormat, Tally
from graftline.bundle.engines import EngineName
from graftline.bundle.remote_answers import stream_over
from graftline.console import console, counted, print_facts, say
from graftline.data.image_list import ImageLister, Kind
from graftline.data.sources.archive import Archive
from graftline.data.sources.table import Table
from graftline.errors import UserError
from graftline.execution import Accelerator, Execution
from graftline.files import check_folder
from graftline.pipeline.bundles.source import OpenModel, open_model
from graftline.pipeline.bundles.watch import check_watch, make_watch
from graftline.pipeline.stage import StageResult
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.tracking.tracking import Tracking

STANDARD_INPUT = "-"
_ORIGINS: dict[Kind, str] = {
    "image": "image, {}",
    "folder": "in the folder {}",
    "table": "listed in the table {}",
    "archive": "in the archive {}",
    "list": "listed on standard input",
}
_BAR = 24  # signs of the longest bar
_MOST_CLASSES = 20  # that the table at the end has a line for
_MOST_REASONS = 3  # why images are unreadable, that it has a line for
_SECONDS = 60.0  # between two lines in a log


@dataclass(frozen=True, kw_only=True)
class PredictResult(StageResult):
    """What the stage ``predict`` wrote.

    Attributes:
        predictions: the folder of parts, which together have a row per image.
        counts: of their rows.
    """

    predictions: Path
    counts: Tally


@dataclass(frozen=True)
class Predict:
    """The stage ``predict`` (Hydra target of conf/predict.yaml).

    Attributes:
        tracking: where models are registered.
        model: name of a registered model, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, a run's id, its directory
            or a bundle.
        images: an image, a folder, a table with a column of paths, a zip or tar archive, shards; ``-``: paths on
            standard input, one per line.
        out: gets a folder for each model and list of images.
        format: of the parts.
        part_rows: of a part, which a killed job begins again.
        table: how a table is read.
        archive: how an archive is unpacked.
        engine: what the model is run with.
        accelerator: where the model is run.
        monitor: directory that a small sample of what the model sees is kept in, for `drift`; None: nothing is kept.
        monitor_images: of which small versions are kept, in an hour; 0: none.
        cluster: over which the images are spread.
    """

    tracking: Tracking
    model: str
    images: str
    out: str = "predictions"
    format: TableFormat = "csv"
    part_rows: int = PART_ROWS
    table: Table = field(default_factory=Table)
    archive: Archive = field(default_factory=Archive)
    engine: EngineName = "onnx"
    accelerator: Accelerator = "auto"
    monitor: str | None = None
    monitor_images: int = 0
    cluster: NoCluster | RayCluster = NoCluster()  # noqa: RUF009 - immutable

    def __post_init__(self) -> None:
        check_watch(self.monitor, self.monitor_images)
        if self.accelerator == "gpu" and isinstance(self.cluster, RayCluster):
            raise UserError(
                "Predict.accelerator=gpu is for this machine, but a cluster answers on its cores: leave it out."
            )
        if self.part_rows < 1:
            raise UserError(f"Predict.part_rows is {self.part_rows}, it must be at least 1.")

    def run(self, directory: Path) -> PredictResult:  # noqa: ARG002 - a stage's signature; what goes on lies in ``out``
        """Classify the images that no earlier, unfinished run of the same command has classified.

        Raises:
            UserError: there is no such model, or no image; or another process does the same.
        """
        out = Path(self.out).expanduser()
        check_folder(out, "Predict.out")
        if self.monitor is not None:
            check_folder(Path(self.monitor).expanduser(), "Predict.monitor")
        self.cluster.check()
        execution = (Execution.onnx if self.engine == "onnx" else Execution.local)(self.accelerator)
        model = open_model(self.model, self.tracking, self.engine, execution)
        images = ImageLister(self.table, self.archive).read(self._images(), out)
        job = BatchJob(model.predictor, images, out, self.format, self.engine, self.part_rows)
        make = make_watch(self.monitor, self.monitor_images)
        watch = None if make is None else make(model.predictor, model.directory)
        job = replace(job, watch=watch, stream=self._spread(model))
        parts, before = job.done()
        self._tell(model, job, before)
        start = time.perf_counter()
        with _keeping(job), _pace(images.count - before.images) as bar:
            try:
                counts = job.run(bar)
                if watch is not None:
                    watch.close(patient=True)
            finally:
                if watch is not None:
                    watch.close()
        rate = (counts.images - before.images) / (time.perf_counter() - start)
        return PredictResult(
            facts={
                "model": model.origin.uri,
                "model_uri": model.origin.model_uri,
                "bundle_digest": model.predictor.digest,
                "images": counts.images,
                "unreadable": counts.unreadable,
                "done_before": before.images,
                "predictions": str(job.folder),
            },
            table=[
                *_lines(counts),
                *([] if parts == job.num_parts else [("speed", f"{rate:,.0f} images/s")]),
                _where(job),
            ],
            predictions=job.folder,
            counts=counts,
        )

    def _spread(self, model: OpenModel) -> Stream | None:
        """Return what answers on the cluster; None where there is none."""
        if not isinstance(self.cluster, RayCluster):
            return None
        say(f"Spread over {self.cluster.workers} workers of Ray, each on one core.")
        return partial(stream_over, self.cluster, model.directory, self.engine)

    def _images(self) -> Path | Iterable[bytes]:
        if self.images != STANDARD_INPUT:
            return Path(self.images)
        if sys.stdin.isatty():
            say("Paths of images are read from the terminal, one per line; Ctrl-D ends them.")
        return sys.stdin.buffer

    def _tell(self, model: OpenModel, job: BatchJob, before: Tally) -> None:
        names = model.predictor.class_names
        facts = [
            ("model", f"{model.origin.uri}, digest {model.predictor.digest}"),
            ("classes", f"{len(names)}: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"),
            ("images", f"{job.images.count:,} {_ORIGINS[job.images.kind].format(job.images.title)}"),
            ("table", f"{job.num_parts:,} part{'s' if job.num_parts > 1 else ''} in {job.folder}"),
        ]
        if before.images:
            facts.append(("goes on", f"{before.images:,} images are done, {job.images.count - before.images:,} left"))
        print_facts("predict", facts)


@contextmanager
def _keeping(job: BatchJob) -> Iterator[None]:
    """Say what is kept where the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        kept = job.done()[1].images
        say(f"{kept:,} of {job.images.count:,} images are done and kept: the same command goes on with the rest.")
        raise


@contextmanager
def _pace(total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of so many images, which the block tells; a log, that has no bar, gets a line a minute."""
    start = said = time.monotonic()
    done = 0

    def go_on(count: int) -> None:
        nonlocal done, said
        done += count
        advance(count)
        now = time.monotonic()
        if not console.is_terminal and now - said >= _SECONDS and done < total:
            said, rate = now, done / (now - start)
            left = timedelta(seconds=round((total - done) / rate))
            say(f"{done:,} of {total:,} images, {rate:,.0f} a second, {left} left")

    with counted("Classifying", total) as advance:
        yield go_on


def _lines(counts: Tally) -> list[tuple[str, str]]:
    """Return the counts as rows of a table, with a bar for each class."""
    usual = counts.classes.most_common(_MOST_CLASSES)
    rows = [(name, number) for name, number in usual]
    if others := len(counts.classes) - len(usual):
        rows.append((f"{others:,} other classes", sum(counts.classes.values()) - sum(number for _, number in usual)))
    if counts.refused:
        rows.append(("refused, of these", counts.refused))
    if counts.unreadable:
        rows.append(("unreadable", counts.unreadable))
    width = len(f"{counts.images:,}")
    most = max((number for _, number in rows), default=1)
    lines = [
        (name, f"{number:{width},}  {number / counts.images:6.1%}  {'█' * round(_BAR * number / most)}".rstrip())
        for name, number in rows
    ]
    return lines + [("", f"{number:,}: {reason}") for reason, number in counts.reasons.most_common(_MOST_REASONS)]


def _where(job: BatchJob) -> tuple[str, str]:
    return "table", str(job.part(0) if job.num_parts == 1 else job.folder / f"part-*.{job.format}")
