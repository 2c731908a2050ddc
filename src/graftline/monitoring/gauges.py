"""What a drift check found, as a file for the text collector of Prometheus' node exporter."""

from collections.abc import Mapping
from pathlib import Path

from graftline.files import write_text
from graftline.monitoring.accuracy import EstimatedAccuracy
from graftline.monitoring.drift import Drift

_HELP = {
    "graftline_drift": "1 where the images of the window are others than those that the model was judged on.",
    "graftline_drift_distance": "Distance of the window from the reference, by statistic.",
    "graftline_drift_limit": "Distance from which a statistic rings.",
    "graftline_drift_images": "Images of the window that were compared.",
    "graftline_estimated_accuracy": "Share of right answers in the window; missing where it cannot be known.",
    "graftline_estimated_accuracy_low": "Lower end of its 95 % interval.",
    "graftline_estimated_accuracy_high": "Upper end of its 95 % interval.",
    "graftline_drift_checked_timestamp_seconds": "When the window was checked.",
}


def write_gauges(file: Path, model: str, drift: Drift, accuracy: EstimatedAccuracy, moment: float) -> None:
    """Write the gauges of a check.

    Args:
        file: its name should end in ``.prom``, as the collector asks.
        model: name of the model.
        drift: what was found.
        accuracy: what can be said of it.
        moment: of the check, in s since 1970.
    """
    values: dict[str, Mapping[str, float]] = {
        "graftline_drift": {"": float(drift.rings)},
        "graftline_drift_distance": {change.name: change.distance for change in drift.changes},
        "graftline_drift_limit": {change.name: change.limit for change in drift.changes},
        "graftline_drift_images": {"": float(drift.num_images)},
        "graftline_drift_checked_timestamp_seconds": {"": round(moment)},
    }
    if accuracy.estimate is not None:
        ends = {"": accuracy.estimate.value, "_low": accuracy.estimate.low, "_high": accuracy.estimate.high}
        values |= {f"graftline_estimated_accuracy{end}": {"": value} for end, value in ends.items()}
    lines = []
    for name, by_statistic in values.items():
        lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge"]
        for statistic, value in by_statistic.items():
            which = f',statistic="{statistic}"' if statistic else ""
            lines.append(f'{name}{{model="{_escaped(model)}"{which}}} {value:.10g}')
    write_text(file, "\n".join(lines) + "\n")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
