"""Whether what a model sees is kept, for servers and predictions."""

import logging
from collections.abc import Callable
from pathlib import Path

from graftline.bundle.ensemble import AnyPredictor
from graftline.errors import UserError
from graftline.monitoring.monitor import IMAGES_PER_HOUR, Monitor
from graftline.pipeline.bundles.reference import load_reference

logger = logging.getLogger(__name__)


def check_watch(monitor: str | None, images: int) -> None:
    """Make sure that what is asked for can be kept.

    Args:
        monitor: directory; None: nothing is kept.
        images: of which small versions are kept, in an hour.

    Raises:
        UserError: it cannot.
    """
    if not 0 <= images <= IMAGES_PER_HOUR:
        raise UserError(f"monitor_images is {images}, it must be at least 0 and at most {IMAGES_PER_HOUR}.")
    if images > 0 and monitor is None:
        raise UserError(f"monitor_images is {images}, but nothing is kept: give monitor, a directory.")


def make_watch(monitor: str | None, images: int) -> Callable[[AnyPredictor, Path], Monitor | None] | None:
    """Return what makes a monitor of a predictor and its bundle; a bundle without a reference gets none, and a warning.

    Args:
        monitor: directory; None: nothing is kept.
        images: of which small versions are kept, in an hour.
    """
    if monitor is None:
        return None
    directory = Path(monitor).expanduser()

    def watch(predictor: AnyPredictor, bundle: Path) -> Monitor | None:
        try:
            reference = load_reference(bundle, str(bundle))
        except UserError as error:
            logger.warning(f"Nothing of what it sees is kept: {error}")
            return None
        return Monitor(directory, predictor.digest, reference, predictor.decision, predictor.decoding, images)

    return watch
