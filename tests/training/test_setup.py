"""What a training needs, and by what it is known again."""

import functools

import torch

from graftline.training.schedule import constant
from graftline.training.setup import identify


def test_a_part_is_known_by_its_name_and_its_arguments() -> None:
    assert identify(functools.partial(torch.optim.SGD, lr=0.1)) == ["torch.optim.sgd.SGD", {"lr": 0.1}]
    assert identify(constant) == "graftline.training.schedule.constant", "in each process the same"


def test_a_function_without_a_name_is_another_one_each_time() -> None:
    one, other = (lambda: 0.1), (lambda: 0.2)
    assert identify(one) == identify(one) != identify(other)
