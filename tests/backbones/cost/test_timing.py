"""Timings of real networks: which there are, and what becomes of one that cannot be exported."""

import time

import timm
import torch
from torch import Tensor, nn

from graftline.backbones.cost import measure


def test_both_engines_and_batch_sizes_are_timed() -> None:
    measured = measure(timm.create_model("test_efficientnet"), (32, 32), 3, (1, 2), seconds=0.1)
    assert [(timing.engine, timing.batch_size) for timing in measured.timings] == [
        ("torch", 1),
        ("torch", 2),
        ("onnx", 1),
        ("onnx", 2),
    ]
    assert all(timing.milliseconds > 0 and timing.repetitions >= 3 for timing in measured.timings)
    assert measured.milliseconds("onnx", 2) == measured.timings[3].milliseconds
    assert measured.milliseconds("onnx", 5) is None
    assert measured.notes == ()


class Slow(nn.Module):
    """Takes 20 ms an image, and computes what ONNX does not know: a Bessel function."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.02 * len(images))
        computed: Tensor = torch.special.bessel_j0(images)
        return computed


def test_time_is_per_image_and_a_failed_export_leaves_torchs() -> None:
    measured = measure(Slow(), (4, 4), 3, (4,), seconds=0.2)
    (timing,) = measured.timings
    assert 20 <= timing.milliseconds < 60
    (note,) = measured.notes
    assert note.startswith("no time with ONNX Runtime (")
