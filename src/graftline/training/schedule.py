"""Learning-rate schedules: ``step -> factor`` on the base learning rate; pure functions, but for one by the clock."""

import math
import time
from collections.abc import Callable


def warmup_cosine(step: int, total_steps: int, *, warmup_fraction: float = 0.1, final_factor: float = 0.01) -> float:
    """Linear warm-up (Goyal et al. 2017, section 2.2), then half a cosine down (Loshchilov and Hutter 2017, eq. 5).

    Args:
        step: optimizer steps done so far, from 0.
        total_steps: optimizer steps of the whole training, at least 1.
        warmup_fraction: part of the steps that warms up, 0 to 1.
        final_factor: the factor after the last step.

    Returns:
        The factor, in (0, 1].

    >>> [round(warmup_cosine(step, 10, warmup_fraction=0.2, final_factor=0.0), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    warmup_steps = round(warmup_fraction * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return final_factor + (1 - final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, total_steps: int, *, warmup_fraction: float = 0.0) -> float:
    """Linear warm-up, then the base learning rate to the end.

    >>> [constant(step, 10, warmup_fraction=0.2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 1.0]
    """
    warmup_steps = round(warmup_fraction * total_steps)
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def by_clock(schedule: Callable[[int, int], float], seconds: float) -> Callable[[int, int], float]:
    """Return a schedule that goes by steps or by the clock, whichever is further; its clock starts with the first step.

    Args:
        schedule: (step, total steps) → factor.
        seconds: after which it is at its end.
    """
    start: list[float] = []

    def factor(step: int, total_steps: int) -> float:
        if step > 0 and not start:  # step 0 is asked for before the loaders have started
            start.append(time.perf_counter())
        share = (time.perf_counter() - start[0]) / seconds if start else 0.0
        return schedule(max(step, round(min(1.0, share) * total_steps)), total_steps)

    return factor
