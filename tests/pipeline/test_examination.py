"""What a gate is told about the images that it looks at."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from manifest import manifest

from graftline.data.version import DatasetVersion
from graftline.data.version_writing import write_version
from graftline.evaluation.model_guards import ModelLimits
from graftline.pipeline.promotion import examination


def versions(tmp_path: Path, *tables: pd.DataFrame) -> list[DatasetVersion]:
    return [
        write_version(tmp_path / str(number) / "pets", "pets", table, ("cat", "dog"))[0]
        for number, table in enumerate(tables)
    ]


def test_test_images_that_are_gone_or_relabeled(tmp_path: Path) -> None:
    table = manifest(["cat", "dog"] * 15, ["train"] * 10 + ["test"] * 20)
    shuffled = table.assign(label=["cat", "dog"] * 5 + ["dog", "cat"] * 10)
    fewer = table.iloc[:19]
    more = pd.concat([table, table.assign(sha256=lambda rows: "a" + rows["sha256"].str[1:], path=table["path"] + "x")])
    before, same, other, gone, grown = versions(tmp_path, table, table, shuffled, fewer, more)
    assert examination._same_test(before, same, 0.1)[0].passed
    assert examination._same_test(before, grown, 0.1)[0].passed
    (guard,) = examination._same_test(before, other, 0.1)
    assert guard.reason.startswith(
        "Of the 20 images that tested the champion 0 are gone and 20 have another label, 100"
    )
    (guard,) = examination._same_test(before, gone, 0.1)
    assert guard.difference == "11 gone, 0 relabeled"
    assert not guard.passed
    (guard,) = examination._same_test(None, gone, 0.1)
    assert (guard.champion, guard.challenger, guard.difference, guard.passed) == ("unknown", "9", "not compared", True)


class _Model:
    """Takes so many seconds for an image, one call after the other; the last of them for all further calls."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.predictor = self

    def logits(self, paths: list[str], _: int) -> None:
        time.sleep((self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]) * len(paths))


@pytest.mark.parametrize(("later", "is_refused"), [(0.001, False), (0.02, True)])
def test_a_model_is_refused_as_too_slow_only_if_it_is_so_once_more(
    later: float, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "SECONDS_TO_REFUSE", 0.5)
    limits = ModelLimits(slower=4)
    disturbed = _Model(*[0.02] * (2 + examination.TIMED_ROUNDS), later)
    models: Any = [disturbed, _Model(0.001)]
    ours, theirs = examination._measure(models, ["a.png"], limits)
    assert limits.refuse_time(1000 * ours, 1000 * theirs) == is_refused
    (alone,) = examination._measure([models[1]], ["a.png"], ModelLimits(milliseconds=0.5))
    assert alone >= 0.001
