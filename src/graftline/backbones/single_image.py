"""Batches of one image: BatchNorm makes no statistics of one number, as an image gives it on a map of one pixel."""

import torch
from torch import nn

from graftline.augment.preprocess import Preprocessing
from graftline.errors import UserError


def check_single_image(name: str, network: nn.Module, preprocessing: Preprocessing) -> None:
    """Make sure that a network can be trained on batches of one image.

    Args:
        name: of the network.
        network: on the meta device, each module in the mode in which it will be trained.
        preprocessing: gives the size of its images.

    Raises:
        UserError: it cannot.
    """
    height, width = preprocessing.image_size
    try:
        network(torch.empty(1, preprocessing.channels, height, width, device="meta"))
    except ValueError as error:
        if "Expected more than 1" in str(error):  # torch's words, for BatchNorm and its kin
            raise UserError(
                f"The backbone '{name}' cannot be trained on batches of one image of {width} x {height} px (its "
                "normalization needs more numbers): give Recipe.batch_size=2 or more, or larger images."
            ) from error
    except Exception:  # noqa: S110 - what the meta device cannot run; the training is the judge then
        pass
