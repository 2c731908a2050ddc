"""Whether half precision is good enough for cached activations.

Letters: B batch, F numbers per image, K classes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from graftline.features.trace import main_logits, mode_kept

MAX_CHANGE = 1e-3  # of a predicted probability
MAX_IMAGES = 64  # compared; the tail may be most of the network


def change_in_half(tail: nn.Module, activations: np.ndarray) -> float:
    """Return by how much a probability changes at most where the tail reads activations that were kept in float16.

    Args:
        tail: activations (B, F) float32 → logits (B, K), or a tuple with them first.
        activations: (B, F) float32.

    Returns:
        The largest absolute change; infinite where a number is too large for float16.
    """
    exact = torch.from_numpy(activations[:MAX_IMAGES])
    if not torch.from_numpy(activations).half().isfinite().all():
        return float("inf")
    return largest_change(tail, exact, exact.half().float())


def largest_change(tail: nn.Module, exact: Tensor, kept: Tensor) -> float:
    """Return the largest absolute change of a probability where the tail reads ``kept`` for ``exact``, (B, F) both."""
    device = next((parameter.device for parameter in tail.parameters()), exact.device)
    with mode_kept(tail), torch.inference_mode():
        tail.eval()
        copies = [inputs.to(device, copy=True) for inputs in (exact, kept)]  # a tail may work in place
        first, second = (main_logits(tail(inputs)) for inputs in copies)
    return float((first.softmax(1) - second.softmax(1)).abs().max())
