"""What a training tells whoever listens."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from graftline.training.training_source import TrainingSource

Metrics = dict[str, float]


class FitEvents:
    """Listens to a training; each method does nothing until it is overridden."""

    def on_source(self, source: "TrainingSource") -> None:
        """Hear in each phase what is trained on what, in every process."""

    def on_start(self, learning_rates: Metrics, step: int) -> None:
        """Hear the learning rates of a phase's first step, ``lr/LAYER`` → rate; on rank 0, and not after a resume."""

    def on_gradients(self, network: nn.Module) -> None:
        """See the network between backward pass and optimizer step, in the first steps of a phase, in every process.

        It is called ``graftline.freezing.check.FIRST_STEPS`` times.
        """

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        """Hear an epoch's metrics and the optimizer steps done so far; on rank 0, after the epoch's validation."""

    def on_begin_anew(self, step: int) -> None:
        """Hear that a phase, of this first step, begins anew at a lower learning rate; on rank 0."""

    def on_interrupt(self, interrupt: KeyboardInterrupt) -> bool:  # noqa: ARG002 - for those who override it
        """Decide whether a fit that the user ends, in its only process, is kept as it was after its best epoch."""
        return False
