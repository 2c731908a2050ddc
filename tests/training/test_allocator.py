"""What a training frees stays with the process until its end, and not longer."""

import resource
import sys

import psutil
import pytest
import torch

from graftline.training.allocator import freed_memory_kept

NUMBERS = 2**24  # 64 MiB as float32, more than glibc ever keeps by itself
STEPS = 5


def faults() -> int:
    """Return how many pages the process had to ask the system for while it filled large tensors in turn."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        torch.ones(NUMBERS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    pages = 4 * NUMBERS / resource.getpagesize()
    before = psutil.Process().memory_info().rss
    with freed_memory_kept():
        # glibc 2.36 leaves up to seven crumbs behind aligned blocks before it uses them
        assert min(faults() for _ in range(5)) < pages
    assert psutil.Process().memory_info().rss < before + 2 * NUMBERS


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
