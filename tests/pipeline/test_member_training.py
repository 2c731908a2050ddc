"""Which members of an ensemble are trained: all, or those that an interrupted one has not finished."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftline.files import write_json
from graftline.pipeline.cli import compose
from graftline.pipeline.ensembles.member_training import Member, train_members
from graftline.pipeline.runs.directory import RunDirectory
from graftline.pipeline.searching.winner import Winner
from graftline.ray_cluster import NoCluster, RayCluster
from graftline.tracking.tracking import Tracking


@pytest.mark.parametrize("resume", [False, True])
def test_a_member_of_an_earlier_ensemble_is_trained_anew_unless_that_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool
) -> None:
    stage: Any = compose("train").stage
    winner = Winner(stage, tmp_path, stage.backbone, None, "parent")  # type: ignore[arg-type]  # no image is looked at
    members = [Member(winner, f"members/{number}", number, None) for number in (1, 2)]
    result = RunDirectory(members[1].directory).result
    write_json(result, {"stage": "train", "run_id": "a" * 32})
    trained = list[str]()

    def train(_: Winner, folder: str, *__: object) -> None:
        assert not result.exists() or resume, "or it would count as finished if this one is interrupted"
        RunDirectory(tmp_path / folder).bundle.mkdir(parents=True)
        trained.append(folder)

    monkeypatch.setattr(Winner, "train_member", train)
    monkeypatch.setattr(Tracking, "find_runs", lambda *_: [])
    references = train_members(members, NoCluster(), resume=resume)
    first, second = (str(member.directory) for member in members)
    assert references == [first, "a" * 32 if resume else second], "a bundle that is on a node comes by its run"
    assert trained == (["members/1"] if resume else ["members/1", "members/2"])


@pytest.mark.extras
def test_members_that_were_finished_before_are_counted_on_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="ray is missing: make test-extras installs it")
    ray.shutdown()
    stage: Any = compose("train").stage
    version: Any = SimpleNamespace(samples=lambda _: SimpleNamespace(paths=[str(tmp_path)]), files=[])
    members = [Member(Winner(stage, tmp_path, stage.backbone, version, "parent"), f"{n}", n, None) for n in (0, 1)]
    for member in members:
        write_json(RunDirectory(member.directory).result, {"run_id": "a" * 32})
    assert train_members(members, RayCluster(num_workers=1), resume=True) == ["a" * 32] * 2
    assert capsys.readouterr().out.count(": it was finished before.") == 2
    ray.shutdown()
