"""What cannot be had where parameters are divided among processes; tests/e2e/test_sharding.py trains so."""

import functools

import pytest
import pytorch_lightning as pl

from graftline.errors import UserError
from graftline.training.recipe import Recipe
from graftline.training.sharding import FSDP2, check_sharding

SHARDED = functools.partial(pl.Trainer, strategy=FSDP2)


@pytest.mark.parametrize(("recipe", "name"), [(Recipe(ema_decay=0.9), "ema_decay"), (Recipe(compile=True), "compile")])
def test_what_does_not_go_together_is_refused(recipe: Recipe, name: str) -> None:
    with pytest.raises(UserError, match=rf"Recipe\.{name} .* \(Trainer\.strategy=fsdp2\): leave out one of the two"):
        check_sharding(SHARDED, recipe)
    check_sharding(functools.partial(pl.Trainer), recipe)
    check_sharding(SHARDED, Recipe(grad_checkpointing=True, layer_decay=0.5))
