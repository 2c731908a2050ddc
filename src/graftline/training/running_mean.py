"""Running means over an epoch, added up batch by batch where the batches are, and over all processes at its end."""

import torch
from torch import Tensor


class WeightedMean:
    """Weighted means that share their weights.

    A step of a head takes half a millisecond, and so do torchmetrics' and Lightning's own means: they would be half of
    the training. A value that is no number makes its mean none.

    Args:
        names: of the means of numbers.
        sizes: of means of several numbers at once, by name.

    >>> means = WeightedMean("loss")
    >>> means.add(2, loss=torch.tensor(1.0))
    >>> means.add(6, loss=torch.tensor(7.0))
    >>> means.local(), means.reduced()
    ({'loss': 1.0}, {'loss': tensor(1., dtype=torch.float64)})
    """

    def __init__(self, *names: str, **sizes: int) -> None:
        self._sizes = {**dict.fromkeys(names, 1), **sizes}
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._sums: dict[str, Tensor | float] = dict.fromkeys(self._sizes, 0.0)
        self._weight: Tensor | float = 0.0

    def add(self, weight: Tensor | float, **sums: Tensor) -> None:
        """Count a batch in: the sum of its weights and, for each mean, the weighted sum of its values."""
        for name, value in sums.items():
            self._sums[name] = self._sums[name] + _wide(value)
        self._weight = self._weight + (_wide(weight) if isinstance(weight, Tensor) else weight)

    def local(self) -> dict[str, float]:
        """Return the means of this process."""
        return {name: float(value) / float(self._weight) for name, value in self._sums.items() if self._weight != 0}

    def reduced(self) -> dict[str, Tensor]:
        """Return the means over all processes, each of which has to call this."""
        device = next((value.device for value in self._sums.values() if isinstance(value, Tensor)), None)
        sums = [torch.as_tensor(self._sums[name], device=device).expand(size) for name, size in self._sizes.items()]
        totals = torch.cat([_wide(value) for value in (*sums, torch.as_tensor(self._weight, device=device).reshape(1))])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        means = torch.split(totals[:-1] / totals[-1], list(self._sizes.values()))
        return {name: mean.squeeze() for name, mean in zip(self._sizes, means, strict=True)}


def _wide(value: Tensor) -> Tensor:
    """Return the tensor in the type in which millions of small numbers can be added up; Apple's GPUs lack float64."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
