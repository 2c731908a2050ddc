"""Several processes that want the same activations: each image is computed by one of them, and none blocks another."""

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from computing import compute_activations
from workplace import Workplace

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data.decode import Decoding, decode_rgb
from graftline.features.frozen_pass import content_draw

WIDTH = 3 * 8 * 8
IMAGES = 60


class Process:
    """One that computes the activations of a folder's images."""

    def __init__(self, folder: Path, root: Path, name: str, stop_after: int = 10**9) -> None:
        self.output = root / f"{name}.npz"
        compute = partial(compute_activations, folder, root / "cache", self.output, stop_after)
        self._process = Workplace(root).start_function(compute)
        self._wait_for(".ready")

    def _wait_for(self, suffix: str) -> None:
        deadline = time.monotonic() + 120
        while not self.output.with_suffix(suffix).exists():
            assert time.monotonic() < deadline
            assert self._process.code is None, self._process.output
            time.sleep(0.01)

    def kill_when_it_stops(self) -> None:
        self._wait_for(".stopped")
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=60)

    def result(self) -> dict[str, Any]:
        assert self._process.wait(timeout=120) == 0, self._process.output
        with np.load(self.output) as content:
            return dict(content)


def expected(folder: Path) -> list[np.ndarray]:
    transform = EvalTransform(Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3))
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    images = [
        transform(decode_rgb(path, Decoding(max_pixels=10**6)), content_draw("0" * 64, 0)).reshape(-1) for path in paths
    ]
    return [np.stack(images[start::2]).astype(np.float16) for start in range(2)]


def check(result: dict[str, Any], folder: Path) -> None:
    for number, array in enumerate(expected(folder)):
        np.testing.assert_array_equal(result[f"request_{number}"], array)


def test_two_processes_share_the_work(color_folder: Path, tmp_path: Path) -> None:
    processes = [Process(color_folder, tmp_path, name) for name in "ab"]
    (tmp_path / "go").touch()
    results = [process.result() for process in processes]
    computed = [int(result["computed"]) for result in results]
    assert sum(computed) == IMAGES, "each image once"
    assert min(computed) >= 8, "both at the same time"
    for result in results:
        check(result, color_folder)


@pytest.mark.parametrize("stop_after", [0, 12], ids=["before the type is decided", "in the middle"])
def test_one_that_is_killed_does_not_block_the_other(stop_after: int, color_folder: Path, tmp_path: Path) -> None:
    killed, other = Process(color_folder, tmp_path, "a", stop_after), Process(color_folder, tmp_path, "b")
    (tmp_path / "go").touch()
    killed.kill_when_it_stops()
    result = other.result()
    check(result, color_folder)
    assert IMAGES - stop_after <= int(result["computed"]) <= IMAGES
