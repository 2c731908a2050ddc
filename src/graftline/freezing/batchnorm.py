"""BatchNorm's running statistics, the means and variances of a network's activations: whose they are, and which move.

Letters: B batch, C channels, H height, W width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graftline.errors import UserError

# trained: those of the layers that are trained are trained, frozen layers keep theirs; frozen: all layers keep theirs;
# adapted: all are computed anew on training images before the training, which then goes on as with trained
BatchNormStatistics = Literal["trained", "frozen", "adapted"]
# auto: frozen where there are few training images, else trained
BatchNormChoice = Literal["auto", "trained", "frozen", "adapted"]


def check_batchnorm(batchnorm: str, name: str) -> None:
    """Make sure that a choice is one.

    Args:
        batchnorm: the choice.
        name: ``Class.argument`` that it was given as, for the message.

    Raises:
        UserError: it is not.
    """
    if batchnorm not in get_args(BatchNormChoice):
        raise UserError(f"{name} is {batchnorm!r}: use one of {', '.join(get_args(BatchNormChoice))}.")


def keeps_statistics(module: nn.Module) -> bool:
    """Tell whether a module is a BatchNorm with running statistics: torch's, timm's, or one over several processes."""
    return isinstance(module, _BatchNorm) and module.track_running_stats


def statistics(network: nn.Module) -> dict[str, Tensor]:
    """Return BatchNorm's buffers by their names: means and variances, and counts of batches; they are not copied."""
    return {
        f"{prefix}.{name}" if prefix else name: buffer
        for prefix, module in network.named_modules()
        if keeps_statistics(module)
        for name, buffer in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def adapt_to(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Compute BatchNorm's statistics anew from images, as AdaBN does (Li et al. 2016, arXiv 1603.04779, section 3.3).

    Means and variances are the averages of those of the batches, each of which is normalized by its own on its way.
    Dropout and stochastic depth are off. A BatchNorm that no image comes by, as in GoogLeNet's auxiliary heads, keeps
    what it has; the network stays in the mode that it was in.

    Args:
        network: on the device of the images.
        batches: images (B, C, H, W), of equal numbers: they count the same.
    """
    before = {name: buffer.clone() for name, buffer in statistics(network).items()}
    with _averaging(network):
        for images in batches:
            network(images)
    for name, module in network.named_modules():
        if keeps_statistics(module) and not int(module.num_batches_tracked):
            for key, buffer in module.named_buffers(recurse=False):
                buffer.copy_(before[f"{name}.{key}"])


@contextmanager
def _averaging(network: nn.Module) -> Iterator[None]:
    """Let only BatchNorm be in training mode during the block, and average all batches, from none on."""
    modes = {module: module.training for module in network.modules()}
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and keeps_statistics(module)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's for the plain average
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
