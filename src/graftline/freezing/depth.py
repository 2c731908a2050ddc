"""How long and how fast to train at a depth: what every freeze rule recommends unless it is told otherwise.

The learning rates are AdamW's.
"""

from dataclasses import replace
from math import ceil, floor
from typing import Any

from torch import nn

from graftline.backbones.layers import body_groups
from graftline.freezing.plan import FreezePlan, depth_in_words, plan_from_depth
from graftline.freezing.rates import head_factor, head_rate, whole_network_rate

HEAD_EPOCHS = 30  # of the head alone; they cost next to nothing

# Images per step. A step of a head costs next to nothing; where more is trained, small sets need the steps:
# 1,400 images give 44 of 32 an epoch.
HEAD_BATCH, DEEP_BATCH = 64, 32

# More than the head: so many images are passed forward and backward, whatever the number there is, within these epochs;
# in larger steps than of DEEP_BATCH as many more, since it is the steps that count.
# A few hundred steps of 32 change features as much as a small set can tell (BiT-HyperRule, Kolesnikov et al. 2019,
# takes 500 steps for any set below 20,000 images); a large set is worth a few passes in any case.
# Many classes have more to be learned: 144 of them gained 3 points by twice the steps that this would be.
DEEP_IMAGES, DEEP_IMAGES_OF_CLASS = 10_000, 200
LEAST_DEEP_EPOCHS, MOST_DEEP_EPOCHS = 3, 30
TRIAL_EPOCHS = 3  # of a trial's part of the images; more of a small set, for as many steps

# Random weights: nothing is frozen, more has to be learned, and early stopping ends it where it may. AdamW's own rate.
RANDOM_EPOCHS, RANDOM_RATE = 60, 0.001

# What an image's way through a network costs, beside a step that passes it through the whole forward and backward. The
# engine's pass of the frozen part: 6 to 8 of them in that time were measured for EfficientNet-Lite0
# (benchmarks/speed.py), and a forecast had better be too long. And a way forward through what is trained.
PASSES_PER_STEP, FORWARD_PER_STEP = 5, 3


def deep_epochs(num_images: int, step_images: int = DEEP_BATCH, num_classes: int = 0) -> int:
    """Return for how many epochs more than the head is trained.

    Args:
        num_images: of the training split.
        step_images: that all processes together pass for an optimizer step.
        num_classes: of the data set; up to 50, it is the images alone that count.

    >>> [deep_epochs(images) for images in (50, 1_000, 2_400, 60_000)]
    [30, 10, 5, 3]
    >>> [deep_epochs(10_000, step_images) for step_images in (8, 64, 256, 4_096)]
    [3, 3, 8, 30]
    >>> [deep_epochs(6_000, num_classes=classes) for classes in (10, 100, 1_000)]
    [3, 4, 30]
    """
    images = deep_images(num_classes) * larger_steps(step_images)
    return min(MOST_DEEP_EPOCHS, max(LEAST_DEEP_EPOCHS, ceil(images / max(1, num_images))))


def deep_images(num_classes: int) -> int:
    """Return how many images are passed forward and backward where more than the head is trained."""
    return max(DEEP_IMAGES, DEEP_IMAGES_OF_CLASS * num_classes)


def larger_steps(step_images: int) -> float:
    """Return how many times as many images as usual an optimizer step has, where it has more."""
    return max(1.0, step_images / DEEP_BATCH)


def trial_epochs(images: int, enough: int, step_images: int = DEEP_BATCH, num_classes: int = 0) -> int:
    """Return how often a trial sees each of its images: three times, a few more often for as many steps.

    But, beyond three times, not more than half as often as a training on them would.

    Args:
        images: that a trial has.
        enough: that it would have at least, if there were as many.
        step_images: that it passes for an optimizer step.
        num_classes: of the data set.

    >>> tuple(trial_epochs(images, 1_000) for images in (50, 300, 1_000, 5_000))
    (15, 10, 3, 3)
    >>> tuple(trial_epochs(images, 1_000, step_images=256) for images in (300, 1_000, 5_000))
    (15, 15, 5)
    >>> trial_epochs(5_000, 10_000, num_classes=1_000)  # five of each class, where ten would be enough
    6
    """
    as_many_steps = ceil(TRIAL_EPOCHS * enough * larger_steps(step_images) / images)
    return max(TRIAL_EPOCHS, min(deep_epochs(images, step_images, num_classes) // 2, as_many_steps))


def share_of(groups: int, share: float) -> int:
    """Return a share of the layer groups as a number, halves upwards.

    >>> [share_of(8, share) for share in (0.0, 0.5, 0.7, 0.94, 1.0)]
    [0, 4, 6, 8, 8]
    """
    return floor(share * groups + 0.5)


def frozen_at(share: float, num_groups: int) -> int:
    """Return a share of the layer groups as a number that leaves at least one to train."""
    return min(share_of(num_groups, share), max(0, num_groups - 1))


def head_plan(network: Any, *, epochs: int = HEAD_EPOCHS, learning_rate: float | None = None) -> FreezePlan:
    """Return the plan that trains the head alone; a rate that is None is the network's own."""
    frozen, rate = len(body_groups(network)), head_rate(network) if learning_rate is None else learning_rate
    return plan_from_depth(network, frozen, depth_in_words(network, frozen), epochs=epochs, learning_rate=rate)


def deep_plan(network: nn.Module, frozen_groups: int, reason: str, epochs: int) -> FreezePlan:
    """Return the plan that trains all above the first layer groups."""
    why = f"{reason}: {depth_in_words(network, frozen_groups)}"
    plan = plan_from_depth(network, frozen_groups, why, epochs=epochs, learning_rate=whole_network_rate(network))
    return replace(plan, head_factor=head_factor(network))


def random_plan(network: nn.Module) -> FreezePlan:
    """Return the plan for a network whose weights are random."""
    reason = "the weights are random, there is nothing to keep: nothing frozen"
    return plan_from_depth(network, 0, reason, epochs=RANDOM_EPOCHS, learning_rate=RANDOM_RATE)
