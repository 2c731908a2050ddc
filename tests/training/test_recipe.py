"""The recipe of a fit: what makes no sense in it, and what classes weigh."""

from typing import Any

import numpy as np
import pytest
import torch

from graftline.data.version import Samples
from graftline.errors import UserError
from graftline.execution import Execution
from graftline.training.recipe import Recipe


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"label_smoothing": 1.0}, "Recipe.label_smoothing"),
        ({"batch_size": 0}, "Recipe.batch_size"),
        ({"ema_decay": 1.5}, "Recipe.ema_decay"),
        ({"batch_size": 7, "mixup_alpha": 0.2}, "Recipe.batch_size"),
        ({"mixup_alpha": float("inf")}, "mixup_alpha is inf, it must be finite"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Recipe(**changes)


def test_class_weights_have_mean_one_over_the_images() -> None:
    samples = Samples([""] * 6, np.array([0, 0, 0, 0, 1, 1]), None, [""] * 6)
    weights = Recipe(class_weights=True).class_weight_tensor(samples, 2)
    assert weights is not None
    assert weights.tolist() == [0.75, 1.5]
    assert float(weights[torch.from_numpy(samples.labels)].mean()) == pytest.approx(1.0)
    assert Recipe().class_weight_tensor(samples, 2) is None


@pytest.mark.parametrize(
    ("execution", "workers"),
    [
        (Execution("cpu", threads=16), 2),
        (Execution("cuda:0", threads=1), 1),
        (Execution("cuda:0", threads=4), 3),
        (Execution("cuda:0", threads=16), 6),
        (Execution("cuda:0", threads=16, world_size=4), 3),
        (Execution("cuda:0", threads=16, world_size=8, num_nodes=2), 3),
    ],
)
def test_a_gpu_is_fed_by_the_cores_that_are_left(execution: Execution, workers: int) -> None:
    assert Recipe().loader_processes(execution) == workers
    assert Recipe(workers=0).loader_processes(execution) == 0
