"""Names: all of timm's, and help with those that are none."""

import sys
from pathlib import Path

import pytest
import timm

from graftline.backbones import catalog
from graftline.errors import UserError


def test_names_are_those_of_timm_with_and_without_tags() -> None:
    names = set(catalog.names())
    assert set(timm.list_models()) - {"stages"} <= names  # that is built around another network
    assert "stages" not in names
    assert set(timm.list_models(include_tags=True)) - {"stages"} <= names
    for name in ("tf_efficientnet_lite0", "resnet50", "resnet50.a1_in1k"):
        catalog.check(name)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("efficientnet-b0", "efficientnet_b0"),
        ("EfficientNet_B0", "efficientnet_b0"),
        ("resnet5", "resnet50"),
        ("densnet121", "densenet121"),
        ("resnet50.a1in1k", "resnet50.a1_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),  # renamed by timm
    ],
)
def test_a_wrong_name_gets_the_nearest_right_one(typed: str, meant: str) -> None:
    assert meant in catalog.suggest(typed)
    with pytest.raises(UserError, match=f"no backbone '{typed}': did you mean .*{meant}") as error:
        catalog.check(typed)
    assert len(str(error.value)) < 200  # never a list of a thousand


def test_a_name_that_resembles_none_gets_the_place_to_look() -> None:
    with pytest.raises(UserError, match=r"timm\.list_models"):
        catalog.check("qqqqqqqq")


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not loaded timm, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm")
    return tmp_path / "graftline"


def test_a_process_without_timm_reads_the_names_that_were_kept(without_timm: Path) -> None:
    made = catalog.keep()
    assert "timm" in sys.modules
    del sys.modules["timm"]
    assert catalog.catalog() == made
    assert "timm" not in sys.modules
    assert catalog.suggest("efficientnet-b0")[0] == "efficientnet_b0"
    assert catalog.suggest("vit_base_patch16_224_in21k") == ["vit_base_patch16_224.augreg_in21k"]
    assert "lenet5" in catalog.names()


@pytest.mark.parametrize("content", ["", "[1]", "[["])
def test_names_that_cannot_be_read_are_made_again(without_timm: Path, content: str) -> None:
    made = catalog.keep()
    (file,) = without_timm.iterdir()
    file.write_text(content)
    del sys.modules["timm"]
    assert catalog.catalog() == made
    assert len(file.read_text()) > 10_000


def test_a_cache_that_cannot_be_written_keeps_nothing(without_timm: Path) -> None:
    without_timm.write_text("no folder")
    assert "resnet50" in catalog.names()
