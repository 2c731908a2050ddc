"""Images in shards: written by a stage that was killed, and trained on."""

from functools import partial
from pathlib import Path

import pytest
from dying import die_at
from workplace import TINY, Workplace

from graftline.pipeline.__main__ import main
from graftline.pipeline.cli import compose


def test_what_does_nothing_is_told(
    color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose("shard", ["out=shards"]).stage, "the sample's own options are taken"
    typed = ["shard", "data=folder", f"data.path={color_folder}", "data.source.splits=false", "data.name=colors"]
    idle = {"data.split.test": "0", "data.parent": "none", "data.decisions": "x.csv", "data.decode.bands": "[1]"}
    assert main([*typed, "out=shards", *(f"{key}={value}" for key, value in idle.items())]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(idle)} does nothing here, as shards hold all images as they are" in told


def test_a_killed_stage_goes_on_and_its_shards_are_trained_on(workplace: Workplace, color_folder: Path) -> None:
    typed = ["shard", "data=folder", f"data.path={color_folder}", "data.name=colors", "out=shards", "shard_mb=0.1"]
    killed = workplace.run_function(
        partial(die_at, "graftline.data.shards.write:write_index", "before", [*typed, "workers=1"])
    )
    assert killed.code < 0, killed.output
    assert len(list(workplace.root.glob("shards/[!.]*"))) == 2, "what is to be there, and the first shard"

    ran = workplace.run(*typed, "workers=1")
    assert ran.code == 0, ran.output
    assert (ran.result["images"], ran.result["already"]) == (60, 0)
    assert ran.result["shards"] > 2
    assert "graftline train data=shards data.path=shards" in ran.output

    trained = workplace.run("train", *TINY, "trainer.max_epochs=1", "data=shards", "data.path=shards")
    assert trained.code == 0, trained.output
    assert list((trained.directory / "bundle" / "golden").rglob("real_*.png"))
