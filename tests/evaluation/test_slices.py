"""Slices: each accuracy is that of its images, and a slice that is no worse is hardly ever called so."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions_of
from scipy.stats import binom, fisher_exact, norm

from graftline.evaluation.predictions import Predictions
from graftline.evaluation.slices import cut, score_slices, sentence
from graftline.report.figures import write_slices_figure


def predictions(hits: np.ndarray, labels: np.ndarray | None = None) -> Predictions:
    """Predictions of two classes, in turns if nothing else is said, of which some are right."""
    labels = np.arange(len(hits)) % 2 if labels is None else labels
    given = np.where(hits, labels, 1 - labels)
    return predictions_of(np.where(np.eye(2)[given] == 1, 0.9, 0.1), labels)


def test_a_slice_has_the_accuracy_of_its_images() -> None:
    generator = np.random.default_rng(0)
    kind = np.where(np.arange(400) < 120, "poly", "mono")
    hits = generator.random(400) < np.where(kind == "poly", 0.6, 0.95)
    columns = pd.DataFrame(
        {"type": kind, "brightness": generator.random(400), "same": 1.0, "name": [*map(str, range(400))]}
    )
    slices = score_slices(predictions(hits), columns)
    assert {one.column for one in slices} == {"type", "brightness"}
    worst = slices[0]
    assert (worst.name, worst.images, worst.is_worse) == ("type poly", 120, True)
    assert worst.accuracy.value == hits[:120].mean()
    assert worst.rest == pytest.approx(hits[120:].mean()), "the classes are as frequent"
    of_one_class = predictions(hits, np.zeros(400, np.int64))
    table = [[hits[:120].sum(), (~hits[:120]).sum()], [hits[120:].sum(), (~hits[120:]).sum()]]
    p_value = score_slices(of_one_class, columns)[0].p_value
    assert p_value == pytest.approx(6 * fisher_exact(table, alternative="less").pvalue)  # the smallest of six
    assert worst.accuracy.low < worst.accuracy.value < worst.accuracy.high
    quarters = [one for one in slices if one.column == "brightness"]
    assert sum(one.images for one in quarters) == 400
    assert "type poly" in sentence(slices)
    assert "mono" not in sentence(slices)


def draw_cameras(generator: np.random.Generator, images: int, fall: float = 0.0) -> tuple[Predictions, np.ndarray]:
    """Two cameras with the same recalls, 0.96 and 0.7, of which b sees far more of the hard class; b's may be lower."""
    is_b = np.arange(images) % 2 == 0
    labels = (generator.random(images) < np.where(is_b, 0.6, 0.1)).astype(np.int64)
    hits = generator.random(images) < np.where(labels == 1, 0.7, 0.96) - fall * is_b
    return predictions(hits, labels), is_b


@pytest.mark.parametrize("per_group", [1, 10])
def test_a_slice_of_harder_classes_is_not_worse(per_group: int) -> None:
    """Each camera's recalls are the same, 200 times; where b's are lower by 10 points, that is seen."""
    generator = np.random.default_rng(3)
    false_alarms = found = 0
    for _ in range(200):
        groups = [str(number // (2 * per_group)) + "ab"[number % 2] for number in range(600)]
        for fall in (0.0, 0.15):
            made, is_b = draw_cameras(generator, 600, fall)
            if per_group > 1:
                made = replace(made, groups=groups)
            slices = score_slices(made, pd.DataFrame({"camera": np.where(is_b, "b", "a")}))
            flagged = [one.value for one in slices if one.is_worse]
            false_alarms += bool(flagged) and fall == 0
            found += flagged == ["b"] and fall > 0
    assert false_alarms <= binom.isf(0.01, 200, 0.05)
    assert found > 150
    b = next(one for one in slices if one.value == "b")
    hits = made.predicted == made.labels
    recalls = np.array([hits[~is_b & (made.labels == number)].mean() for number in (0, 1)])
    assert b.rest == pytest.approx(recalls[made.labels[is_b]].mean())


def test_the_exact_test_of_several_classes_is_near_that_of_mantel_and_haenszel() -> None:
    generator = np.random.default_rng(4)
    made, is_b = draw_cameras(generator, 4000, 0.03)
    p_value = score_slices(made, pd.DataFrame({"camera": np.where(is_b, "b", "a")}))[0].p_value / 2
    hits, excess, variance = made.predicted == made.labels, 0.0, 0.0
    for number in (0, 1):
        rows = made.labels == number
        n, inside, right = rows.sum(), (rows & is_b).sum(), (rows & hits).sum()
        excess += (rows & is_b & hits).sum() - inside * right / n
        variance += inside * (n - inside) * right * (n - right) / (n**2 * (n - 1))
    assert p_value == pytest.approx(norm.cdf((excess + 0.5) / np.sqrt(variance)), rel=0.1)  # Mantel and Haenszel 1959


def test_images_of_which_nothing_is_known_are_not_among_the_others() -> None:
    """Of 300 images one camera is known of 100: the others of either are those of the other one."""
    generator = np.random.default_rng(5)
    camera = ["a"] * 50 + ["b"] * 50 + [None] * 200
    sharpness = np.where(np.arange(300) < 100, np.arange(300), np.nan)
    hits = np.arange(300) < 290
    hits[:100] = generator.permutation(np.arange(100) < 60)
    slices = score_slices(predictions(hits), pd.DataFrame({"camera": camera, "sharpness": sharpness}))
    assert len(slices) == 6
    assert not any(one.is_worse for one in slices), "worse only than what is not known"
    assert all(one.rest < 0.8 for one in slices)


def test_of_many_values_those_with_most_images_are_slices(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {f"site {number}": 10 + number for number in range(60)} | {f"small {number}": 9 for number in range(40)}
    site = np.repeat(list(sizes), list(sizes.values()))
    with caplog.at_level("INFO"):
        parts = cut(pd.DataFrame({"site": site, "image": np.arange(len(site)).astype(str)}))
    assert {part.value for part in parts} == {f"site {number}" for number in range(10, 60)}
    assert "Of 60 values of “site”, the 50 with the most images are slices." in caplog.text
    assert "image" not in caplog.text.replace("images", "")


def test_few_are_called_worse_that_are_not() -> None:
    """Twelve slices of the same accuracy, 120 times: any of them is called worse at most once in twenty times."""
    generator = np.random.default_rng(1)
    false_alarms = 0
    for _ in range(120):
        hits = generator.random(240) < 0.85
        columns = pd.DataFrame({name: generator.random(240) for name in ("a", "b", "c")})
        false_alarms += any(one.is_worse for one in score_slices(predictions(hits), columns))
    assert false_alarms <= 11  # more would be seen once in a hundred such tests if it were one in twenty


def test_few_are_called_worse_that_are_not_where_images_have_groups() -> None:
    """30 groups of 12 images, each with a hit rate and columns of its own, 60 times."""
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(30), 12)
    given = [f"patient {number}" for number in groups]
    false_alarms = found = alone = held = slices_seen = 0
    for _ in range(60):
        rates = generator.beta(4, 1, 30)
        hits = generator.random(360) < rates[groups]
        columns = pd.DataFrame({name: generator.integers(0, 3, 30)[groups] for name in ("site", "device", "sex")})
        grouped = replace(predictions(hits), groups=given)
        of_groups = score_slices(grouped, columns)
        false_alarms += any(one.is_worse for one in of_groups)
        held += sum(one.accuracy.low <= 0.8 <= one.accuracy.high for one in of_groups)
        slices_seen += len(of_groups)
        alone += any(one.is_worse for one in score_slices(predictions(hits), columns))
        columns["site"] = np.arange(30)[groups] % 3
        worse = generator.random(360) < np.where(columns["site"] == 0, 0.4, 0.9)
        slices = score_slices(replace(predictions(worse), groups=given), columns)
        found += "site 0" in [one.name for one in slices if one.is_worse]
    assert false_alarms <= 7
    assert alone > 20, "each image for itself"
    assert 0.92 < held / slices_seen < 0.98, "0.8 is the mean of the groups' rates"
    assert found > 54
    by_group = score_slices(grouped, pd.DataFrame({"patient": given}))
    assert len(by_group) == 30
    assert not any(one.is_worse for one in by_group), "one group shows nothing of others"
    site, both = pd.DataFrame({"site": columns["site"]}), pd.DataFrame({"site": columns["site"], "patient": given})
    alone_p, beside_p = (
        min(one.p_value for one in score_slices(grouped, each) if one.is_tested) for each in (site, both)
    )
    assert alone_p == beside_p < 1, "and is not corrected for"
    assert " of 3 slices " in sentence(score_slices(grouped, both)), "nor counted"
    assert sentence(by_group).startswith("None of 30 slices was tested: each is of one group")


def test_answers_that_are_all_wrong_are_no_proof_where_images_have_groups() -> None:
    """Groups that tell nothing: few slices are called worse, also where no image of a class is right in one of them."""
    generator = np.random.default_rng(3)
    modules = [f"module {number}" for number in generator.integers(0, 35, 175)]
    labels = np.repeat([0, 1, 0, 1], [18, 26, 108, 23])
    hits = np.repeat([False, True, False, True, False, True, False], [18, 25, 1, 33, 75, 22, 1])
    columns = pd.DataFrame({"light": np.repeat(["dark", "bright"], [44, 131])})
    dark = score_slices(replace(predictions(hits, labels), groups=modules), columns)[0]
    assert (dark.value, dark.images) == ("dark", 44)
    assert 0.008 < dark.p_value < 0.05, "the exact test, which holds here, says 2 x 0.0077"

    false_alarms = 0
    for _ in range(60):
        labels = (generator.random(175) < 0.28).astype(np.int64)
        hits = generator.random(175) < np.where(labels == 1, 0.97, 0.25)
        given = replace(predictions(hits, labels), groups=modules)
        columns = pd.DataFrame({name: generator.random(175) for name in ("a", "b", "c")})
        false_alarms += any(one.is_worse for one in score_slices(given, columns))
    assert false_alarms <= binom.isf(0.01, 60, 0.05)


def test_small_slices_and_missing_values() -> None:
    hits = np.ones(60, bool)
    columns = pd.DataFrame({"group": ["rare"] * 9 + ["a"] * 26 + ["sole"] + [None] * 24, "empty": [None] * 60})
    slices = score_slices(predictions(hits), columns)
    assert [(one.value, one.images) for one in slices] == [("a", 26)]
    assert sentence(slices).startswith(
        "On none of 1 slices is the model significantly less accurate than on other images"
    )
    assert score_slices(predictions(hits), columns[["empty"]]) == []
    kinds = pd.Categorical(["a"] * 30 + [None] * 30, categories=["a", "b"])  # as of a column of all splits
    assert score_slices(predictions(hits), pd.DataFrame({"type": kinds})) == []
    assert "nothing to slice" in sentence([])


def test_values_of_a_column_of_numbers_have_names_of_their_own() -> None:
    megapixels, years = [12.16] * 20 + [12.19] * 20, np.repeat([1998, 2021, 2022, 2023], 10)
    columns = pd.DataFrame({"megapixels": megapixels, "single": np.array(megapixels, np.float32), "year": years / 1.0})
    columns["share"] = [0.123456, 2.0] * 20
    named = {name: [value for column, value, *_ in cut(columns) if column == name] for name in columns}
    assert named["megapixels"] == named["single"] == ["12.16", "12.19"]
    assert named["year"] == ["1998", "2021", "2022", "2023"]
    assert named["share"] == ["0.123", "2"]
    large = pd.DataFrame({"pixels": np.repeat([12160000, 12190000.0], 20)})
    assert [value for _, value, *_ in cut(large)] == ["1.216e+07", "1.219e+07"]
    ten_years = pd.DataFrame({"taken": 1998 + np.arange(80) // 8})
    assert [value for _, value, *_ in cut(ten_years)] == [
        "lowest (1998 to 2000)",
        "lower (2001 to 2002)",
        "higher (2003 to 2005)",
        "highest (2006 to 2007)",
    ]


def test_the_picture_shows_the_worst_first(tmp_path: Path) -> None:
    hits = np.arange(200) % 10 > 1
    hits[:40] = np.arange(40) % 2 == 0
    slices = score_slices(predictions(hits), pd.DataFrame({"type": np.where(np.arange(200) < 40, "poly", "mono")}))
    file = write_slices_figure(slices, tmp_path / "slices.svg")
    assert file is not None
    shown = [one.text for one in ET.parse(file).getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert shown[0] == "1 of 2 slices are worse"
    assert [one for one in shown if one and one.startswith("type ")] == ["type poly, 40", "type mono, 160"]
    assert write_slices_figure([], tmp_path / "none.svg") is None
