"""How the processes of a training are divided among the nodes of a Ray cluster, without Ray."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graftline.errors import UserError
from graftline.pipeline.cli import ray_training
from graftline.pipeline.cli.composed_stage import ComposedStage
from graftline.pipeline.cli.ray_training import RayTraining, even_numbers
from graftline.ray_cluster import RayCluster


class TwoNodes(RayCluster):
    """A cluster of two nodes with four GPUs each, beside a head that has none."""

    def resources(self) -> list[Mapping[str, float]]:
        return [{"CPU": 2.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]


def test_each_node_gets_the_same_number() -> None:
    assert even_numbers([4, 4]) == {1: 1, 2: 2, 3: 3, 4: 4, 6: 3, 8: 4}
    assert even_numbers([8, 8, 4])[16] == 8
    assert even_numbers([8, 8, 4])[12] == 6, "on two nodes rather than on three"
    assert even_numbers([]) == {}


def test_what_the_processes_print_is_printed_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_training, "SECONDS_TO_FOLLOW", 0.02)
    text = "Größe: 1\nGröße: 2\n"
    content, file = text.encode(), tmp_path / "told.txt"
    within = content.index("ö".encode()) + 1
    with ray_training._followed(file):
        for part in (content[:within], content[within:]):
            with file.open("ab") as told:
                told.write(part)
            time.sleep(0.5)
    assert capsys.readouterr().out == text


def test_a_number_that_cannot_be_divided_is_refused_with_those_that_can() -> None:
    job = ComposedStage("train", OmegaConf.create({"trainer": {"accelerator": "auto"}}), [], Path())
    six, five, nine = (RayTraining(job, TwoNodes(), number) for number in (6, 5, 9))
    assert six._find_room() == ("GPU", 3)
    told = r"trainer\.devices is 5, but the Ray cluster has 8 GPUs on 2 nodes, .*: give 4 or 6 or another cluster"
    with pytest.raises(UserError, match=told):
        five._find_room()
    with pytest.raises(UserError, match="give 8 or another cluster"):
        nine._find_room()


def test_a_second_lightning_is_refused_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"strategy": "ray", "devices": 2}
    job = ComposedStage("train", OmegaConf.create({"trainer": trainer, "cluster": None}), [], tmp_path)
    assert RayTraining.of(job) == RayTraining(job, RayCluster(), 2)
    metadata = tmp_path / "lightning-2.6.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: lightning\nVersion: 2.6.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as refused:
        RayTraining.of(job)
    assert str(refused.value) == (
        "The package lightning 2.6.1 is beside pytorch-lightning, and Ray takes it instead, whose Trainer knows none "
        "of our callbacks: pip uninstall lightning."
    )
