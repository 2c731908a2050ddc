"""The progress of a fit: a bar, a line now and then, and the history of its epochs."""

import logging
import time
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from graftline.console import WorkReport, console, report_work
from graftline.training.divergence import check_divergence
from graftline.training.events import FitEvents, Metrics
from graftline.training.module import GraftModule
from graftline.training.results import MONITOR, kept_epoch

logger = logging.getLogger(__name__)

REDRAW_SECONDS = 0.1  # a head's steps take less than a millisecond: drawing at each would be most of the work
LOG_LINES = 10  # about so many epochs are told in a line of their own


class FitProgress(pl.Callback):
    """Shows one bar for the whole fit, keeps each epoch's metrics and tells them; ends a fit that diverges.

    Args:
        events: hears of the first step and of each epoch.
        show: draw the bar.
    """

    def __init__(self, events: FitEvents, *, show: bool = True) -> None:
        self.epochs: list[Metrics] = []
        self._shows = show
        self._events = events
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
            transient=True,
        )
        self._task = TaskID(0)
        self._images = 0
        self._batches = 0
        self._epoch_start = 0.0
        self._drawn = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar."""
        if trainer.is_global_zero and trainer.global_step == 0:
            self._events.on_start(_graft(pl_module).learning_rates(), 0)
        batches = int(trainer.num_training_batches)
        self._task = self._bar.add_task("training", total=batches * (trainer.max_epochs or 1), figures="")
        self._batches = batches * trainer.current_epoch
        self._bar.start()
        self._report(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Start the epoch's clock."""
        self._images, self._epoch_start = 0, time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002 - likewise
    ) -> None:
        """Advance the bar."""
        self._images += len(batch["label"]) * trainer.world_size
        self._batches += 1
        if time.perf_counter() - self._drawn >= REDRAW_SECONDS:
            self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch's metrics and hand them on."""
        metrics = {"train/loss": float(_graft(pl_module).trained.reduced()["loss"])}
        metrics.update({name: float(value) for name, value in trainer.callback_metrics.items()})
        metrics["epoch"] = float(trainer.current_epoch)
        metrics["learning_rate"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        metrics["images_per_second"] = self._images / (time.perf_counter() - self._epoch_start)
        self.epochs.append(metrics)
        if trainer.is_global_zero:
            self._events.on_epoch(metrics, trainer.global_step)
            self._tell(metrics, trainer.max_epochs or 1)
            self._report(trainer)
        check_divergence(metrics, _graft(pl_module).network, trainer.optimizers[0])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 - Lightning's signature
        """Take the bar away."""
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002 - Lightning's signature
        """Take the bar away, so that the message stands alone."""
        self._bar.stop()

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far for the checkpoint, so that a resumed fit knows them."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epochs before over from the checkpoint."""
        self.epochs = state_dict["epochs"]

    def _draw(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._drawn = time.perf_counter()
        self._bar.update(self._task, completed=self._batches, figures=self._figures(trainer, module))

    def _report(self, trainer: pl.Trainer) -> None:
        """Report how many epochs are done, and what the best one came to."""
        if self._shows:
            planned = trainer.max_epochs or 1
            told = f"best val accuracy {kept_epoch(self.epochs, planned)['val/accuracy']:.3f}" if self.epochs else ""
            report_work(WorkReport("training", len(self.epochs), planned, told))

    def _tell(self, metrics: Metrics, max_epochs: int) -> None:
        """Log a line now and then, which stays when the bar is gone."""
        epoch = int(metrics["epoch"]) + 1
        if self._shows and (epoch == 1 or epoch % max(1, max_epochs // LOG_LINES) == 0):
            logger.info(
                f"  epoch {epoch:>3} of {max_epochs}: train loss {_brief(metrics['train/loss'])}, "
                f"val loss {_brief(metrics['val/loss'])} ({_brief(metrics[MONITOR])} calibrated), "
                f"val accuracy {metrics['val/accuracy']:.3f}, {metrics['images_per_second']:,.0f} images/s"
            )

    def _figures(self, trainer: pl.Trainer, module: pl.LightningModule) -> str:
        shown = {f"train/{name}": value for name, value in _graft(module).trained.local().items()}
        shown.update({name: float(value) for name, value in trainer.progress_bar_metrics.items()})
        speed = self._images / max(1e-9, time.perf_counter() - self._epoch_start)
        figures = [f"epoch {trainer.current_epoch + 1}", *(f"{name} {_brief(value)}" for name, value in shown.items())]
        return "  ".join([*figures, f"{speed:,.0f} images/s"])


def _brief(value: float) -> str:
    """Write a number with three decimals, or briefly where a training that diverges has made it large."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.1e}"


def _graft(module: pl.LightningModule) -> GraftModule:
    assert isinstance(module, GraftModule)
    return module
