"""How fast is the whole grid of members and crops? `python benchmarks/grid.py [--images 32] [--crops 1 5 10 144]`.

Three EfficientNet-Lite0 with untrained heads on ELPV at 224 px, on the CPU: `Grid`, as `make evaluate runs=best:3
crops=1,5,10,144` runs it, beside a plain loop that takes one member and one set of crops after the other: decode, crop,
batches of 32, torch eager in inference mode, channels_last. ELPV's images are squares, of which the 144 crops are 48 in
three copies each: one row of the loop runs all of them, the other the 48. In the loop, too, threads prepare the next
images while a network runs. All take turns in one process; medians of three. There is no table where a probability
differs by more than 1e-4. About half an hour on 2 idle cores, without 144 four minutes.

Letters: M members, S sets of crops, N images, K classes, n crops of an image, C channels, h, w size of an input in px.
"""

import argparse
import contextlib
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from graftline.augment.crops import CROP_SETS, cut
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Backbone
from graftline.bundle.grid import Grid, log_softmax
from graftline.bundle.images import ImageLike, prepare_ahead, read_pixels
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.console import print_table, say
from graftline.data.decode import PLAIN
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.execution import available_cores

BACKBONE, MEMBERS, BATCH = "tf_efficientnet_lite0", 3, 32
TOLERANCE = 1e-4  # of a probability
EVERY = "loop, all 144"
DIFFERENT = "plain loop"
OURS = "graftline"

Way = Callable[[Sequence[str]], np.ndarray]
"""Classifies N files: probabilities (M, S, N, K)."""


@dataclass(frozen=True)
class Bench:
    """The same members in torch and as bundles, and the sets of crops.

    Attributes:
        networks: M of them, in eval mode and channels_last.
        grid: of their bundles.
    """

    networks: Sequence[nn.Module]
    grid: Grid

    @classmethod
    def of(cls, version: DatasetVersion, crops: Sequence[str], folder: Path) -> "Bench":
        """Build the members and save their bundles in a folder."""
        networks: list[nn.Module] = []
        predictors: list[Predictor] = []
        names = tuple(f"member {seed + 1}" for seed in range(MEMBERS))
        for seed, name in enumerate(names):
            torch.manual_seed(seed)
            graft = Backbone(BACKBONE).build(len(version.class_names))
            bundle = save_bundle(
                folder / name,
                graft.network,
                timm_name=BACKBONE,
                class_names=version.class_names,
                preprocessing=graft.preprocessing,
                card={},
            )
            networks.append(graft.network.eval().to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            predictors.append(Predictor.from_directory(bundle))
        return cls(networks, Grid(tuple(predictors), tuple(crops), PLAIN, names))

    @property
    def preprocessing(self) -> Preprocessing:
        """What all members want done to an image."""
        return self.grid.members[0].preprocessing

    def ways(self) -> dict[str, Way]:
        """Return what is compared."""
        ways: dict[str, Way] = {DIFFERENT: functools.partial(self.loop, every=False), OURS: self.ours}
        every: dict[str, Way] = {EVERY: functools.partial(self.loop, every=True)}
        return {**every, **ways} if "144" in self.grid.crops else ways

    def passes(self, path: str) -> dict[str, int]:
        """Return how many crops of an image a member runs, in each way."""
        pixels, crops = read_pixels(path, PLAIN), self.grid.crops
        return {
            EVERY: sum(CROP_SETS[name].count for name in crops),
            DIFFERENT: sum(len(CROP_SETS[name].cut(pixels, self.preprocessing)) for name in crops),
            OURS: len(cut(pixels, self.preprocessing, crops).inputs),
        }

    def ours(self, paths: Sequence[str]) -> np.ndarray:
        """Classify as `make evaluate` does: one pass of decoding."""
        return np.exp(log_softmax(self.grid.logits(paths, BATCH)))

    def loop(self, paths: Sequence[str], *, every: bool) -> np.ndarray:
        """Classify one member and one set of crops after the other.

        Args:
            paths: N files.
            every: run the crops of a set that are alike, too.
        """
        return np.stack(
            [
                [self._classify(network, name, paths, every=every) for name in self.grid.crops]
                for network in self.networks
            ]
        )

    @torch.inference_mode()
    def _classify(self, network: nn.Module, name: str, paths: Sequence[str], *, every: bool) -> np.ndarray:
        """Return the mean (N, K) of the probabilities of a set of crops."""
        counts: list[int] = []
        found: list[Tensor] = []
        with contextlib.closing(self._inputs(name, paths, counts, every=every)) as inputs:
            while batch := list(itertools.islice(inputs, BATCH)):
                images = torch.from_numpy(np.stack(batch)).contiguous(memory_format=torch.channels_last)
                found.append(network(images).softmax(dim=1))
        of_images = torch.cat(found).split(counts)  # each (n, K)
        return torch.stack([rows.mean(dim=0) for rows in of_images]).numpy()

    def _inputs(
        self, name: str, paths: Sequence[str], counts: list[int], *, every: bool
    ) -> Generator[np.ndarray, None, None]:
        """Yield the crops (C, h, w) of all images, and note how many each image has."""
        crops = CROP_SETS[name]

        def prepare(image: ImageLike) -> np.ndarray:
            frames = crops.cut(read_pixels(image, PLAIN), self.preprocessing)
            copies = crops.count // len(frames) if every else 1
            return np.stack([self.preprocessing.normalize(frame) for frame in frames * copies])  # (n, C, h, w)

        ahead = max(1, 2 * BATCH // crops.count)
        with contextlib.closing(prepare_ahead(paths, prepare, available_cores(), ahead)) as prepared:
            for path, inputs in prepared:
                assert not isinstance(inputs, str), f"{path}: {inputs}"
                counts.append(len(inputs))
                yield from inputs


def measure(ways: dict[str, Way], paths: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Return the images/s of each way in each round.

    Raises:
        AssertionError: two ways give different probabilities.
    """
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for classify in ways.values():
        classify(paths[:1])  # the first call also allocates
    for number in range(rounds):
        expected: np.ndarray | None = None
        for name, classify in ways.items():
            start = time.perf_counter()
            found = classify(paths)
            speeds[name].append(len(paths) / (time.perf_counter() - start))
            expected = found if expected is None else expected
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
            difference = np.abs(found - expected).max()
            say(f"{number + 1}: {name}: {speeds[name][-1]:.2f} images/s, probabilities differ by {difference:.0e}")
    return speeds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="of ELPV's test split")
    parser.add_argument("--crops", nargs="+", choices=list(CROP_SETS), default=["1", "5", "10", "144"])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(available_cores())
    split = Split(train=0.6, validation=0.15, test=0.25, seed=0, existing=True)
    with tempfile.TemporaryDirectory() as folder:
        version = Ingest("elpv", None, Elpv(threshold=0.5), split, directory=folder).run().version
        bench = Bench.of(version, asked.crops, Path(folder))
        paths = version.samples("test").paths[: asked.images]
        speeds = measure(bench.ways(), paths, asked.rounds)
        passes = bench.passes(paths[0])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rows = [
        [
            name,
            f"{medians[name]:.2f}",
            f"{medians[OURS] / medians[name]:.2f}",
            f"{min(values):.2f} to {max(values):.2f}",
            f"{MEMBERS * passes[name]}",
            f"{MEMBERS * passes[name] * medians[name]:.1f}",
        ]
        for name, values in speeds.items()
    ]
    cores = available_cores()
    title = f"{MEMBERS} members x crops {', '.join(asked.crops)}: {len(paths)} images of ELPV, {cores} cores"
    columns = ["", "images/s", "graftline is so many\ntimes as fast", "from ... to", "passes of\nan image", "passes/s"]
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
