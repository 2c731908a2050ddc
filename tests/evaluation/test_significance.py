"""Tests and corrections against sums written out and the published examples."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from graftline.evaluation.significance import (
    ALPHA,
    critical_level,
    findable_difference,
    holm,
    mcnemar,
    reach,
    smallest_difference,
    two_sided,
)


def written_out(won: int, lost: int) -> float:
    """Sum the binomial distribution in whole numbers: twice the smaller tail, at most 1."""
    discordant = won + lost
    tail = sum(comb(discordant, number) for number in range(min(won, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**discordant)))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (6, 0), (5, 15), (31, 49), (30, 50), (121, 59), (400, 401)])
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    assert mcnemar(won, lost) == pytest.approx(written_out(won, lost), rel=1e-10)
    assert mcnemar(won, lost) == mcnemar(lost, won)


def test_mcnemar_is_what_statsmodels_gives() -> None:
    # statsmodels 0.15.0: mcnemar([[0, 59], [86, 0]], exact=True).pvalue
    assert mcnemar(59, 86) == pytest.approx(0.030481814649487685)


def test_holm_is_what_statsmodels_gives() -> None:
    p_values = [0.012, 0.001, 0.04, 0.2, 0.012]
    # statsmodels 0.15.0: multipletests(p_values, method="holm")[1]
    assert holm(p_values) == pytest.approx([0.048, 0.005, 0.08, 0.2, 0.048])
    assert holm([]) == []


@pytest.mark.parametrize("others", [[], [0.2, 0.3], [0.001, 0.2, 0.02], [0.0, 0.001, 0.01], [0.04]])
def test_the_critical_level_is_where_holm_turns(others: list[float]) -> None:
    level = critical_level(others)
    assert holm([level * 0.999, *others])[0] <= ALPHA
    assert holm([level * 1.001, *others])[0] > ALPHA


@pytest.mark.parametrize(("num_images", "discordant"), [(656, 80), (656, 81), (50, 6), (10_000, 700)])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_smallest_difference_is_where_mcnemar_turns(num_images: int, discordant: int, level: float) -> None:
    found = smallest_difference(num_images, discordant, level)
    if found is None:
        assert written_out(discordant, 0) > level
        return
    won = round((found * num_images + discordant) / 2)
    assert written_out(won, discordant - won) <= level
    assert 2 * won - 2 < discordant or written_out(won - 1, discordant - won + 1) > level


def test_connors_equation_holds() -> None:
    """A sample of the size that Connor's equation asks for finds the difference that was put into it."""
    difference, share = 0.05, 0.15
    z_level, z_power = 1.959964, 0.841621
    size = (z_level * share**0.5 + z_power * (share - difference**2) ** 0.5) ** 2 / difference**2
    assert findable_difference(1_000_000, 0) == 0
    found = findable_difference(round(size), round(share * size))
    assert found == pytest.approx(difference, rel=0.005)


@pytest.mark.parametrize("num_images", [10, 656, 20_000])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_no_larger_difference_is_findable_than_there_can_be(num_images: int, level: float) -> None:
    found = {number: findable_difference(num_images, number, level) for number in range(1, min(num_images, 200) + 1)}
    assert all(one is None or one <= number / num_images for number, one in found.items())
    assert found[6] is None, "even if all six are won"
    assert num_images == 10 or found[60] is not None


def test_without_a_spread_the_number_of_images_tells() -> None:
    """All differ alike: as rare as so many tosses of a coin that all come out the same."""
    assert two_sided(0.1, 0.0, units=6) == written_out(6, 0)
    assert two_sided(0.1, 0.0, units=1) == 1
    assert two_sided(0.0, 0.0, units=6) == 1


@pytest.mark.parametrize("units", [2, 6, 400])
def test_the_p_value_is_that_of_the_paired_t_test(units: int) -> None:
    differences = np.random.default_rng(units).normal(0.5, 1, units)
    error = differences.std() / np.sqrt(units)  # what resampling gives, with ever more resamples
    expected = ttest_1samp(differences, 0)
    assert two_sided(float(differences.mean()), float(error), units) == pytest.approx(expected.pvalue)
    far = reach(float(error), units)
    assert differences.mean() - far == pytest.approx(expected.confidence_interval(0.95).low)
