"""Whether half precision is good enough for cached activations.

Letters: B batch, F numbers per image, K classes.
"""

import numpy as np
import torch
from torch import nn

from graftline.features.trace import mode_kept

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
    exact = torch.from_numpy(activations[:MAX_IMAGES]).clone()  # a tail may work in place
    half = exact.half().float()
    if not torch.from_numpy(activations).half().isfinite().all():
        return float("inf")
    with mode_kept(tail), torch.inference_mode():
        tail.eval()
        device = next((p.device for p in tail.parameters()), exact.device)
        outputs = [tail(inputs.to(device)) for inputs in (exact, half)]
    logits = [output[0] if isinstance(output, tuple) else output for output in outputs]
    return float((logits[0].softmax(1) - logits[1].softmax(1)).abs().max())
