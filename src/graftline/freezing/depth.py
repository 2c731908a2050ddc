"""How long and how fast to train at a depth: what every freeze rule recommends unless it is told otherwise.

The learning rates are AdamW's.
"""

from math import ceil
from typing import Any

from torch import nn

from graftline.backbones.layers import body_groups
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth
from graftline.freezing.rates import whole_network_rate

# The head alone, on batches of 64: it is new and has nothing to lose, and its epochs cost next to nothing.
HEAD_EPOCHS, HEAD_RATE = 30, 0.01

# More than the head: so many images are passed forward and backward, whatever the number there is, within these epochs.
# A few hundred steps of 32 change features as much as a small set can tell (BiT-HyperRule, Kolesnikov et al. 2019,
# takes 500 steps for any set below 20,000 images); a large set is worth a few passes in any case.
DEEP_IMAGES = 10_000
LEAST_DEEP_EPOCHS, MOST_DEEP_EPOCHS = 3, 30

# Random weights: nothing is frozen, more has to be learned, and early stopping ends it where it may. AdamW's own rate.
RANDOM_EPOCHS, RANDOM_RATE = 60, 0.001


def deep_epochs(num_images: int) -> int:
    """Return for how many epochs more than the head is trained.

    >>> [deep_epochs(images) for images in (50, 1_000, 2_400, 60_000)]
    [30, 10, 5, 3]
    """
    return min(MOST_DEEP_EPOCHS, max(LEAST_DEEP_EPOCHS, ceil(DEEP_IMAGES / max(1, num_images))))


def head_plan(network: Any, *, epochs: int = HEAD_EPOCHS, learning_rate: float = HEAD_RATE) -> FreezePlan:
    """Return the plan that trains the head alone."""
    frozen = len(body_groups(network))
    return plan_from_depth(network, frozen, depth_in_words(network, frozen), epochs=epochs, learning_rate=learning_rate)


def deep_plan(network: nn.Module, frozen_groups: int, reason: str, epochs: int) -> FreezePlan:
    """Return the plan that trains all above the first layer groups."""
    why = f"{reason}: {depth_in_words(network, frozen_groups)}"
    return plan_from_depth(network, frozen_groups, why, epochs=epochs, learning_rate=whole_network_rate(network))


def random_plan(network: nn.Module) -> FreezePlan:
    """Return the plan for a network whose weights are random."""
    reason = "the weights are random, there is nothing to keep: nothing frozen"
    return plan_from_depth(network, 0, reason, epochs=RANDOM_EPOCHS, learning_rate=RANDOM_RATE)
