"""Which of timm's families work? `python benchmarks/families.py [FAMILY …]` writes docs/families.md.

Of each family (a module of timm) the smallest network, without weights, at the smallest square image that it takes, is
trained for one epoch at three depths, saved as a bundle and asked for predictions, in a process of its own: 6 to 20 s.
Without names it is the turn of those that the page lacks. ``TRIED`` in graftline/backbones/families.py is to be what
works; a test says where it differs.
"""

import functools
import json
import multiprocessing
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import timm
import torch
from PIL import Image
from timm.models import list_modules

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone, Graft
from graftline.backbones.families import OWN
from graftline.backbones.loading import STAGES
from graftline.bundle.predictor import Predictor
from graftline.bundle.save import save_bundle
from graftline.console import say
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, first_line
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.files import write_json
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.phase import fit_phase
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
SIZES = (32, 64, 96, 128, 160, 192, 224, 256)  # px, tried in this order before the network's own
CLASSES = ("blue", "green", "red")
IMAGES = {"train": 4, "val": 2, "test": 1}  # of each class
TIME_LIMIT = 900  # seconds for a family; the slowest takes 60 on an idle machine
DEPTHS = ("nothing frozen", "half frozen", "all but the head frozen")
WORKS = "yes"


@dataclass
class FamilyResult:
    """What became of a family.

    Attributes:
        network: that was taken.
        image_size: in px.
        depths: what became of each of ``DEPTHS``: how it was trained, or why it was not.
        bundle: whether the bundle was written and ONNX Runtime's predictions are torch's, or why not.
    """

    network: str = ""
    image_size: int = 0
    depths: list[str] = field(default_factory=list)
    bundle: str = ""


def smallest(family: str) -> tuple[Backbone, int]:
    """Return a family's smallest network that has a classifier, and the side in px of the smallest image it takes."""
    sizes = {}
    for name in timm.list_models(module=family, exclude_filters="test_*"):
        with torch.device("meta"):
            network: Any = timm.create_model(name)
        if hasattr(network, "get_classifier"):
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
    plain = Backbone(min(sizes, key=lambda name: (sizes[name], name)), weights="none")
    for size in SIZES:
        backbone = replace(plain, image_size=size)
        try:
            backbone.check()
        except UserError:
            continue
        return backbone, size
    return plain, plain.preprocessing().image_size[0]


def make_setup(graft: Graft, version: DatasetVersion, folder: Path) -> TrainingSetup:
    """Return the setup of a training that caches what it can."""
    return TrainingSetup(
        graft=graft,
        version=version,
        policy=Policy("none", None, {}),
        features=Features(cache=True, directory=str(folder / "cache")),
        recipe=Recipe(batch_size=4, workers=0),
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-4),
        schedule=constant,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu", devices=1),
        execution=Execution(),
        seed=0,
    )


def train(setup: TrainingSetup, depth: int, folder: Path) -> str:
    """Train one epoch at one of the depths; returns how."""
    network = setup.graft.network
    whole = plan_from_depth(network, 0, "benchmark")
    plan = plan_from_depth(network, whole.num_groups * depth // 2, "benchmark", epochs=1, learning_rate=1e-4)
    result = fit_phase(setup, plan, FitDirectory(folder / str(depth)), show_progress=False)
    return "live" if result.cache_change is None else "cached"


def save(setup: TrainingSetup, name: str, folder: Path) -> str:
    """Write the bundle and compare what ONNX Runtime and torch predict with it."""
    save_bundle(
        folder / "bundle",
        setup.graft.network,
        timm_name=name,
        class_names=setup.version.class_names,
        preprocessing=setup.graft.preprocessing,
        card={},
    )
    paths = [Path(path) for path in setup.version.samples("test").paths]
    one, other = (Predictor.from_directory(folder / "bundle", engine).predict(paths) for engine in ("onnx", "torch"))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    return WORKS


def examine(family: str, dataset: Path, answer: Path) -> None:
    """Do all of it with a family, in this process; the answer is written after each step."""
    pl.seed_everything(0, verbose=False)
    found = FamilyResult()
    try:
        backbone, found.image_size = smallest(family)
        found.network = backbone.name
        write_json(answer, asdict(found))
        setup = make_setup(backbone.build(len(CLASSES)), DatasetVersion.load(dataset), answer.parent)
        for depth in range(len(DEPTHS)):
            try:
                how = train(setup, depth, answer.parent)
            except Exception as error:  # whatever a network's own code raises
                how = f"no: {first_line(error)}"
            found.depths.append(how)
            write_json(answer, asdict(found))
        found.bundle = save(setup, backbone.name, answer.parent)
    except Exception as error:  # likewise
        found.bundle = f"no: {first_line(error)}"
    write_json(answer, asdict(found))


def examine_apart(family: str, dataset: Path) -> FamilyResult:
    """Examine a family in a process of its own, which may take only so long."""
    with tempfile.TemporaryDirectory() as name:
        answer = Path(name) / "answer.json"
        process = CONTEXT.Process(target=examine, args=(family, dataset, answer))
        process.start()
        process.join(TIME_LIMIT)
        ended = f"no: the process ended with exit code {process.exitcode}"
        if process.is_alive():
            process.kill()
            process.join()
            ended = f"no: not done after {TIME_LIMIT} s"
        found = FamilyResult(**json.loads(answer.read_text())) if answer.exists() else FamilyResult()
        return replace(found, bundle=found.bundle or ended)


def make_dataset(folder: Path) -> Path:
    """Draw a few squares of three colors and return the directory of their dataset version."""
    generator = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for number, name in enumerate(CLASSES):
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 120, (40, 40, 3), np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(target / f"{index}.png")
    as_given = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    ingest = Ingest("squares", str(folder / "images"), Folder(), as_given, directory=str(folder / "data"))
    return ingest.run().version.directory


HEADER = f"""# Families of networks

What became of the smallest network of each of these families of timm's, without weights, at the smallest image that it
takes, on a CPU: trained for an epoch at three depths, *cached* where its frozen part could be computed ahead and *live*
where the whole network has to run at each step; then saved as a bundle, whose ONNX file predicts as torch does. A
family that is not here is no worse for it: its networks are saved once, untrained, before a training reads its images.
Written by `python benchmarks/families.py`.

| family | network | px | {" | ".join(DEPTHS)} | bundle |
|---|---|---|---|---|---|---|
"""


def read_page() -> dict[str, FamilyResult]:
    """Return what docs/families.md says."""
    results = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else ():
        family, *cells = line.strip("| ").split(" | ")
        if len(cells) == 3 + len(DEPTHS) and cells[1].isdigit():
            results[family] = FamilyResult(cells[0], int(cells[1]), cells[2:-1], cells[-1])
    return results


def write_page(results: dict[str, FamilyResult]) -> None:
    """Write docs/families.md."""
    lines = []
    for family, found in sorted(results.items()):
        depths = [*found.depths, *("-" for _ in DEPTHS)][: len(DEPTHS)]
        cells = [family, found.network or "-", str(found.image_size), *depths, found.bundle]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |\n")
    PAGE.write_text(HEADER + "".join(lines), encoding="utf-8")


def main(families: list[str]) -> None:
    """Examine families, those that the page lacks if none are named, and write the page."""
    results = read_page()
    with tempfile.TemporaryDirectory() as name:
        dataset = make_dataset(Path(name))
        for family in families or sorted(set(list_modules()) - set(results) - OWN - {STAGES}):
            results[family] = examine_apart(family, dataset)
            say(f"{family}: {results[family]}")
            write_page(results)


CONTEXT = multiprocessing.get_context("forkserver")

if __name__ == "__main__":
    CONTEXT.set_forkserver_preload(["graftline.training.phase", "graftline.bundle.predictor", "albumentations"])
    main(sys.argv[1:])
