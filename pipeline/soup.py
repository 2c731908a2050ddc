"""Soups of members: which ones are averaged, by validation images, and the bundle of their mean."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from graftline.bundle.layout import read_description
from graftline.bundle.predictor import Predictor, read_pixels
from graftline.bundle.save import save_bundle
from graftline.bundle.soup import average_weights, load_networks
from graftline.console import say
from graftline.data.file_names import to_path
from graftline.data.version import DatasetVersion
from graftline.errors import UserError
from graftline.evaluation.evaluation import Evaluation
from graftline.evaluation.predictions import predict_split
from graftline.evaluation.selection import select_all
from graftline.pipeline.members import Members

INHERITED = ("weights", "weights_license", "arguments", "cost")  # of a card, from the first member
MOST_MEASURED = 1_024  # training images, for the statistics of BatchNorm


def make_soup(
    members: Members, losses: Sequence[float], version: DatasetVersion, directory: Path, evaluation: Evaluation
) -> Path:
    """Write the bundle of the greedy soup (Wortsman et al. 2022, recipe 1).

    Members are added from the best to the worst, where the mean's log loss on the validation images gets no worse.

    Args:
        members: of one architecture.
        losses: of each on the validation images.
        version: has the images.
        directory: where the bundle appears.
        evaluation: batch size and engine.

    Raises:
        UserError: the best one is better alone.
    """
    order = sorted(range(len(losses)), key=lambda number: losses[number])
    networks = load_networks(members.directories)
    taken, best = [order[0]], losses[order[0]]
    _save(networks[order[0]], members, directory, version)
    for number in order[1:]:
        trial = directory.with_name(f"{directory.name}-trial")
        batches = _batches(members.predictors[0], version, evaluation.batch_size)
        _save(average_weights([networks[one] for one in [*taken, number]], batches), members, trial, version)
        loss = _loss(Predictor.from_directory(trial, evaluation.engine), version, evaluation.batch_size)
        say(f"Soup of {len(taken) + 1} with member {number + 1}: validation log loss {loss:.3f}, before {best:.3f}.")
        if loss <= best:
            taken, best = [*taken, number], loss
            shutil.rmtree(directory)
            trial.rename(directory)
        else:
            shutil.rmtree(trial)
    if len(taken) == 1:
        raise UserError("No soup of these members is as good as the best of them: take that one, or choose=greedy.")
    say(f"The soup is of {len(taken)} of {len(order)} members.")
    return directory


def make_uniform_soup(members: Members, version: DatasetVersion, directory: Path, evaluation: Evaluation) -> Path:
    """Write the bundle of the plain mean of all members' weights; arguments as for ``make_soup``."""
    batches = _batches(members.predictors[0], version, evaluation.batch_size)
    return _save(average_weights(load_networks(members.directories), batches), members, directory, version)


def _save(network: nn.Module, members: Members, directory: Path, version: DatasetVersion) -> Path:
    first = members.predictors[0]
    return save_bundle(
        directory,
        network,
        timm_name=read_description(members.directories[0])["timm_name"],
        class_names=first.class_names,
        preprocessing=first.preprocessing,
        card={
            "dataset": version.name,
            "dataset_digest": version.digest,
            "test_digest": version.test_digest,
            "soup": list(members.references),
            **{key: first.card[key] for key in INHERITED if key in first.card},
        },
        decoding=version.decoding,
    )


def _batches(predictor: Predictor, version: DatasetVersion, batch_size: int) -> Iterator[Tensor]:
    """Yield training images (B, C, h, w), the same ones each time, whatever their order."""
    samples = version.samples("train")
    rows = np.argsort(samples.sha256, kind="stable")[:MOST_MEASURED]
    for start in range(0, len(rows), batch_size):
        paths = [samples.paths[row] for row in rows[start : start + batch_size]]
        images = (read_pixels(Path(to_path(path)), version.decoding) for path in paths)
        yield torch.from_numpy(np.stack([predictor.preprocessing(image) for image in images]))


def _loss(predictor: Predictor, version: DatasetVersion, batch_size: int) -> float:
    predictions = predict_split(predictor, version, "validation", batch_size)
    return select_all(predictions.logits[None], predictions.labels).loss
