"""What the runs of several are called in MLflow, by their network and by what was swept; and how their group ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from graftline.pipeline.cli import sweep
from graftline.pipeline.cli.composed_stage import compose_all
from graftline.pipeline.cli.sweep import _differing, _name, _run_group

pytestmark = pytest.mark.usefixtures("one_hydra")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["seed=0,1"], ["tf_efficientnet_lite0 seed=0", "tf_efficientnet_lite0 seed=1"]),
        (
            ["backbone.head=stages", "seed=0,1"],
            ["tf_efficientnet_lite0+stages seed=0", "tf_efficientnet_lite0+stages seed=1"],
        ),
        (["backbone.head=last,stages"], ["tf_efficientnet_lite0 head=last", "tf_efficientnet_lite0 head=stages"]),
        (["backbone=resnet18,resnet50", "backbone.head=stages"], ["resnet18+stages", "resnet50+stages"]),
        (["freeze=none,measured"], ["tf_efficientnet_lite0 none", "tf_efficientnet_lite0 measured"]),
    ],
)
def test_a_run_of_several_is_named_by_its_network_and_what_was_swept(overrides: list[str], names: list[str]) -> None:
    jobs = compose_all("train", overrides)
    assert [_name(job, own) for job, own in zip(jobs, _differing(jobs), strict=True)] == names


@pytest.mark.parametrize("ended", [(), (0,)])
def test_an_interrupt_closes_the_group(ended: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_some(*_given: object) -> Iterator[tuple[int, int]]:
        yield from ((number, 0) for number in ended)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_run_each", run_some)
    jobs = compose_all("train", [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "seed=0,1"])
    with pytest.raises(KeyboardInterrupt):
        _run_group(jobs, None)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (group,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert group.info.status == "KILLED"
    assert group.data.tags["mlflow.note.content"].startswith(f"**2 runs**, of which {len(ended)} ended")
    assert ("seed=0" in group.data.tags["mlflow.note.content"]) == bool(ended), (
        "what differs between both, not ended ones"
    )
