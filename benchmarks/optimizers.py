"""Do other optimizers' rates go with AdamW's? `python benchmarks/optimizers.py FOLDER`, a sub-folder per class.

Fits the head of EfficientNet-Lite0 on the features of at most 1,000 images of the folder with each optimizer, at the
rate that `graftline.training.optimizers` gives it and at some around it, and prints the validation log loss of the best
epoch: that of the given rate is to be near the lowest of its row.
"""

import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import get_object
from torch import Tensor, nn

from graftline.augment.draw import Draw
from graftline.augment.policy import EvalTransform
from graftline.backbones.backbone import Backbone
from graftline.console import print_table
from graftline.data.decode import decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.training import optimizers
from graftline.training.groups import Layers, make_optimizer
from graftline.training.schedule import warmup_cosine
from graftline.training.trainer import weight_decay_of

NAMES = (
    *(
        "adamw",
        "adam",
        "nadamw",
        "radam",
        "adamax",
        "adamp",
        "adopt",
        "adabelief",
        "laprop",
        "adafactor",
        "adafactorbv",
    ),
    *("adan", "mars", "madgrad", "rmsprop", "rmsproptf", "muon", "lion", "sgd", "asgd", "sgdw", "sgdp", "lamb", "lars"),
    *("novograd", "adagrad", "adadelta"),
)
AROUND = (0.1, 0.3, 1, 3, 10)  # times the given rate
RATE, EPOCHS, BATCH = 0.01, 12, 64  # conf/freeze/all_but_head.yaml's rate of AdamW
IMAGES = {"train": 700, "validation": 300}
Features = dict[str, tuple[Tensor, Tensor]]


def features(version: DatasetVersion) -> Features:
    """Return activations (N, F) and labels (N,) of each split, of images drawn at random."""
    graft = Backbone("tf_efficientnet_lite0").build(len(version.class_names))
    network, transform = graft.network.eval(), EvalTransform(graft.preprocessing)
    found: Features = {}
    for split, number in IMAGES.items():
        samples = version.samples(split)
        chosen = np.random.default_rng(0).permutation(len(samples.paths))[:number]
        rows = []
        for index in chosen:
            image = transform(decode_rgb(samples.paths[index], version.decoding), Draw(0, 0))
            with torch.inference_mode():
                maps = network.forward_features(torch.from_numpy(image)[None])
                rows.append(network.forward_head(maps, pre_logits=True))
        found[split] = torch.cat(rows).clone(), torch.from_numpy(np.asarray(samples.labels)[chosen])
    return found


def fit(name: str, rate: float, images: Features, num_classes: int) -> float:
    """Return the lowest validation log loss of a head's epochs."""
    (inputs, labels), (held_out, their_labels) = images["train"], images["validation"]
    torch.manual_seed(0)
    head = nn.Linear(inputs.shape[1], num_classes)
    target, arguments = optimizers.find(name)
    make = functools.partial(get_object(target), lr=rate, **arguments)
    optimizer = make_optimizer(
        head, make, weight_decay=weight_decay_of(make), layers=Layers({"weight": "head"}), layer_decay=1.0
    )
    steps = -(-len(inputs) // BATCH) * EPOCHS
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, steps))
    losses = []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(head(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            losses.append(float(F.cross_entropy(head(held_out), their_labels)))
    return float(np.nanmin(losses))


def main(folder: Path) -> None:
    """Print the table."""
    split = Split(train=0.7, validation=0.3, test=0.0, seed=0, existing=False)
    with tempfile.TemporaryDirectory() as name:
        version = Ingest(folder.name, str(folder), Folder(), split, directory=name).run(("train", "validation")).version
        images = features(version)
    rows = []
    for optimizer in NAMES:
        target, arguments = optimizers.find(optimizer)
        settings = optimizers.settings_of(functools.partial(get_object(target), **arguments))
        assert settings is not None
        losses = [fit(optimizer, RATE * settings.rate * times, images, len(version.class_names)) for times in AROUND]
        rows.append((optimizer, f"{settings.rate:g}", *(f"{loss:.3f}" for loss in losses)))
    print_table(f"{folder.name}: validation log loss", ("optimizer", "factor", *(f"x {t}" for t in AROUND)), rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
