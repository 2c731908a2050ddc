"""What the peers share: their command line, the clock, the images, and the test."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import psutil
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

ARCHITECTURE = "tf_efficientnet_lite0"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # as graftline counts
_FEWEST = 100  # images of an epoch


@dataclass(frozen=True)
class Task:
    """What a peer is to do.

    Attributes:
        folder: of the set, with train, validation and test.
        weights: folder with the weights, as `benchmarks.accuracy.weights` writes them.
        out: file that gets the correctness of each test image, a .npy of bools in the order of ``files("test")``.
        seconds: from the start of the process to the trained model.
        seed: of the training.
    """

    folder: Path
    weights: Path
    out: Path
    seconds: float
    seed: int

    @classmethod
    def from_command_line(cls) -> "Task":
        """Read the command line, seed torch, and give it all cores."""
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("weights", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("seconds", type=float)
        parser.add_argument("seed", type=int)
        task = cls(**vars(parser.parse_args()))
        torch.manual_seed(task.seed)
        torch.set_num_threads(CORES)
        return task

    @property
    def elapsed(self) -> float:
        """Seconds since the process was started, what it took to import included."""
        return time.time() - float(psutil.Process().create_time())

    @property
    def left(self) -> float:
        """Seconds that are left for the training; 0 where the imports took them all."""
        return max(0.0, self.seconds - self.elapsed)

    @cached_property
    def class_names(self) -> list[str]:
        """The classes, in the order of their indices."""
        return sorted(folder.name for folder in (self.folder / "train").iterdir())

    def files(self, split: str) -> list[Path]:
        """Return the images of a split, ordered by name."""
        return sorted((self.folder / split).glob("*/*.png"))

    def labels(self, files: Iterable[Path]) -> np.ndarray:
        """Return the index of the class of each image, (N,)."""
        return np.array([self.class_names.index(file.parent.name) for file in files])

    def network(self) -> Any:
        """Return the pretrained network with a new head."""
        return timm.create_model(
            ARCHITECTURE, pretrained=True, num_classes=len(self.class_names), pretrained_cfg_overlay=self.overlay
        )

    @property
    def overlay(self) -> dict[str, str]:
        """What makes timm read the weights from our file."""
        return {"file": str(self.weights / f"{ARCHITECTURE}.safetensors")}

    def fit_into(self, seconds: float, seconds_per_image: float) -> tuple[int, int]:
        """Return as many epochs as fit, and how many images each of them has: all, or one epoch's part of them.

        Never fewer than one epoch of 100 images: a task without time left still ends with a trained model.
        """
        images = len(self.files("train"))
        epochs = int(seconds / (seconds_per_image * images))
        return max(epochs, 1), images if epochs else min(images, max(int(seconds / seconds_per_image), _FEWEST))

    def some(self, count: int) -> list[Path]:
        """Return so many training images, drawn at random."""
        files = self.files("train")
        chosen = np.random.default_rng(self.seed).permutation(len(files))[:count]
        return [files[index] for index in sorted(chosen)]

    def finish(self, trained: float, predicted: np.ndarray, **facts: Any) -> None:
        """Write which test images were right, and print the result as the last line.

        Args:
            trained: seconds from the start to the trained model.
            predicted: (N,) index of the predicted class of each of ``files("test")``.
            facts: what else is worth keeping, such as epochs.
        """
        correct = predicted == self.labels(self.files("test"))
        np.save(self.out, correct)
        print(json.dumps({"trained_seconds": round(trained, 1), "accuracy": float(correct.mean()), **facts}))


def predict(network: nn.Module, batches: Iterable[Tensor]) -> np.ndarray:
    """Return the predicted class of each image, (N,), by ONNX Runtime: what torch says, in a third of the time.

    Args:
        network: the trained one.
        batches: each (B, 3, H, W), in order; the last one may be smaller.
    """
    session, parts = None, []
    for batch in batches:
        images = batch.as_subclass(Tensor).cpu()
        if session is None:
            session = _open_session(network.cpu().eval(), images)
            size = len(images)
        padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images))).contiguous()
        (logits,) = session.run(None, {"images": padded.numpy()})
        parts.append(logits[: len(images)].argmax(axis=1))
    return np.concatenate(parts)


def _open_session(network: nn.Module, images: Tensor) -> onnxruntime.InferenceSession:
    """Return the network as ONNX Runtime runs it, for batches of this size."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/network.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        torch.onnx.export(network, (images,), file, dynamo=True, input_names=["images"])
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
