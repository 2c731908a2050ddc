"""`make cost`: several networks in one run and one directory."""

import csv
import json
from pathlib import Path

import pytest
from hydra.utils import instantiate
from workplace import Workplace

from graftline.backbones.backbone import Backbone
from graftline.errors import UserError
from graftline.pipeline.cli import compose
from graftline.pipeline.cost import CostStage


def test_several_networks_are_one_run(workplace: Workplace) -> None:
    ran = workplace.run(
        "cost",
        "backbone=test_efficientnet,test_resnet.r160_in1k",
        "backbone.image_size=32",
        "batch_size=2",
        "seconds=0.1",
    )
    assert ran.code == 0, ran.output
    files = {str(path.relative_to(ran.directory)) for path in ran.directory.rglob("*") if path.is_file()}
    names = ["test_efficientnet", "test_resnet"]
    assert files == {
        *(f".hydra/{name}.yaml" for name in ("config", "overrides")),
        *(f"{folder}/{name}.csv" for folder in ("stages", "layers") for name in names),
        "cost.csv",
        "cost.json",
        "cost.png",
        "log.txt",
        "result.json",
    }
    costs = json.loads((ran.directory / "cost.json").read_text())
    assert [cost["network"] for cost in costs] == names
    assert [cost["image_size"] for cost in costs] == [[32, 32]] * 2
    assert [len(cost["milliseconds_per_image"]) for cost in costs] == [4, 4]
    with (ran.directory / "cost.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["macs"]) for row in rows] == [cost["macs"] for cost in costs]
    assert all(float(row["onnx_milliseconds_batch_2"]) > 0 for row in rows)
    with (ran.directory / "layers" / "test_resnet.csv").open() as file:
        assert sum(int(row["macs"]) for row in csv.DictReader(file)) == costs[1]["macs"]
    assert ran.result["metrics"] == {}
    assert ran.result["networks"]["test_resnet"]["parameters"] == costs[1]["parameters"]
    assert f"{costs[1]['parameters']:,}" in ran.output
    # the stages of each network that was named, then all of them side by side
    tables = ["test_efficientnet, 32 px", "blocks.3", "test_resnet, 32 px", "layer3", "2 networks"]
    places = [ran.output.index(text) for text in tables]
    assert places == sorted(places)


def test_one_network_is_shown_by_stage(workplace: Workplace) -> None:
    ran = workplace.run("cost", "backbone=resnet18", "measure=false")
    assert ran.code == 0, ran.output
    for text in ("layer3", "total", "11,689,512", "1,814,073,344"):
        assert text in ran.output
    assert not (ran.directory / "cost.png").exists()


def test_a_wrong_name_is_a_mistake_before_anything_starts(workplace: Workplace) -> None:
    ran = workplace.run("cost", "backbone=vgg16,resnet5O")
    assert ran.code == 1
    assert "did you mean resnet50" in ran.output


def test_a_key_that_one_of_the_networks_does_not_have_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"backbone\.phi: resnet18 has no such key"):
        compose("cost", ["backbone=efficientnet,resnet18", "phi=1"])


def test_a_mistake_in_the_last_network_is_found_before_the_first_is_priced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CostStage, "_count_and_measure", lambda *_: pytest.fail("counted"))
    backbones = [Backbone("resnet18", image_size=20), Backbone("vgg16", image_size=20)]
    with pytest.raises(UserError, match="'vgg16' cannot take images of 20 px"):
        CostStage(backbones, measure=False).run(tmp_path)


def test_without_a_name_the_notes_networks_are_compared() -> None:
    composed = compose("cost", [])
    names = [backbone["name"] for backbone in composed.config.backbones]
    assert len(names) == 24
    assert {"lenet5", "alexnet", "vgg16", "nin", "googlenet", "resnet152", "mobilenetv2_100"} <= set(names)
    assert "by_stage" not in composed.config  # 24 tables are too many


def test_the_networks_of_the_papers_are_counted_for_the_papers_images() -> None:
    backbones = [instantiate(node) for node in compose("cost", []).config.backbones]
    sizes = {b.name: b.preprocessing().image_size[0] for b in backbones if b.name.startswith("efficientnet_b")}
    published = {
        f"efficientnet_b{number}": size for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
    }
    assert {name.partition(".")[0]: size for name, size in sizes.items()} == published
    smaller = compose("cost", ["backbone.image_size=96"]).config.backbones
    assert [backbone["image_size"] for backbone in smaller] == [96] * 24


def test_a_network_named_twice_is_priced_once() -> None:
    names = [backbone["name"] for backbone in compose("cost", ["backbone=resnet18,nin,resnet18"]).config.backbones]
    assert names == ["resnet18", "nin"]


def test_every_combination_is_a_network() -> None:
    composed = compose("cost", ["backbone=resnet18,efficientnet_lite0", "backbone.image_size=160,224", "seconds=1"])
    assert [(backbone["name"], backbone["image_size"]) for backbone in composed.config.backbones] == [
        ("resnet18", 160),
        ("resnet18", 224),
        ("tf_efficientnet_lite0", 160),
        ("tf_efficientnet_lite0", 224),
    ]
    assert composed.config.seconds == 1
    assert "backbone" not in composed.config
