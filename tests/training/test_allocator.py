"""What a training frees stays with the process until its end, and not longer."""

import resource
import sys

import psutil
import pytest
import torch

from graftline.training.allocator import freed_memory_kept

NUMBERS = 2**25  # 128 MiB as float32, more than glibc ever keeps by itself


def faults() -> int:
    """Return how many pages the process had to ask the system for while it filled a large tensor twice."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(2):
        torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    pages = 4 * NUMBERS / resource.getpagesize()
    before = psutil.Process().memory_info().rss
    with freed_memory_kept():
        torch.ones(NUMBERS)
        assert faults() < 0.01 * pages
    assert psutil.Process().memory_info().rss < before + 2 * NUMBERS
    assert faults() > 0.01 * pages


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
