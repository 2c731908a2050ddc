"""What a network makes of each validation image, so that two of them can be compared image by image.

Letters: B batch, C channels, H height, W width, N images of the validation split, K classes, T temperatures.
"""

import numpy as np
import pytorch_lightning as pl
from torch import nn

from graftline.data.loaders import Batch
from graftline.features.trace import main_logits
from graftline.freezing.measurement import Floats
from graftline.training.fit import plain_interrupt
from graftline.training.setup import TrainingSetup
from graftline.training.temperatures import losses_by_temperature
from graftline.training.training_source import TrainingSource


def score_validation(
    setup: TrainingSetup, source: TrainingSource, class_weights: Floats | None = None
) -> tuple[Floats, Floats]:
    """Return the calibrated log loss (N,) and whether it is right (N,) of each validation image, in the split's order.

    The loss is that at the temperature that suits these images best.

    Args:
        setup: of the training.
        source: of the fit.
        class_weights: (K,) what an image of each class counts for in the choice of the temperature; None: all the same.
    """
    scores = _ImageScores(source.network)
    trainer = setup.make_trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=1.0,  # all, or two trials could not be compared image by image
    )
    _, validation = source.make_loaders()
    with plain_interrupt():
        trainer.validate(scores, validation, verbose=False)
    losses = np.concatenate(scores.losses)
    weights = None if class_weights is None else class_weights[setup.version.samples("validation").labels]
    return losses[:, np.average(losses, axis=0, weights=weights).argmin()], np.concatenate(scores.hits)


class _ImageScores(pl.LightningModule):
    """Keeps what a network makes of each image of a loader, whatever the trainer's device and precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: list[Floats] = []  # (B, T) each
        self.hits: list[Floats] = []

    def validation_step(self, batch: Batch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Score a batch: inputs (B, C, H, W) or (B, …), logits (B, K)."""
        logits = main_logits(self.network(batch["image"])).cpu().double()  # Apple's GPUs have no double
        labels = batch["label"].cpu()
        self.losses.append(losses_by_temperature(logits, labels).numpy())
        self.hits.append((logits.argmax(dim=1) == labels).double().numpy())
