"""What BatchNorm's statistics are when a training begins: the network's own, or those of training images.

Letters: B batch, C channels, H height, W width.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftline.augment.policy import EvalTransform
from graftline.console import track
from graftline.data.version import order_by_content
from graftline.errors import UserError
from graftline.features.cache import ActivationRequest, ImageBatcher
from graftline.files import atomic_file
from graftline.freezing.batchnorm import BatchNormChoice, BatchNormStatistics, adapt_to, statistics
from graftline.freezing.depth import DEEP_IMAGES, MOST_DEEP_EPOCHS
from graftline.training.fit_directory import FitDirectory
from graftline.training.setup import TrainingSetup

logger = logging.getLogger(__name__)

ADAPTED_IMAGES = 512  # that statistics are computed from: each channel's are of 25,000 numbers even at 7 x 7
ADAPTED_BATCH = 64  # images of which each layer on the way is normalized together


def choose_statistics(choice: BatchNormChoice, num_images: int, *, pretrained: bool) -> BatchNormStatistics:
    """Return what happens to the statistics in a training.

    Those of a batch are not what the pretrained weights were made for: the network has to get used to them. Where the
    images are so few that 30 epochs are fewer steps than larger sets are trained for (`deep_epochs`), it mostly does
    not get that far: those that the weights came with gained up to 17 points of accuracy on four of six sets, and
    lost up to 4 on the two of drawings (docs/freezing-measurements.md).

    Args:
        choice: the user's.
        num_images: of the whole training split.
        pretrained: whether the network's weights know anything; random ones have no statistics worth keeping.

    >>> [choose_statistics("auto", images, pretrained=True) for images in (100, 333, 334)]
    ['frozen', 'frozen', 'trained']
    """
    if choice != "auto":
        return choice
    return "frozen" if pretrained and num_images * MOST_DEEP_EPOCHS < DEEP_IMAGES else "trained"


def check_statistics(choice: BatchNormChoice, *, pretrained: bool) -> None:
    """Make sure that no statistics are frozen that know nothing.

    Args:
        choice: what happens to them.
        pretrained: whether the network's weights know anything.

    Raises:
        UserError: they would be.
    """
    if choice == "frozen" and not pretrained:
        raise UserError(
            "The backbone has no pretrained weights, and so its BatchNorm knows no statistics to freeze: "
            "leave FreezeRule.batchnorm='auto'."
        )


def prepare_statistics(setup: TrainingSetup, directory: FitDirectory) -> None:
    """Give the network the statistics that the setup's training is to begin with, before anything is tried or frozen.

    What they were adapted to is kept in the directory: further processes and a resume read it, and have the same bits.

    Args:
        setup: of the training.
        directory: of the training.

    Raises:
        UserError: statistics are to be frozen that know nothing, or there are too few images to adapt them to.
    """
    network, choice = setup.graft.network, setup.batchnorm
    check_statistics(choice, pretrained=setup.graft.weights.pretrained)
    if choice == "trained":
        return
    if not statistics(network):
        logger.warning(
            f"The network has no BatchNorm with statistics: FreezeRule.batchnorm='{choice}' changes nothing."
        )
    elif choice == "adapted" and directory.statistics.exists():
        network.load_state_dict({**network.state_dict(), **load_file(directory.statistics)})
    elif choice == "adapted":
        number = _adapt(setup)
        with atomic_file(directory.statistics) as temporary:
            save_file(statistics(network), temporary)
        logger.info(f"BatchNorm's statistics are now those of {number:,} training images.")


def _adapt(setup: TrainingSetup) -> int:
    """Compute the network's statistics anew from training images as they are; returns from how many."""
    network, device = setup.graft.network, setup.execution.torch_device
    samples = setup.version.samples("train")
    rows = order_by_content(samples.sha256)[:ADAPTED_IMAGES]
    if len(rows) < 2:
        raise UserError("One training image has no statistics to adapt to: leave FreezeRule.batchnorm='trained'.")
    batches = np.array_split(rows, -(-len(rows) // ADAPTED_BATCH))
    images = ImageBatcher(ActivationRequest(samples, EvalTransform(setup.graft.preprocessing), 0, {}))

    def read() -> Iterator[Tensor]:
        with ThreadPoolExecutor(setup.execution.num_threads) as pool:
            for batch in track(batches, "Batches for BatchNorm's statistics", len(batches)):
                read_images = torch.cat(list(pool.map(lambda row: images([row]), batch.tolist())))  # (B, C, H, W)
                yield read_images.to(device).contiguous(memory_format=torch.channels_last)

    adapt_to(network.to(device), read())
    network.to("cpu")
    return len(rows)
