"""AlexNet with few hidden units in the place of 4096, whose weights take 240 MB; its own tests have all of them."""

import pytest
from workplace import run_stage

from graftline.backbones.zoo import alexnet

NUM_UNITS = 64


def shrink_alexnet(patch: pytest.MonkeyPatch) -> None:
    """Let this process build it so."""
    patch.setattr(alexnet, "NUM_UNITS", NUM_UNITS)


def run_with_small_alexnet(arguments: list[str]) -> int:
    """Run a stage that builds it so."""
    shrink_alexnet(pytest.MonkeyPatch())
    return run_stage(arguments)
