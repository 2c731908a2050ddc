"""A network that torch.compile makes faster for as long as a fit lasts."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from graftline.errors import UserError, first_line


@contextmanager
def compiled(network: nn.Module, *, on: bool) -> Iterator[None]:
    """Run a network compiled during the block; it stays the same object, with the same names in its state.

    torch compiles at the first batch, which takes a minute for a common network, and again for the smaller last batch
    and for validation: https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.compile.

    Args:
        network: takes the batches of the fit.
        on: False: nothing is done.

    Raises:
        UserError: torch cannot compile it here.
    """
    if not on:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # the import alone takes a second

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # where CUDA is, but no GPU: none is meant
    network.compile()
    try:
        yield
    except TorchDynamoException as error:
        raise UserError(
            f"torch cannot compile this network here ({first_line(error)}): leave out Recipe.compile."
        ) from error
    finally:
        network._compiled_call_impl = None  # what Module.compile sets, and nothing of torch's takes back
