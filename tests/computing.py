"""A process that computes activations for a cache that others fill too, and that may stop in the middle."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workplace import run_stage

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.data.version import Samples
from graftline.features import segment
from graftline.features.cache import ActivationRequest, Features
from graftline.features.engine import Engine
from graftline.features.segment import Segment
from graftline.files import sha256_file
from graftline.locks import Lock

SECONDS = 60  # that a rank may come later than another one


def compute_activations(folder: Path, cache: Path, output: Path, stop_after: int) -> int:
    """Write the activations of a folder's images, as two requests, to a file; wait with all others for a file ``go``.

    Args:
        folder: of the images.
        cache: the directory that several processes fill.
        output: the file.
        stop_after: number of images after which this process stops for ever.
    """
    segment.MAX_SHARD_IMAGES = 4
    computed = 0

    def run(images: torch.Tensor) -> np.ndarray:
        nonlocal computed
        if computed >= stop_after:
            output.with_suffix(".stopped").touch()
            time.sleep(600)
        time.sleep(0.1)
        computed += len(images)
        flat: np.ndarray = images.flatten(1).numpy()
        return flat

    paths = sorted(str(path) for path in folder.rglob("*.png"))
    sha256 = [sha256_file(Path(path)) for path in paths]
    samples = [Samples(paths[i::2], np.zeros(len(paths[i::2]), np.int64), None, sha256[i::2]) for i in range(2)]
    transform = EvalTransform(Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3))
    requests = [ActivationRequest(samples[number], transform, 0, {"a": number}) for number in range(2)]
    output.with_suffix(".ready").touch()
    while not (output.parent / "go").exists():
        time.sleep(0.001)
    features = Features(directory=str(cache))
    opened = features.open(requests, lambda _: Engine(run, "pixels", 1, 4), torch.nn.Linear(192, 3), 192)
    activations: dict[str, Any] = {f"request_{number}": np.asarray(one.array) for number, one in enumerate(opened)}
    np.savez(output, **activations, computed=np.array(computed))
    return 0


def train_in_small_shards(noted: Path, arguments: Sequence[str]) -> int:
    """Run a stage as a rank of a launch by srun, and note how many activations it writes, in a file of its name.

    A rank goes on to its second shard when each of the others has one, so that it does not matter how fast it is.
    """
    segment.MAX_SHARD_IMAGES = 4
    own, others = os.environ["SLURM_PROCID"], int(os.environ["SLURM_NTASKS"]) - 1
    claim, write = Segment.claim, Segment.write

    def wait_and_claim(self: Segment, number: int, **named: Any) -> Lock:
        deadline = time.monotonic() + SECONDS
        if (noted / f"{own}.claimed").exists():
            while len(list(noted.glob("*.claimed"))) <= others and time.monotonic() < deadline:
                time.sleep(0.01)
        claimed = claim(self, number, **named)
        (noted / f"{own}.claimed").touch()
        return claimed

    def write_and_note(self: Segment, number: int, activations: np.ndarray) -> bool:
        with (noted / own).open("a") as file:
            file.write(f"{len(activations)}\n")
        return write(self, number, activations)

    Segment.claim, Segment.write = wait_and_claim, write_and_note  # type: ignore[method-assign, assignment]
    return run_stage([*arguments])
