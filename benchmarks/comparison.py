"""How far comparisons can be trusted: simulated classifiers whose true difference is known.

    python benchmarks/comparison.py [--tests 2000]

Prints how often the 95 % interval of a difference has the true one in it, how often one of several equally good
classifiers is called better or worse, and how often a difference of the size that is said to be found is found.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

from graftline.evaluation.comparison import Comparison, Metric, compare
from graftline.evaluation.predictions import Predictions

NUM_IMAGES = 400
OWN_NOISE = 0.7  # of a classifier, beside what makes an image hard for all: two disagree about one image in six or so
SPREAD = math.sqrt(2 * (1 + OWN_NOISE**2))  # of the difference of the two logits


def classifiers(skills: Sequence[float], generator: np.random.Generator, images: int = NUM_IMAGES) -> list[Predictions]:
    """Make up predictions of two classes: the logit of the true one is higher by a skill, and by noise."""
    labels = generator.integers(0, 2, images)
    common = generator.normal(size=(images, 2))
    made = []
    for skill in skills:
        logits = common + OWN_NOISE * generator.normal(size=(images, 2))
        logits[np.arange(images), labels] += skill
        made.append(
            Predictions(
                paths=[f"/{number}.png" for number in range(images)],
                logits=logits,
                labels=labels,
                weights=None,
                sha256=[f"{number:064x}" for number in range(images)],
                class_names=("no", "yes"),
                split="test",
                dataset="made up",
                split_digest="made up",
                bundle_digest="made up",
            )
        )
    return made


def true_accuracy(skill: float) -> float:
    """Return the share of all images that a classifier is right about."""
    return float(norm.cdf(skill / SPREAD))


def true_log_loss(skill: float) -> float:
    """Return the log loss over all images."""
    return float(quad(lambda margin: np.logaddexp(0, -margin) * norm.pdf(margin, skill, SPREAD), -30, 30)[0])


def coverage(tests: int, skills: tuple[float, float] = (1.5, 1.8)) -> dict[str, float]:
    """Return how often the interval of the difference has the true one in it, for accuracy and log loss."""
    truth = {
        "accuracy": true_accuracy(skills[1]) - true_accuracy(skills[0]),
        "log_loss": true_log_loss(skills[1]) - true_log_loss(skills[0]),
    }
    inside = dict.fromkeys(truth, 0)
    for seed in range(tests):
        one, other = classifiers(skills, np.random.default_rng(seed))
        (row,) = compare({"one": one, "other": other}, seed=seed).rows
        for name, value in truth.items():
            inside[name] += row.differences[name].low <= value <= row.differences[name].high
    return {name: number / tests for name, number in inside.items()}


def false_alarms(tests: int, models: int, metric: Metric = "accuracy", images: int = NUM_IMAGES) -> float:
    """Return how often any of several equally good classifiers is called better or worse than the first."""
    alarms = 0
    for seed in range(tests):
        found = _compared(classifiers([1.5] * models, np.random.default_rng(seed), images), metric)
        alarms += any(row.verdict != "no difference shown" for row in found.rows)
    return alarms / tests


def power(tests: int, skills: tuple[float, float] = (1.5, 1.8)) -> tuple[float, float, float]:
    """Return the true difference in accuracy, the one that is said to be found four times in five, and how often it is.

    The number of images is such that the two are about the same.
    """
    truth = true_accuracy(skills[1]) - true_accuracy(skills[0])
    images, claimed, found = 700, list[float](), 0
    for seed in range(tests):
        comparison = _compared(classifiers(skills, np.random.default_rng(seed), images))
        claimed.append(comparison.findable_difference(comparison.rows[0]) or np.nan)
        found += comparison.rows[0].verdict == "better"
    return truth, float(np.nanmean(claimed)), found / tests


def _compared(made: Sequence[Predictions], metric: Metric = "accuracy") -> Comparison:
    return compare({str(number): one for number, one in enumerate(made)}, metric, resamples=400)


def main(tests: int) -> None:
    """Print the table."""
    for name, share in coverage(tests).items():
        print(f"interval of the difference in {name}: has the true one in it in {100 * share:.1f} % of {tests:,} tests")
    metrics: tuple[Metric, ...] = ("accuracy", "log_loss")
    for models, metric in itertools.product((2, 5), metrics):
        share = false_alarms(tests, models, metric)
        print(f"{models} equally good, by {metric}: any called better or worse in {100 * share:.1f} %")
    for images in (5, 10, 20, 50):
        share = false_alarms(tests, 2, "log_loss", images)
        print(f"2 equally good on {images} images, by log_loss: called better or worse in {100 * share:.1f} %")
    truth, claimed, found = power(tests // 2)
    said = f"true difference {100 * truth:.1f} points, said to be found in 80 %: {100 * claimed:.1f}"
    print(f"{said}; found in {100 * found:.0f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=2000)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    main(parser.parse_args().tests)
