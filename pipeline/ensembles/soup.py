"""Soups of members: which ones are averaged, by validation images, and the bundle of their mean."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from graftline.bundle.images import read_pixels
from graftline.bundle.layout import FREEZE_CHECKS, freeze_checks, read_description
from graftline.bundle.save import save_bundle
from graftline.bundle.soup import average_weights, load_networks
from graftline.console import say
from graftline.data.file_names import to_path
from graftline.data.version import DatasetVersion, order_by_content
from graftline.errors import UserError
from graftline.evaluation.selection import select_all
from graftline.pipeline.ensembles.members import Members

INHERITED = ("weights", "weights_license", "arguments", "cost", "weighed")  # of a card, from the first member
MOST_MEASURED, MEASURED_BATCH = 1_024, 32  # training images for the statistics of BatchNorm, and most of them at once


@dataclass(frozen=True)
class SoupMaker:
    """Averages the weights of members, and writes the bundle of that.

    A soup is calibrated once it is made: until then members and soups are measured without a calibration.

    Attributes:
        members: of one architecture.
        labels: (N,) of the validation images, in the members' order of classes.
        classify: directory of a bundle → its logits (N, K) for the validation images, uncalibrated.
        version: has the images.
    """

    members: Members
    labels: np.ndarray
    classify: Callable[[Path], np.ndarray]
    version: DatasetVersion

    def make_uniform(self, directory: Path) -> np.ndarray:
        """Write the bundle of the plain mean of all members' weights, and return its logits (N, K)."""
        networks = load_networks(self.members.directories)
        self._save(networks, range(len(networks)), directory)
        return self.classify(directory)

    def make_greedy(self, logits: np.ndarray, directory: Path) -> np.ndarray:
        """Write the bundle of the greedy soup (Wortsman et al. 2022, recipe 1), and return its logits (N, K).

        Members are added from the best to the worst, where the mean's log loss on the validation images gets no worse.

        Args:
            logits: (M, N, K), what ``classify`` gives for the members.
            directory: where the bundle appears.

        Raises:
            UserError: the best one is better alone.
        """
        losses = [self._loss(one) for one in logits]
        order = sorted(range(len(losses)), key=lambda number: losses[number])
        networks, trial = load_networks(self.members.directories), directory.with_name(f"{directory.name}-trial")
        taken, best, of_soup = order[:1], losses[order[0]], None
        for number in order[1:]:
            chosen = [*taken, number]
            self._save(networks, chosen, trial)
            found = self.classify(trial)
            loss = self._loss(found)
            say(f"Soup of {len(chosen)} with member {number + 1}: validation log loss {loss:.3f}, before {best:.3f}.")
            if loss <= best:
                taken, best, of_soup = chosen, loss, found
                shutil.rmtree(directory, ignore_errors=True)
                trial.rename(directory)
            else:
                shutil.rmtree(trial)
        if of_soup is None:
            raise UserError("No soup of these members is as good as the best of them: take that one, or choose=greedy.")
        say(f"The soup is of {len(taken)} of {len(order)} members.")
        return of_soup

    def _loss(self, logits: np.ndarray) -> float:
        """Return the log loss of logits (N, K)."""
        return select_all(logits[None], self.labels).loss

    def _save(self, networks: Sequence[nn.Module], chosen: Sequence[int], directory: Path) -> None:
        """Write the bundle of the mean of some members' weights."""
        first, version = self.members.predictors[0], self.version
        save_bundle(
            directory,
            average_weights([networks[number] for number in chosen], self._batches()),
            timm_name=read_description(self.members.directories[0])["timm_name"],
            class_names=first.class_names,
            preprocessing=first.preprocessing,
            card={
                "dataset": version.name,
                "dataset_digest": version.digest,
                "validation_digest": version.split_digests["validation"],
                "test_digest": version.test_digest,
                "soup": [self.members.references[number] for number in chosen],
                FREEZE_CHECKS: freeze_checks([self.members.predictors[number].card for number in chosen]),
                **{key: first.card[key] for key in INHERITED if key in first.card},
            },
            decoding=version.decoding,
        )

    def _batches(self) -> Iterator[Tensor]:
        """Yield training images (B, C, h, w), the same ones each time, whatever their order, in batches of one size."""
        samples, preprocessing = self.version.samples("train"), self.members.predictors[0].preprocessing
        rows = order_by_content(samples.sha256)[:MOST_MEASURED]
        for part in np.array_split(rows, math.ceil(len(rows) / MEASURED_BATCH)):
            paths = [Path(to_path(samples.paths[row])) for row in part]
            images = (read_pixels(path, self.version.decoding) for path in paths)
            yield torch.from_numpy(np.stack([preprocessing(image) for image in images]))
