"""Export for small devices, kept only where it was measured to be faster here and no worse."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from graftline.bundle.compact import CompactFormat, export_int8, export_openvino, open_onnx, open_openvino
from graftline.bundle.export import export_onnx
from graftline.bundle.predictor import Predictor
from graftline.console import counted, print_table, say, warn
from graftline.data.loaders import decode_sample
from graftline.data.version import DatasetVersion, Samples, order_by_content
from graftline.evaluation.compact import CompactComparison, measure
from graftline.evaluation.metrics import Interval, format_interval, format_score
from graftline.execution import Execution
from graftline.files import check_replaceable

CALIBRATED = 200  # training images that set the scales
COMPARED = 500  # validation images, at most


def export_compact(
    predictor: Predictor,
    bundle: Path,
    version: DatasetVersion,
    kind: CompactFormat,
    target: Path,
    plain: Path,
    max_loss: float,
) -> tuple[Path, list[tuple[str, str]]]:
    """Write a bundle in a compact format beside the plain one, compare both, and keep one.

    Args:
        predictor: the bundle's.
        bundle: its directory.
        version: that it was trained on.
        kind: the format.
        target: what is written where that is kept.
        plain: the ONNX file in float32 that is written where it is not.
        max_loss: of accuracy that is surely not exceeded.

    Returns:
        What was written, and rows of the stage's table.

    Raises:
        UserError: it cannot be written in this format, or an image cannot be read any more.
    """
    check_replaceable(plain, "Export.out", is_folder=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    execution = Execution.onnx("cpu")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        both = Path(folder) / plain.name, Path(folder) / target.name
        export = export_onnx(bundle, both[0])
        if kind == "onnx-int8":
            export_int8(bundle, both[1], _calibration(predictor, version.samples("train")))
        else:
            export_openvino(bundle, both[1])
        small = (open_onnx if kind == "onnx-int8" else open_openvino)(both[1], execution)
        found = _compare(predictor, version, version.samples("validation"), open_onnx(both[0], execution), small)
        objection = found.objection(max_loss)
        _tell(found, kind, both, objection)
        if objection is not None:
            stale = f", and {target}, of another time, is removed" if target.exists() else ""
            warn(f"{kind} is not kept, as {objection}: the float one is{stale}.")
        if target.is_dir():
            shutil.rmtree(target)
        elif objection is not None:
            target.unlink(missing_ok=True)
        kept = target if objection is None else plain
        (Path(folder) / kept.name).replace(kept)
    return kept, [
        ("compared", f"a probability differs by {found.largest_difference:.2g} at most from the float one's"),
        ("checked", f"the float one's differ by {export.largest_difference:.1g} at most from the model's"),
    ]


def _calibration(predictor: Predictor, samples: Samples) -> Iterator[np.ndarray]:
    """Yield inputs of the network (1, C, H, W) of training images, which their contents choose."""
    rows = order_by_content(samples.sha256)[:CALIBRATED].tolist()
    with counted("Looking at training images", len(rows)) as advance:
        for row in rows:
            yield predictor.preprocessing(decode_sample(samples, row))[None]
            advance(1)


def _compare(
    predictor: Predictor,
    version: DatasetVersion,
    samples: Samples,
    run: Callable[[np.ndarray], np.ndarray],
    small: Callable[[np.ndarray], np.ndarray],
) -> CompactComparison:
    rows = order_by_content(samples.sha256)[:COMPARED]
    labels = version.renumber(samples.labels[rows], predictor.class_names)
    images = ((decode_sample(samples, row), label) for row, label in zip(rows.tolist(), labels.tolist(), strict=True))
    with counted("Comparing on validation images", len(rows)) as advance:
        return measure(run, small, images, predictor.decision, advance)


def _tell(found: CompactComparison, kind: CompactFormat, files: tuple[Path, Path], objection: str | None) -> None:
    """Print the table of both."""
    verdicts = ("the float one", "kept" if objection is None else "not kept")
    medians = np.median(found.milliseconds, axis=0)
    print_table(
        f"{len(found.right):,} validation images, one at a time, in turns",
        ("format", "ms per image", "MB", "accuracy", "verdict"),
        [
            (name, f"{medians[number]:.1f}", f"{_size(file) / 1e6:.1f}", _score(found.accuracy(number)), verdict)
            for number, (name, file, verdict) in enumerate(zip(("onnx", kind), files, verdicts, strict=True))
        ],
    )
    ratio, difference = found.ratio, found.difference
    say(
        f"{kind} takes {_percent(ratio)} of the time; its accuracy differs by {100 * difference.value:+.1f} points "
        f"({100 * difference.low:+.1f} to {100 * difference.high:+.1f})."
    )


def _score(accuracy: Interval) -> str:
    return f"{format_score('accuracy', accuracy.value)} ({format_interval('accuracy', accuracy)})"


def _percent(ratio: Interval) -> str:
    return f"{100 * ratio.value:.0f} % ({100 * ratio.low:.0f} to {100 * ratio.high:.0f})"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
