"""Each file in conf/backbone: says how it is used, and builds."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_class

from graftline.backbones import catalog
from graftline.backbones.backbone import Backbone
from graftline.backbones.weights import PACKAGED

FILES = sorted((Path(__file__).parents[2] / "conf" / "backbone").rglob("*.yaml"))


def test_there_are_as_many_as_we_mean_to_recommend() -> None:
    assert len(FILES) == 14


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_names_its_command_and_builds(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.startswith(f"# make train backbone={file.stem}")
    values = yaml.safe_load(text)
    target = get_class(values.pop("_target_"))
    assert issubclass(target, Backbone)
    catalog.check(values["name"])
    with torch.device("meta"):  # shapes only
        graft = target(**{**values, "weights": "none"}).build(2)
    assert graft.network.num_classes == 2


def test_the_embedded_sample_needs_no_network() -> None:
    names = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))["name"] for file in FILES}
    assert {names[f"efficientnet_lite{number}"] for number in range(3)} == set(PACKAGED)
