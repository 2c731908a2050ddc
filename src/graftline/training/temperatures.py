"""The log loss that a network would have were its probabilities calibrated.

A bundle's probabilities are calibrated after the training (Guo et al. 2017, arXiv 1706.04599), which takes back how
sure a network is of itself and leaves its answers as they are. A training that goes on learns to answer better and
becomes too sure of itself at the same time, so that its plain log loss rises: epochs are compared by what is left of
it.

Letters: B images, K classes, T temperatures.
"""

import torch
from torch import Tensor

# 0.5 to 8, each an eighth more than the one before: between two of them the loss is about a thousandth lower at most
TEMPERATURES = tuple(2 ** (step / 6) for step in range(-6, 19))


def losses_by_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log loss (B, T) of each image at each of the temperatures.

    Args:
        logits: (B, K).
        labels: (B,).

    >>> losses_by_temperature(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))[0, [0, 6, -1]]
    tensor([0.0181, 0.1269, 0.5759])
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    scaled = logits[:, None] / logits.new_tensor(TEMPERATURES)[:, None]  # (B, T, K)
    return -scaled.log_softmax(dim=-1).gather(2, labels[:, None, None].expand(-1, len(TEMPERATURES), 1)).squeeze(2)
