"""The table of families, and a part of what it says."""

import json
from pathlib import Path

from timm.models import list_modules

import graftline.backbones.zoo  # noqa: F401 - its modules are among timm's from then on
from benchmarks.families import WORKS, FamilyResult, examine, make_dataset, read_page
from graftline.backbones.families import OWN, TRIED


def test_those_that_need_no_trial_are_those_that_work_in_the_table() -> None:
    assert {family for family, found in read_page().items() if found.bundle == WORKS} == TRIED - OWN
    assert not TRIED - set(list_modules())


def test_a_family_goes_the_whole_way(tmp_path: Path) -> None:
    """As the table says: StarNet's is the quickest of all."""
    answer = tmp_path / "answer.json"
    examine("starnet", make_dataset(tmp_path), answer)
    found = FamilyResult(**json.loads(answer.read_text()))
    assert (found.network, found.image_size, found.bundle) == ("starnet_s050", 32, WORKS)
    assert found.depths == ["live", "cached", "cached"]
