"""What an ensemble cannot be, by its keys: told before anything is read, or before the first member is trained."""

from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from workplace import TINY

from graftline.errors import UserError
from graftline.pipeline.cli import compose


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "runs or members is needed, and not both"),
        (["runs=a", "members=2"], "runs or members is needed, and not both"),
        (["members=1"], "members is 1, but an ensemble has at least 2"),
        (["members=2", "crops=12"], "crops is 12: take one of 1, mirror"),
        (["runs=a", "choose=all", "ms_per_image=3"], "ms_per_image is for choose=greedy"),
        (["runs=a", "choose=weighted", "ms_per_image=3"], "ms_per_image is for choose=greedy"),
        (["runs=a", "ms_per_image=0"], "it must be above 0 and finite"),
        (["runs=a", "folds=true"], "folds is for members that are trained: give members, not runs"),
        (["members=2", "train.fold=1/2"], "train.fold is each member's own here: leave it out, folds sets it"),
        (["members=2", "cluster=ray", "trainer=ddp_cpu"], "trainer.devices is 2, but each of several trainings"),
        (["members=2", "average=odds"], "average=odds: must be probabilities or logits"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose("ensemble", overrides)


@pytest.mark.parametrize(
    ("own", "message", "before_images"),
    [
        (["backbone.image_size=4", "crops=10"], "test_efficientnet: The crops '10' lie in the corners of", True),
        (["backbone.image_size=32,48", "choose=soup"], r"averages the weights of one network, .* at 48 px\)", True),
        (["backbone=efficientnet_lite0,resnet18", "backbone.weights=auto"], "resnet18", True),
        (
            ["backbone.image_size=auto,48", "choose=greedy_soup"],
            r"averages the weights of one network, .* 48 px",
            False,
        ),
        (
            ["backbone=test_efficientnet,test_vit", "backbone.weights=file", "backbone.file=own.safetensors"],
            "test_vit",
            False,
        ),
        (["backbone=test_vit,test_efficientnet", "freeze=names", "freeze.frozen=[conv_stem.*]"], "cls_token", True),
    ],
)
def test_members_that_cannot_be_trained_or_averaged_are_refused_before_the_first_is_trained(
    color_folder: Path,
    own: list[str],
    message: str,
    before_images: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_efficientnet", num_classes=3).state_dict(), "own.safetensors")
    data = ["data=folder", f"data.path={color_folder}"]
    typed = {one.partition("=")[0]: one for one in [*data, *TINY, "members=2", *own]}.values()
    with pytest.raises(UserError, match=message):
        compose("ensemble", [*typed]).run()
    assert Path("data").exists() != before_images
    assert "Member 1 of 2" not in capsys.readouterr().out
