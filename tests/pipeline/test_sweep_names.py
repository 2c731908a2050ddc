"""What the runs of several are called in MLflow: by their network and by what was swept."""

import pytest

from graftline.pipeline.cli.composed_stage import compose_all
from graftline.pipeline.cli.sweep import _differing, _name

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
