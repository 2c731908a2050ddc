"""Several processes that share an epoch whose images they cannot divide evenly: the numbers of one process."""

from functools import partial

import pytest
import torch
from shared_fit import fit_alone, fit_shared, launched
from tracking_server import free_port
from workplace import Workplace


@pytest.mark.parametrize(
    ("world_size", "images"),
    [
        pytest.param(2, 29, id="last batches of 3 and 2"),
        pytest.param(2, 25, id="last batches of 5 and 4"),
        pytest.param(3, 31, id="last batches of 3, 2 and 2"),
        pytest.param(3, 29, id="last batches of 6, 6 and 5"),
    ],
)
def test_uneven_shares_give_the_numbers_of_one_process(workplace: Workplace, world_size: int, images: int) -> None:
    port = free_port()
    ranks = [
        workplace.start_function(partial(fit_shared, workplace.root, images, rank, world_size), variables)
        for rank in range(world_size)
        for variables in [launched(rank, world_size, port)]
    ]
    assert [rank.wait(60) for rank in ranks] == [0] * world_size, "\n".join(rank.output for rank in ranks)
    shared, alone = torch.load(workplace.root / "shared.pt"), fit_alone(images, world_size)
    assert shared["steps"] == alone["steps"]
    assert shared["losses"] == pytest.approx(alone["losses"], abs=1e-6)
    torch.testing.assert_close(shared["weight"], alone["weight"], rtol=0, atol=1e-6)
