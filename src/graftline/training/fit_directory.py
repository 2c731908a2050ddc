"""The folder of a training: which files its fits keep there, for a resume and for further processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftline.errors import UserError


@dataclass(frozen=True)
class FitDirectory:
    """The files of one fit; each later phase of a training has a sub-folder of the first one's.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def best(self) -> Path:
        """Checkpoint with the weights of the best epoch."""
        return self.path / "best.ckpt"

    @property
    def last(self) -> Path:
        """Checkpoint of the last whole epoch, from which a resume goes on."""
        return self.path / "last.ckpt"

    @property
    def freeze_check(self) -> Path:
        """The freeze check of the first start."""
        return self.path / "freeze_check.json"

    @property
    def statistics(self) -> Path:
        """What BatchNorm's statistics were adapted to before the training; there if they were."""
        return self.path / "batchnorm.safetensors"

    @property
    def source(self) -> Path:
        """Whether activations are cached, and why."""
        return self.path / "source.json"

    @property
    def result(self) -> Path:
        """What came of the phase; there as soon as it is finished."""
        return self.path / "phase.json"

    @property
    def lowered(self) -> Path:
        """How often the learning rate was lowered since the phase diverged; there if it was."""
        return self.path / "lowered.json"

    @property
    def trial(self) -> Path:
        """Folder of the fits that try boundaries, gone when it is decided which of them go on."""
        return self.path / "trial"

    def phase(self, number: int) -> "FitDirectory":
        """Return the folder of a phase, from 0, whose files lie where those of a training of one phase do."""
        return self if number == 0 else FitDirectory(self.path / f"phase-{number + 1}")

    def freeze_checks(self) -> list[Path]:
        """Return the freeze checks of all phases that were begun."""
        return sorted(self.path.rglob(self.freeze_check.name))


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return a checkpoint's content on the CPU.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    with tensors_only(file):
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return content


@contextmanager
def tensors_only(checkpoint: Path) -> Iterator[None]:
    """Explain that a checkpoint that is read during the block is not one of ours.

    Raises:
        UserError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        yield
    except Exception as error:  # torch's UnpicklingError, whose module is not to be imported
        if "Weights only load failed" not in str(error):
            raise
        raise UserError(
            f"{checkpoint} is damaged, or holds pickled objects, which we do not load: put it back from a copy, or "
            "remove it, then the fit begins anew."
        ) from error
