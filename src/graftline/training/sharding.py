"""Parameters, gradients and optimizer state divided among processes, for a network that is too large for one GPU.

torch's FSDP2 (``fully_shard``, https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html) by Lightning's
strategy for it. Each layer group is put together when its turn comes, and taken apart afterwards. Checkpoints hold
whole tensors: a bundle and a resume, on as many processes as it likes, read them as those of one process.
"""

from collections.abc import Callable
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn

from graftline.errors import UserError
from graftline.training.recipe import Recipe

FSDP2 = "fsdp2"  # what the strategy is called as an argument of Trainer


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy, with one dimension of as many shards as there are processes."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Say how many shards there are, as soon as it is known."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


if FSDP2 not in StrategyRegistry:
    StrategyRegistry.register(FSDP2, ShardedStrategy, description="torch's fully_shard")


def check_sharding(make_trainer: Callable[..., Any], recipe: Recipe) -> None:
    """Make sure that a recipe can be followed by a trainer that may divide parameters.

    Args:
        make_trainer: ``functools.partial`` of ``pytorch_lightning.Trainer``.
        recipe: of the training.

    Raises:
        UserError: it cannot.
    """
    if getattr(make_trainer, "keywords", {}).get("strategy") != FSDP2:
        return
    if recipe.ema_decay is not None:
        raise UserError(
            "Recipe.ema_decay keeps a second copy of the whole network, which is not there where its parameters are "
            f"divided (Trainer.strategy={FSDP2}): leave out one of the two."
        )
    if recipe.compile:
        raise UserError(
            f"Recipe.compile is not there where parameters are divided (Trainer.strategy={FSDP2}): leave out one of "
            "the two."
        )


def shard(network: Any, mesh: Any) -> None:
    """Divide the parameters of a network, block by block.

    Args:
        network: timm's, or a tail of one.
        mesh: ``torch.distributed.DeviceMesh`` of one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return what a network is put together of, in its own order: the members of its lists and sequences of modules.

    >>> import timm
    >>> [len(list(block.parameters())) for block in blocks(timm.create_model("test_vit"))]
    [12, 12, 12, 12, 12, 12]
    """
    found: list[nn.Module] = []
    for module in network.children():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            found += [part for part in module if any(True for _ in part.parameters())]
    return found
