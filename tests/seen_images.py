"""A training that notes on which images it is trained, and may die by SIGKILL, as if the power had gone."""

import json
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from workplace import run_stage

from graftline.training.module import GraftModule


def train_noting_images(noted: Path, last_step: int | None, arguments: Sequence[str]) -> int:
    """Run a stage, each process of which writes the epoch and the images of each of its steps to a file of its own.

    Args:
        noted: folder of the files.
        last_step: after which all processes die; None: they live.
        arguments: of the command line.
    """
    train, file = GraftModule.training_step, noted / f"{os.getpid()}.jsonl"

    def note_and_train(self: GraftModule, batch: Any, batch_index: int) -> Tensor:
        if self.global_step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([self.current_epoch, batch["index"].tolist()]) + "\n")
        return train(self, batch, batch_index)

    GraftModule.training_step = note_and_train  # type: ignore[method-assign]
    return run_stage([*arguments], of_ranks=partial(train_noting_images, noted, last_step))


def read_seen(noted: Path) -> dict[int, list[int]]:
    """Return the images on which all processes were trained in each epoch, in the order of their numbers."""
    seen: dict[int, list[int]] = {}
    for file in noted.iterdir():
        for line in file.read_text(encoding="utf-8").splitlines():
            epoch, images = json.loads(line)
            seen.setdefault(epoch, []).extend(images)
    return {epoch: sorted(images) for epoch, images in sorted(seen.items())}
