"""Running means over an epoch, added up batch by batch where the batches are, and over all processes at its end."""

import torch
from torch import Tensor


class WeightedMean:
    """Weighted means that share their weights.

    A step of a head takes half a millisecond, and so do torchmetrics' and Lightning's own means: they would be half of
    the training. A value that is no number makes its mean none.

    Args:
        names: of the means.

    >>> means = WeightedMean("loss")
    >>> means.add(2, loss=torch.tensor(1.0))
    >>> means.add(6, loss=torch.tensor(7.0))
    >>> means.local(), means.reduced()
    ({'loss': 1.0}, {'loss': tensor(1., dtype=torch.float64)})
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._sums: dict[str, Tensor | float] = dict.fromkeys(self._names, 0.0)
        self._weight: Tensor | float = 0.0

    def add(self, weight: Tensor | float, **sums: Tensor) -> None:
        """Count a batch in: the sum of its weights and, for each mean, the weighted sum of its values, scalars."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + _wide(value)
        self._weight = self._weight + (_wide(weight) if isinstance(weight, Tensor) else weight)

    def local(self) -> dict[str, float]:
        """Return the means of this process."""
        return {name: float(value) / float(self._weight) for name, value in self._sums.items() if self._weight != 0}

    def reduced(self) -> dict[str, Tensor]:
        """Return the means over all processes, each of which has to call this."""
        device = next((value.device for value in self._sums.values() if isinstance(value, Tensor)), None)
        values = [torch.as_tensor(value, device=device) for value in (*self._sums.values(), self._weight)]
        totals = torch.stack([_wide(value) for value in values])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        return {name: totals[position] / totals[-1] for position, name in enumerate(self._names)}


def _wide(value: Tensor) -> Tensor:
    """Return the tensor in the type in which millions of small numbers can be added up; Apple's GPUs lack float64."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
