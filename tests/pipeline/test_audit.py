"""The stage audit as a user runs it, from the sheet to the version that follows from the decisions."""

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from workplace import Workplace

from graftline.backbones.backbone import Backbone
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.errors import UserError
from graftline.evaluation.label_errors import require_cleanlab
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.pipeline.dataset_versions.head_activations import cut_below_head
from graftline.ray_cluster import NoCluster

NETWORK = ("backbone=test_efficientnet", "backbone.weights=none", "backbone.image_size=32", "accelerator=cpu")
COLORS = {"blue": (60, 80, 190), "<green>": (60, 170, 80), "red": (190, 60, 70)}


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """150 images of three colors: two with a wrong label, a copy, and one that is dark."""
    workplace = make_workplace("audit")
    generator = np.random.default_rng(0)
    for name, color in COLORS.items():
        (workplace.root / "photos" / name).mkdir(parents=True)
        for number in range(50):
            small = np.array(color) + generator.normal(0, 25, (6, 6, 3))
            picture = Image.fromarray(small.clip(0, 255).astype(np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
            picture.save(workplace.root / "photos" / name / f"{number}.png")
    for number in (3, 4):
        (workplace.root / f"photos/blue/{number}.png").rename(workplace.root / f"photos/red/wrong{number}.png")
    copied = Image.open(workplace.root / "photos/red/7.png")
    copied.save(workplace.root / "photos/red/copy.jpg", quality=92)
    Image.open(workplace.root / "photos/red/8.png").point(lambda level: level // 20).save(
        workplace.root / "photos/red/8.png"
    )
    return workplace


@pytest.fixture(scope="module")
def ran(place: Workplace) -> dict[str, Any]:
    ran = place.run("audit", "data=folder", "data.path=photos", *NETWORK)
    assert ran.code == 0, ran.output
    return {**ran.result, "output": ran.output, "directory": ran.directory}


def test_what_was_planted_is_found(ran: dict[str, Any]) -> None:
    table = pd.read_csv(ran["directory"] / "decisions.csv", keep_default_na=False)
    reasons = {path.split("photos/")[1]: reason for path, reason in zip(table["path"], table["reason"], strict=True)}
    suggested = {path.split("photos/")[1]: one for path, one in zip(table["path"], table["suggested"], strict=True)}
    for name in ("red/wrong3.png", "red/wrong4.png"):
        assert "the label is probably wrong" in reasons[name]
        assert suggested[name] == "blue"
    assert any("almost the same as" in reasons.get(name, "") for name in ("red/7.png", "red/copy.jpg"))
    assert "dark" in reasons["red/8.png"]
    assert ran["label_errors"] >= 2
    assert ran["near_duplicates"] >= 1
    assert "wrong3.png" in ran["output"]


def test_the_sheet_shows_them(ran: dict[str, Any]) -> None:
    page = (ran["directory"] / "audit.html").read_text(encoding="utf-8")
    images: list[str | None] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag != "green"  # names are escaped
            if tag == "img":
                images.append(dict(attrs)["src"])

    Reader().feed(page)
    assert len(images) >= ran["label_errors"] + 2 * ran["near_duplicates"]
    assert all(image is not None and image.startswith("data:image/webp;base64,") for image in images)
    assert "wrong3.png (" in page
    assert str(ran["directory"] / "decisions.csv") in page


def test_decisions_become_a_version_and_are_not_asked_for_again(ran: dict[str, Any], place: Workplace) -> None:
    table = pd.read_csv(ran["directory"] / "decisions.csv", keep_default_na=False)
    table["decision"] = np.where(table["path"].str.contains("wrong"), "relabel", "keep")
    table.to_csv(place.root / "decided.csv", index=False)
    after = place.run("ingest", "data=folder", "data.path=photos", "data.decisions=decided.csv")
    assert after.code == 0, after.output
    assert sum(after.result["changes"]["relabeled"].values()) == 2
    again = place.run("audit", "data=folder", "data.path=photos", *NETWORK)
    assert again.result["dataset_digest"] == after.result["dataset_digest"] != ran["dataset_digest"]
    asked = pd.read_csv(again.directory / "decisions.csv", keep_default_na=False)
    assert not set(zip(asked["sha256"], asked["label"], strict=True)) & set(
        zip(table["sha256"], table["label"], strict=True)
    )


def test_random_weights_are_the_same_each_time(color_folder: Path, tmp_path: Path) -> None:
    version = Ingest("colors", str(color_folder), Folder(), Split(), directory=str(tmp_path / "data")).run().version
    backbone, features = Backbone("test_efficientnet", weights="none"), Features(directory=str(tmp_path / "cache"))
    trunks = [cut_below_head(backbone, version, features, Execution(), NoCluster()) for _ in range(2)]
    one, other = (trunk.setup.graft.network.state_dict() for trunk in trunks)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_mistakes_are_told_before_images_are_read(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    told = place.run("audit", "splits=[training]", *NETWORK)
    assert told.code == 1
    assert "splits is ['training']: give one or more of train, validation, test." in told.output
    wrong = place.run("train", "data=folder", "data.path=photos", "data.decisions=none.csv")
    assert wrong.code == 1
    assert "data.decisions=none.csv cannot be read as a table" in wrong.output
    assert "Checking images" not in wrong.output
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "cleanlab", raising=False)
    with pytest.raises(UserError, match=r"pip install 'graftline\[audit\]'"):
        require_cleanlab()
