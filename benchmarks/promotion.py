"""How far the gate can be trusted: simulated models whose true difference is known.

    python benchmarks/promotion.py [--tests 500]

Prints how often a challenger is promoted that is better, equal or worse by so much of the log loss, by either rule; how
often the guards alone refuse one that is equal; how often the score that decides lets one pass that is less accurate by
so many points, also where the champion is better; how often the guards find one that is worse on a slice of the images;
and how often an equal one passes for better where there are few images, or few groups of them.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid
from scipy.optimize import brentq
from scipy.stats import norm

from graftline.evaluation.comparison import Metric
from graftline.evaluation.contestant import Contestant, ModelFacts, TestImages
from graftline.evaluation.gate import Gate, GateResult, examine

SKILL = 1.2  # of the champion: 88 % right, log loss 0.28
COMMON = 0.9  # share of the variance that both models see in an image: they disagree about one image in fourteen
COLUMNS, PARTS = 8, 4  # what there is to slice by: 32 slices
CHANGES = (-0.10, -0.05, -0.02, 0.0, 0.02, 0.05, 0.10)  # of the log loss; below 0 is better
GOOD_SKILLS = (1.2, 1.7, 2.2, 3.0)  # of champions: 88.5, 95.5, 98.6 and 99.9 % right, log loss 0.27, 0.11, 0.038, 0.004
POINTS_LOST = (0.0, 0.3, 1.0, 2.0)  # of accuracy
FACTS = ModelFacts(milliseconds=1.0, megabytes=1.0, input="RGB", frozen="0 frozen")


def log_loss(skill: float) -> float:
    """Return the log loss over all images of a calibrated model of two classes.

    The evidence for the true class is normal around the skill, with a spread of 1; by Bayes' rule its logit is twice
    their product.
    """
    seen = np.linspace(skill - 9, skill + 9, 2001)
    return float(trapezoid(np.logaddexp(0, -2 * skill * seen) * norm.pdf(seen, skill), seen))


@cache
def skill_of(change: float) -> float:
    """Return the skill of a model whose log loss is the champion's times 1 + change."""
    return float(brentq(lambda skill: log_loss(skill) - (1 + change) * log_loss(SKILL), 0.5, 2.5))


def less_accurate(skill: float, points: float) -> float:
    """Return the skill of a model that has so many points of accuracy less than one of a skill."""
    return float(norm.ppf(norm.cdf(skill) - points / 100))


def contestants(
    skills: Sequence[float], images: int, generator: np.random.Generator, lost_on_slice: float = 0.0
) -> tuple[TestImages, list[Contestant]]:
    """Make up a champion and a challenger of the two skills.

    Args:
        skills: of both.
        images: how many.
        generator: of random numbers.
        lost_on_slice: skill that the challenger lacks on the first slice of the first column.
    """
    labels = np.array(["no", "yes"], dtype=object)[generator.integers(0, 2, images)]
    columns = pd.DataFrame({f"column {number}": generator.integers(0, PARTS, images) for number in range(COLUMNS)})
    seen = np.sqrt(COMMON) * generator.normal(size=images)
    models = []
    for number, skill in enumerate(skills):
        own = np.full(images, skill)
        if number == 1:
            own -= lost_on_slice * (columns["column 0"] == 0).to_numpy()
        margin = 2 * skill * (own + seen + np.sqrt(1 - COMMON) * generator.normal(size=images))
        logits = np.stack([np.zeros(images), np.where(labels == "yes", margin, -margin)], axis=1)
        models.append(Contestant(f"version {number + 1}", ("no", "yes"), logits, str(number), facts=FACTS))
    names = [f"/{number}.png" for number in range(images)]
    unseen = np.zeros(images, dtype=bool)
    return TestImages(names, labels, names, "made up", "made up", columns=columns, seen=unseen), models


def results(
    tests: int, gate: Gate, skills: Sequence[float], images: int, lost_on_slice: float = 0.0, first_seed: int = 0
) -> list[GateResult]:
    """Return what the gate says of challengers, for the skills of both."""
    found = []
    for seed in range(first_seed, first_seed + tests):
        generator = np.random.default_rng(seed)
        made, (champion, challenger) = contestants(skills, images, generator, lost_on_slice)
        found.append(examine(gate, made, challenger, champion))
    return found


def equal_in_groups(groups: int, each: int, generator: np.random.Generator) -> tuple[TestImages, list[Contestant]]:
    """Make up two models that are equally good, on images that are all alike within their group.

    Args:
        groups: how many.
        each: images of a group.
        generator: of random numbers.
    """
    images, models = contestants((SKILL, SKILL), groups, generator)
    rows = np.repeat(np.arange(groups), each)
    names = [f"/{number}.png" for number in range(len(rows))]
    made = TestImages(names, images.labels[rows], names, "made up", "made up", groups=[str(row) for row in rows])
    return made, [replace(model, logits=model.logits[rows]) for model in models]


def better_by_chance(groups: int, each: int, tests: int, gate: Gate) -> float:
    """Return the share of equally good models that pass for better by the score that decides."""
    passed = 0
    for seed in range(tests):
        made, (champion, challenger) = equal_in_groups(groups, each, np.random.default_rng(seed))
        passed += examine(replace(gate, rule="better"), made, challenger, champion).guards[0].passed
    return passed / tests


def guards_hold(result: GateResult) -> bool:
    """Return whether all but the score that decides let a challenger pass."""
    return all(guard.passed for guard in result.guards[1:])


def main(tests: int) -> None:
    """Print the rates."""
    gate = Gate(resamples=400)
    print(f"of {tests:,} challengers, in per cent")
    print("images  log loss  promoted: not_worse  better  a guard refuses")
    for images, change in itertools.product((650, 3000), CHANGES):
        found = results(tests, gate, (SKILL, skill_of(change)), images)
        shares = [
            np.mean([one.passed for one in found]),
            np.mean([one.guards[0].figures[2] < 0 and guards_hold(one) for one in found]),  # as rule: better
            np.mean([not guards_hold(one) for one in found]),
        ]
        numbers = "".join(f"{100 * share:>{width}.1f}" for share, width in zip(shares, (21, 8, 17), strict=True))
        print(f"{images:>6,}  {100 * change:>+6.0f} %{numbers}", flush=True)
    print("champion's accuracy  points lost  passes by the log loss of 650 images")
    for skill, points in itertools.product(GOOD_SKILLS, POINTS_LOST):
        found = results(tests, gate, (skill, less_accurate(skill, points)), 650)
        passed = 100 * np.mean([one.guards[0].passed for one in found])
        print(f"{100 * norm.cdf(skill):>19.1f}  {points:>11.1f}{passed:>37.1f}", flush=True)
    print("images  points lost on one slice of 32  a guard refuses")
    for images, lost in itertools.product((650, 3000), (0.3, 0.6, 1.0)):
        found = results(tests, gate, (SKILL, skill_of(-0.02)), images, lost_on_slice=lost)
        refused = np.mean([not guards_hold(one) for one in found])
        drop = 100 * (norm.cdf(SKILL) - norm.cdf(SKILL - lost))
        print(f"{images:>6,}  {drop:>30.0f}{100 * refused:>17.1f}", flush=True)
    print("groups  images of each  an equal model passes for better: log loss  accuracy")
    for each, groups in itertools.product((1, 10), (6, 8, 10, 20, 50)):
        metrics: tuple[Metric, ...] = ("log_loss", "accuracy")
        log_losses, accuracies = (better_by_chance(groups, each, tests, replace(gate, metric=one)) for one in metrics)
        print(f"{groups:>6,}  {each:>14,}{100 * log_losses:>44.1f}{100 * accuracies:>10.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=500)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    main(parser.parse_args().tests)
