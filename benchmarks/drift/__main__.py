"""How often drift rings, and how far the estimated accuracy is off: the tables of docs/monitoring.md.

    python -m benchmarks.drift elpv FOLDER

looks at the set's images, as they are and shifted, with the pretrained EfficientNet-Lite0 (kept in FOLDER), fits a head
on some of them (logistic regression), keeps a reference of others and draws windows from the rest.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.drift.looks import SHIFTED, Looks, look
from benchmarks.drift.shifts import SHIFTS
from graftline.bundle.decision import MOST_PROBABLE
from graftline.bundle.reference import Observations, Projection, Reference
from graftline.console import print_table
from graftline.evaluation.calibration import fit_temperature
from graftline.monitoring.accuracy import estimate_accuracy
from graftline.monitoring.drift import Chance

CHECKS_PER_ALARM = 365
SIZES = (50, 200, 1_000)
SPLITS = 200  # fresh ones, for false alarms
HEAD, REFERENCE = 0.45, 0.15  # shares of the images; the rest is for windows
REPEATS, WINDOWS = 2, 10  # references, and windows of each shift and size
FOREIGN = 0.1  # share of images of another set
LEFT_OUT = 0.1  # share of the classes that are new in a window
STRENGTH = 1e-3  # of the head, the inverse of its regularization


class Model(NamedTuple):
    """A head on the pretrained network, with what it was not fitted on."""

    head: LogisticRegression
    mean: np.ndarray
    spread: np.ndarray
    temperature: float

    @classmethod
    def fit(cls, images: Looks, held: Looks) -> "Model":
        """Fit a head on images, and its temperature on held-out ones."""
        mean, spread = images.embeddings.mean(axis=0), np.maximum(images.embeddings.std(axis=0), 1e-6)
        head = LogisticRegression(C=STRENGTH, max_iter=200).fit((images.embeddings - mean) / spread, images.labels)
        model = cls(head, mean, spread, 1.0)
        temperature = fit_temperature(model.logits(held), np.searchsorted(head.classes_, held.labels)).temperature
        return model._replace(temperature=temperature)

    def logits(self, images: Looks) -> np.ndarray:
        """Return calibrated logits (N, K)."""
        found = self.head.decision_function((images.embeddings - self.mean) / self.spread)
        both = np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found
        return both / self.temperature

    def observe(self, images: Looks, projection: Projection) -> Observations:
        """Return what a bundle or a monitor would keep."""
        exponentials = np.exp((logits := self.logits(images)) - logits.max(axis=1, keepdims=True))
        probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
        return Observations.of(MOST_PROBABLE, probabilities, projection(images.embeddings), images.facts)

    def refer(self, images: Looks) -> Reference:
        """Return the reference of held-out images."""
        projection = Projection.fit(images.embeddings)
        labels = np.searchsorted(self.head.classes_, images.labels).astype(np.int32)
        groups = np.arange(len(labels), dtype=np.int32)
        return Reference(self.observe(images, projection), labels, groups, projection)

    def accuracy(self, images: Looks) -> float:
        """Return the share of right answers; those to images of a class that it does not know are wrong."""
        return float((self.head.classes_[self.logits(images).argmax(axis=1)] == images.labels).mean())


def some(images: Looks, rows: np.ndarray) -> Looks:
    """Return some of the images."""
    return Looks(*(values[rows] for values in images))


def join(first: Looks, second: Looks) -> Looks:
    """Return the images of both."""
    return Looks(*(np.concatenate(both) for both in zip(first, second, strict=True)))


def count_false_alarms(name: str, folder: Path) -> None:
    """Print how often fresh splits of the same images ring."""
    images = look(name, "none", folder)
    order = np.random.default_rng(0).permutation(len(images.labels))
    head, rest = np.split(order, [int(HEAD * len(order))])
    model = Model.fit(some(images, head), some(images, rest[:400]))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(_p_value, model, some(images, rest), split) for split in range(SPLITS)]
        p_values = [task.result() for task in tasks]
    found = {size: p_values[number :: len(SIZES)] for number, size in enumerate(SIZES)}
    values = [*found.items(), ("all", [value for part in found.values() for value in part])]
    print_table(
        f"{name}: {SPLITS} fresh splits",
        ("images", "splits", "alarms", "expected", "p below 0.01", "p below 0.05", "p below 0.2"),
        [
            (
                f"{size}",
                f"{len(part)}",
                f"{sum(value <= 1 / CHECKS_PER_ALARM for value in part)}",
                f"{len(part) / CHECKS_PER_ALARM:.2f}",
                *(f"{np.mean([value < limit for value in part]):.3f}" for limit in (0.01, 0.05, 0.2)),
            )
            for size, part in values
        ],
    )


def _p_value(model: Model, images: Looks, split: int) -> float:
    """Return how rare a window is, of images that were split anew into reference and window."""
    drawn = np.random.default_rng(split).permutation(len(images.labels))
    count, size = int(REFERENCE / (1 - HEAD) * len(drawn)), SIZES[split % len(SIZES)]
    reference = model.refer(some(images, drawn[:count]))
    window = model.observe(some(images, drawn[count : count + size]), reference.projection)
    return Chance.of(reference, len(window), CHECKS_PER_ALARM, split).judge(window).p_value


class Judged(NamedTuple):
    """What came of one window.

    Attributes:
        rings: whether there is an alarm.
        accuracy: of the model in it.
        estimate: of that; None where it cannot be known.
        holds: whether the estimate's interval holds it.
        outside: share of images outside of the reference.
    """

    rings: bool
    accuracy: float
    estimate: float | None
    holds: bool
    outside: float


def measure_power(name: str, folder: Path) -> None:
    """Print how often shifted windows ring, and how far the estimated accuracy is off."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(partial(_judge_all, name, folder), range(REPEATS)))
    shifts = list(parts[0])
    found = {shift: {size: [one for part in parts for one in part[shift][size]] for size in SIZES} for shift in shifts}
    print_table(
        f"{name}: windows that ring, of {REPEATS * WINDOWS}",
        ("shift", *(f"{size} images" for size in SIZES)),
        [
            (shift, *(f"{sum(one.rings for one in windows)}" for windows in found[shift].values()))
            for shift in shifts
            if shift != "none"  # the fresh splits tell of that; here windows of one pool are alike
        ],
    )
    print_table(
        f"{name}: estimated accuracy of {SIZES[1]} images, %",
        ("shift", "accuracy", "estimate", "off by", "in the interval", "outside", "not known"),
        [_error_row(shift, found[shift][SIZES[1]]) for shift in shifts],
    )


def _judge_all(name: str, folder: Path, repeat: int) -> dict[str, dict[int, list[Judged]]]:
    """Judge windows of every shift and size by one reference."""
    model, reference, shifted = _prepare(name, folder, repeat)
    found: dict[str, dict[int, list[Judged]]] = {shift: {} for shift in shifted}
    for size in SIZES:
        chance = Chance.of(reference, size, CHECKS_PER_ALARM, repeat)
        for shift, pool in shifted.items():
            generator = np.random.default_rng(1000 * repeat + size)
            found[shift][size] = [_judge(model, chance, window) for window in _windows(pool, size, generator)]
    return found


def _judge(model: Model, chance: Chance, window: Looks) -> Judged:
    observed, actual = model.observe(window, chance.reference.projection), model.accuracy(window)
    drift = chance.judge(observed)
    rings = drift.rings
    if chance.num_images != SIZES[1]:
        return Judged(rings, actual, None, holds=False, outside=0.0)
    told = estimate_accuracy(chance.reference, observed, drift)
    holds = told.estimate is not None and told.estimate.low <= actual <= told.estimate.high
    return Judged(rings, actual, told.estimate.value if told.estimate else None, holds, told.outside or 0.0)


def _prepare(name: str, folder: Path, repeat: int) -> tuple[Model, Reference, dict[str, Looks]]:
    """Return a model, its reference, and the images that windows are drawn from, by shift."""
    images = look(name, "none", folder)
    generator, rows = np.random.default_rng(repeat), np.arange(len(images.labels))
    classes = np.unique(images.labels)
    new = generator.permutation(classes)[: int(LEFT_OUT * len(classes))]
    known = rows[(rows % SHIFTED != 0) & ~np.isin(images.labels, new)]
    held, fitted = np.split(generator.permutation(known), [int(REFERENCE * len(rows))])
    reference = some(images, held)
    model = Model.fit(some(images, fitted), reference)
    shifted = {shift: look(name, shift, folder) for shift in SHIFTS}
    shifted["none"] = some(images, rows[rows % SHIFTED == 0])
    is_new = np.isin(shifted["none"].labels, new)
    pools = {shift: some(pool, np.flatnonzero(~is_new)) for shift, pool in shifted.items()}
    if len(new) > 0:
        others = some(shifted["none"], np.flatnonzero(is_new))
        pools["a fifth of new classes"] = _mix(pools["none"], others, 0.2, generator)
    else:
        other = look("letters", "none", folder)
        other = other._replace(labels=np.full(len(other.labels), -1))  # no answer to them is right
        foreign = some(other, generator.permutation(len(other.labels))[:400])
        pools["a tenth of other pictures"] = _mix(pools["none"], foreign, FOREIGN, generator)
    return model, model.refer(reference), pools


def _mix(images: Looks, others: Looks, share: float, generator: np.random.Generator) -> Looks:
    """Return images of which a share is of others."""
    count = round(share / (1 - share) * len(images.labels))
    return join(images, some(others, generator.integers(0, len(others.labels), count)))


def _windows(pool: Looks, size: int, generator: np.random.Generator) -> Iterator[Looks]:
    """Yield windows; those that are larger than the pool have images twice, which a shift does not mind."""
    count = len(pool.labels)
    for _ in range(WINDOWS):
        yield some(pool, generator.choice(count, size, replace=size > count))


def _error_row(shift: str, found: list[Judged]) -> tuple[str, ...]:
    told = [(one.accuracy, one.estimate, one.holds) for one in found if one.estimate is not None]
    return (
        shift,
        f"{100 * np.mean([one.accuracy for one in found]):.1f}",
        f"{100 * np.mean([estimate for _, estimate, _ in told]):.1f}" if told else "",
        f"{100 * np.mean([abs(actual - estimate) for actual, estimate, _ in told]):.1f}" if told else "",
        f"{sum(holds for *_, holds in told)} of {len(told)}",
        f"{100 * np.mean([one.outside for one in found]):.0f}",
        f"{len(found) - len(told)} of {len(found)}",
    )


def main(name: str, folder: str) -> None:
    """Print the tables."""
    count_false_alarms(name, Path(folder))
    measure_power(name, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
