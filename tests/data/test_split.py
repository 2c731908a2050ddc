"""Splits have their shares in every stratum, keep units together, and are the same for the same seed."""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split, draw
from graftline.errors import UserError

SHARES = {"train": 0.60, "validation": 0.15, "test": 0.25}


def table(
    labels: list[str], groups: Sequence[str | None] | None = None, contents: list[str] | None = None
) -> pd.DataFrame:
    number = len(labels)
    return pd.DataFrame(
        {
            "path": [f"/images/{index:06}" for index in range(number)],
            "label": labels,
            "stratum": pd.Series([None] * number, dtype="str"),
            "group": pd.Series(list(groups or [None] * number), dtype="str"),
            "sha256": contents or [str(index) for index in range(number)],
            "split": pd.Series([None] * number, dtype="str"),
        }
    )


def count(images: pd.DataFrame, by: str = "label") -> np.ndarray:
    """Count images by stratum, in order (S), and split (3)."""
    return pd.crosstab(images[by], images["split"]).reindex(columns=list(SHARES), fill_value=0).to_numpy()


def test_each_class_has_its_sharesand_the_whole_has_too() -> None:
    images = Split().assign(table(["a"] * 1_000 + ["b"] * 100 + ["c"] * 33))
    counts = count(images)
    assert counts[:2].tolist() == [[600, 150, 250], [60, 15, 25]]
    np.testing.assert_allclose(counts[2], 33 * np.array(list(SHARES.values())), atol=1)
    np.testing.assert_allclose(counts.sum(axis=0), 1_133 * np.array(list(SHARES.values())), atol=1)


def test_roundings_of_many_small_classes_do_not_add_up() -> None:
    """Three images per class are 1.8 / 0.45 / 0.75: rounded one by one, no class would ever have validation images."""
    images = Split().assign(table([f"{index // 3:03}" for index in range(900)]))
    np.testing.assert_allclose(images["split"].value_counts()[list(SHARES)], [540, 135, 225], atol=1)
    assert set(images.loc[images["split"] == "train", "label"]) == set(images["label"])


def test_the_seed_alone_decides() -> None:
    images = table(["a", "b"] * 100, [str(index // 4) for index in range(200)])
    first, again, other = (Split(seed=seed).assign(images)["split"].tolist() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_strata_have_their_shares() -> None:
    """ELPV by probability x type, as published: a quarter of each stratum is for testing."""
    images = Elpv().read(None)
    nothing = pd.Series([None] * len(images), dtype="str")
    images = Split().assign(images.assign(sha256=images["path"], group=nothing, split=nothing))
    counts = count(images, by="stratum")
    expected = counts.sum(axis=1, keepdims=True) * np.array(list(SHARES.values()))
    np.testing.assert_allclose(counts, expected, atol=1)
    assert counts.sum(axis=0).tolist() == [1_574, 394, 656]


def test_no_group_is_in_two_splits_and_classes_keep_their_shares() -> None:
    generator = np.random.default_rng(0)
    groups = [f"g{index}" for index in generator.integers(0, 150, 3_000)]
    labels = generator.choice(["a", "b", "c"], 3_000, p=[0.6, 0.3, 0.1]).tolist()
    images = Split().assign(table(labels, [group if index % 5 else None for index, group in enumerate(groups)]))
    assert images.dropna(subset="group").groupby("group")["split"].nunique().max() == 1
    counts = count(images)
    np.testing.assert_allclose(
        counts / counts.sum(axis=1, keepdims=True), np.tile(list(SHARES.values()), (3, 1)), atol=0.03
    )


def test_groups_alone_are_stratified_as_well_as_they_can_be() -> None:
    """Twenty groups of ten, each of one class: 12 / 3 / 5 groups is the only right answer."""
    groups = [f"g{index // 10:02}" for index in range(200)]
    images = Split().assign(table(["a" if index < 100 else "b" for index in range(200)], groups))
    assert images.groupby("split")["group"].nunique().to_dict() == {"train": 12, "validation": 3, "test": 5}
    assert count(images).sum(axis=0).tolist() == [120, 30, 50]
    assert count(images)[:, 0].tolist() == [60, 60]


def test_copies_and_groups_are_kept_together_through_each_other() -> None:
    """Image 0 and 1 share a group, 1 and 2 a content, 2 and 3 a group: all four are one unit."""
    groups = ["p", "p", "q", "q"] + [None] * 96
    contents = ["0", "x", "x", "3"] + [str(index) for index in range(4, 100)]
    for seed in range(20):
        images = Split(seed=seed).assign(table(["a", "b"] * 50, groups, contents))
        assert images["split"].head(4).nunique() == 1


def test_training_has_every_class_whatever_its_size() -> None:
    labels = ["a"] * 50 + ["once"] + ["grouped"] * 6
    groups = [None] * 51 + ["g"] * 6
    for seed in range(30):
        images = Split(seed=seed).assign(table(labels, groups))
        assert set(images.loc[images["split"] == "train", "label"]) == set(labels)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([20, 20, 20], [20, 20, 20]),
        ([50, 5, 5], [50, 5, 5]),
        ([30, 30], [30, 0, 30]),  # too few units
        ([1] * 8, [5, 1, 2]),
    ],
)
def test_each_split_has_a_unit_where_there_are_enough(sizes: list[int], expected: list[int]) -> None:
    groups = [f"g{index}" for index, size in enumerate(sizes) for _ in range(size)]
    images = Split().assign(table(["a", "b"] * (len(groups) // 2), groups))
    assert images["split"].value_counts().reindex(list(SHARES), fill_value=0).tolist() == expected
    assert images.groupby("group")["split"].nunique().max() == 1


def test_no_split_takes_what_training_or_another_split_needs() -> None:
    """Each label is in one group alone, so that training has all of them, or is of one that is known already."""
    groups = [f"g{index // 20}" for index in range(60)]
    images = table(["a"] * 20 + ["b"] * 20 + ["c"] * 20, groups)
    assert set(Split().assign(images)["split"]) == {"train"}
    known = images.assign(label=["a", "b"] * 30, split="train")
    assert set(draw(known, SHARES, seed=0)) == {"train"}


def test_an_existing_split_is_kept_and_what_it_lacks_is_drawn_from_training() -> None:
    images = table(["a", "b"] * 100)
    images["split"] = ["train"] * 160 + ["test"] * 40
    assigned = Split().assign(images)
    assert (assigned["split"].tail(40) == "test").all()
    assert assigned["split"].head(160).value_counts().to_dict() == {"train": 128, "validation": 32}  # 0.60 : 0.15
    assert Split().lacking(images) == ["validation"]
    assert Split(existing=False).lacking(images) == []
    assert Split(existing=False).assign(images)["split"].value_counts()["test"] == 50
    assert Split(train=0.7, validation=0.0, test=0.3).assign(images)["split"].tolist() == images["split"].tolist()


@pytest.mark.parametrize(
    ("given", "train", "validation", "test"),
    [
        ({"test": 0.2}, 0.65, 0.15, 0.2),  # the example of README: training takes what the others leave
        ({"validation": 0.1}, 0.65, 0.1, 0.25),
        ({"test": 0.0}, 0.85, 0.15, 0.0),
        ({"test": 0.9}, 0.08, 0.02, 0.9),  # nothing would be left for training: what is left is shared as usual
        ({"train": 0.8}, 0.8, 0.075, 0.125),
        ({"train": 0.7, "test": 0.2}, 0.7, 0.1, 0.2),
        ({"train": 0.8, "test": 0.2}, 0.8, 0.0, 0.2),
    ],
)
def test_shares_that_are_not_given_follow_from_those_that_are(
    given: dict[str, float], train: float, validation: float, test: float
) -> None:
    shares = Split(**given).shares  # type: ignore[arg-type]  # some of its fields are no numbers
    assert shares == pytest.approx({"train": train, "validation": validation, "test": test})


def test_mistakes_have_a_way_out() -> None:
    images = table(["a", "b"])
    for shares, told in (
        (
            {"train": 0.5, "validation": 0.2, "test": 0.2},
            r"Split\.train=0\.5 \+ Split\.validation=0\.2 \+ Split\.test=0\.2",
        ),
        ({"train": 0.0}, r"Split\.train=0"),
        ({"test": 1.0}, r"Split\.test=1"),
        ({"train": 1.1, "validation": -0.35}, r"Split\.train=1\.1 \+ Split\.validation=-0\.35"),
        ({"validation": float("nan")}, "nan"),
    ):
        with pytest.raises(UserError, match=rf"{told} cannot be met: all three must add up to 1"):
            Split(**shares)  # type: ignore[arg-type]  # some of its fields are no numbers
    with pytest.raises(UserError, match="no training images, only test"):
        Split().assign(images.assign(split="test"))
    with pytest.raises(UserError, match=r"1 images have no split \(first: /images/000001\)"):
        Split().assign(images.assign(split=pd.Series(["train", None], dtype="str")))


def test_it_is_fast_enough_for_many_groups() -> None:
    """Time grows with the images, not with images x groups: twenty times as many take less than sixty times as long."""
    seconds = []
    for number in (5_000, 100_000):
        images = table(["a", "b"] * (number // 2), [str(index // 5) for index in range(number)])
        start = time.process_time()
        draw(images, SHARES, seed=0)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 60 * seconds[0]
