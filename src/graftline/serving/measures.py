"""What a server counts, in the text format of Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats).

A package for it would be a dependency of every server, for the few lines below.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

Labels = tuple[tuple[str, str], ...]

_HELP = {
    "graftline_requests_total": "Requests that were answered, by address and status.",
    "graftline_predictions_total": "Images that were classified, by the class that was answered.",
    "graftline_refused_total": "Images that are none of the classes.",
    "graftline_request_seconds": "Time from a request's header to its answer.",
    "graftline_batch_images": "Images that the network was given at once.",
    "graftline_waiting_images": "Images that wait for the network.",
    "graftline_model_info": "The model that answers now.",
    "graftline_model_problem": "1 where a model that should answer could not take over.",
    "process_resident_memory_bytes": "Memory of the process.",
}


class Histogram:
    """Counts values by size.

    Args:
        bounds: upper ends of the buckets.
    """

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> list[str]:
        """Return it as Prometheus reads it: each bucket holds those below it too."""
        lines, total = [], 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(_line(f"{name}_bucket", (("le", bound),), total))
        return [*lines, _line(f"{name}_sum", (), self._sum), _line(f"{name}_count", (), total)]


class Measures:
    """What a server counts."""

    def __init__(self) -> None:
        self._requests: Counter[Labels] = Counter()
        self._predictions: Counter[Labels] = Counter()
        self._refused: Counter[Labels] = Counter()
        self._seconds = Histogram(SECONDS)
        self._batches = Histogram(SIZES)

    @property
    def num_requests(self) -> int:
        """How many requests were answered."""
        return self._requests.total()

    @property
    def num_predictions(self) -> int:
        """How many images were classified."""
        return self._predictions.total()

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests[("path", path), ("status", str(status))] += 1
        self._seconds.add(seconds)

    def predictions(self, model: str, predictions: Iterable[Mapping[str, object]]) -> None:
        """Count what was answered."""
        for one in predictions:
            self._predictions[("model", model), ("class", str(one["class"]))] += 1
            if one["refused"]:
                self._refused[(("model", model),)] += 1

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._batches.add(size)

    def text(self, models: Iterable[Mapping[str, Any]]) -> str:
        """Return everything as Prometheus reads it.

        Args:
            models: the health of each.
        """
        models = list(models)
        names: list[Labels] = [(("model", str(one["model"])),) for one in models]
        info = [
            (*((key, "" if one[key] is None else str(one[key])) for key in ("model", "version", "digest")),)
            for one in models
        ]
        gauges: dict[str, list[tuple[Labels, int]]] = {
            "graftline_waiting_images": [
                (labels, one["waiting_images"]) for labels, one in zip(names, models, strict=True)
            ],
            "graftline_model_info": [(labels, 1) for labels in info],
            "graftline_model_problem": [
                (labels, int(one["problem"] is not None)) for labels, one in zip(names, models, strict=True)
            ],
            "process_resident_memory_bytes": [((), resident_bytes())],
        }
        counters = {
            "graftline_requests_total": self._requests,
            "graftline_predictions_total": self._predictions,
            "graftline_refused_total": self._refused,
        }
        histograms = {"graftline_request_seconds": self._seconds, "graftline_batch_images": self._batches}
        lines: list[str] = []
        for name, counter in counters.items():
            lines += [*_head(name, "counter"), *(_line(name, *item) for item in counter.items())]
        for name, histogram in histograms.items():
            lines += [*_head(name, "histogram"), *histogram.lines(name)]
        for name, values in gauges.items():
            lines += [*_head(name, "gauge"), *(_line(name, *item) for item in values)]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Return the memory of this process; 0 where Linux's file of it is missing."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _head(name: str, kind: str) -> list[str]:
    return [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Labels, value: object) -> str:
    r"""Return a line of a value.

    >>> print(_line("n", (("class", 'a "b"'),), 3))
    n{class="a \"b\""} 3
    """
    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
