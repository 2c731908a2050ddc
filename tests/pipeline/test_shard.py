"""Images in shards: written by a stage that was killed, and trained on."""

from functools import partial
from pathlib import Path

from dying import die_at
from workplace import TINY, Workplace


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
    assert "make train data=shards data.path=shards" in ran.output

    trained = workplace.run("train", *TINY, "trainer.max_epochs=1", "data=shards", "data.path=shards")
    assert trained.code == 0, trained.output
    assert list((trained.directory / "bundle" / "golden").rglob("real_*.png"))
