"""Which transforms are found to keep the label, on made-up images of which one knows."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import albumentations
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn import functional

import graftline.backbones.zoo.lenet5  # noqa: F401 - registers the network
from graftline.augment.draw import Draw
from graftline.augment.policy import CandidatePolicy, EvalTransform, Policy, RandomCrop
from graftline.augment.preprocess import Preprocessing
from graftline.backbones.backbone import Graft
from graftline.backbones.weights import Weights
from graftline.data.decode import decode_rgb
from graftline.data.ingest import Ingest
from graftline.data.loaders import UnreadableImageError
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, Samples
from graftline.features.cache import Features
from graftline.freezing.plan import plan_from_depth
from graftline.training.fit_directory import FitDirectory
from graftline.training.label_check import _without_effect, find_policy, needs_choice, with_choice
from graftline.training.policy_choice import PolicyChoice
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup

MakeSetup = Callable[..., TrainingSetup]
Painter = Callable[[np.random.Generator, int], np.ndarray]

SIZE, PER_CLASS = 32, 90  # px, images; two thirds are for training, a third for validation


def canvas(chance: np.random.Generator) -> np.ndarray:
    return chance.normal(90, 12, (SIZE, SIZE))


def arrow(chance: np.random.Generator, label: int) -> np.ndarray:
    """A triangle that points to the left or to the right."""
    image, top, left = canvas(chance), chance.integers(7, 11), chance.integers(9, 12)
    for column in range(12):
        half = column // 2 if label == 0 else (11 - column) // 2
        image[top + 8 - half : top + 9 + half, left + column] = 230
    return image


def corner(chance: np.random.Generator, label: int) -> np.ndarray:
    """A mark in the upper left corner, or none."""
    image = canvas(chance)
    if label:
        image[:3, :3] = 250
    return image


def blob(chance: np.random.Generator, label: int) -> np.ndarray:
    """A bright or a dark disk, the same from all sides."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2 + chance.uniform(-2, 2, (2, 1, 1))
    return np.where(x**2 + y**2 < 49, 200 if label else 20, canvas(chance))


def hue(chance: np.random.Generator, label: int) -> np.ndarray:
    """A red or a green image."""
    return canvas(chance)[..., np.newaxis] * ((0.6, 1.6, 0.6) if label else (1.6, 0.6, 0.6))


def jitter(**strength: float) -> albumentations.ColorJitter:
    return albumentations.ColorJitter(
        **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, **strength}, p=0.5
    )


def candidates() -> CandidatePolicy:
    transforms = {
        "mirror": albumentations.HorizontalFlip(p=0.5),
        "flip": albumentations.VerticalFlip(p=0.5),
        "brightness": jitter(brightness=0.1, contrast=0.1),
        "color": jitter(saturation=0.1, hue=0.02),
        "any hue": jitter(hue=0.5),
    }
    return CandidatePolicy("auto", RandomCrop((0.7, 1.0), (0.9, 1.11)), transforms)


def make_version(draw: Painter, folder: Path, number: int = PER_CLASS) -> DatasetVersion:
    for label in range(2):
        (folder / "images" / str(label)).mkdir(parents=True)
        for index in range(number):
            image = draw(np.random.default_rng([label, index]), label).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / str(label) / f"{index:02}.png")
    split = Split(train=2 / 3, validation=1 / 3, test=0.0, seed=0, existing=True)
    return Ingest(None, str(folder / "images"), Folder(), split, directory=str(folder / "data")).run().version


def learn(network: torch.nn.Module, preprocessing: Preprocessing, samples: Samples) -> None:
    """Train a network on plain images, so that its layers below the head know something."""
    transform = EvalTransform(preprocessing)
    images = torch.tensor(np.stack([transform(decode_rgb(path), Draw(0, 0)) for path in samples.paths]))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), torch.tensor(samples.labels))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()


def setup_for(make_setup: MakeSetup, version: DatasetVersion) -> TrainingSetup:
    """Return a setup of a LeNet-5, which keeps places apart, as pooled features hardly do."""
    torch.manual_seed(0)
    network = timm.create_model("lenet5", num_classes=2, in_chans=3)
    preprocessing = Preprocessing((SIZE, SIZE), (0.5,) * 3, (0.25,) * 3, crop_pct=1.0)
    learn(network, preprocessing, version.samples("train"))
    graft = Graft(network, preprocessing, Weights("file", "here", "0" * 64))
    return make_setup(graft=graft, version=version, policy=candidates())


def find(make_setup: MakeSetup, draw: Painter, folder: Path) -> PolicyChoice:
    choice = find_policy(setup_for(make_setup, make_version(draw, folder)), FitDirectory(folder / "fit"), 30)
    assert not choice.reason
    return choice


def reasons(choice: PolicyChoice) -> dict[str, str]:
    return {row.name: row.why for row in choice.rows}


@pytest.mark.parametrize(
    ("draw", "kept", "left_out"),
    [
        (arrow, {"flip", "brightness"}, {"mirror"}),
        (corner, {"brightness"}, {"mirror", "flip", "crop"}),
        (blob, {"mirror", "flip", "brightness", "crop"}, set[str]()),
        (hue, {"mirror", "flip", "brightness", "crop", "color"}, {"any hue"}),
    ],
)
def test_what_keeps_the_label_is_used(
    make_setup: MakeSetup, tmp_path: Path, draw: Painter, kept: set[str], left_out: set[str]
) -> None:
    choice = find(make_setup, draw, tmp_path)
    assert kept <= set(choice.kept), choice.sentence()
    assert not left_out & set(choice.kept), choice.sentence()
    if draw is not hue:
        assert {reasons(choice)[name] for name in ("color", "any hue")} == {"the images are gray"}


@pytest.mark.long
def test_nothing_stays_of_it(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = setup_for(make_setup, make_version(blob, tmp_path))
    setup = replace(
        setup,  # what the rest is trained with does not matter
        features=Features(cache=False, directory=str(tmp_path / "cache")),
        recipe=Recipe(mixup_alpha=0.5),
        make_trainer=functools.partial(setup.make_trainer, max_epochs=1),
    )
    network = setup.graft.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (find_policy(setup, FitDirectory(tmp_path / "fit"), epochs=30) for _ in range(2))
    assert all(network.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "fit" / "trial").exists()
    assert first.rows == second.rows
    assert [row.images for row in first.rows[:4]] == [60, 60, 60, 60]


def test_what_cannot_be_told_is_not_used(make_setup: MakeSetup, tmp_path: Path) -> None:
    def noise(chance: np.random.Generator, label: int) -> np.ndarray:
        return canvas(chance)

    few = find_policy(
        setup_for(make_setup, make_version(arrow, tmp_path / "few", 20)), FitDirectory(tmp_path / "fit"), 30
    )
    assert few.sentence().startswith("none, as ")
    assert "cannot show which transforms keep the label (30 can)" in few.sentence()
    blind = find_policy(
        setup_for(make_setup, make_version(noise, tmp_path / "noise")), FitDirectory(tmp_path / "fit"), 30
    )
    assert blind.sentence().startswith("none, as the head alone knows too little")


def test_without_room_for_activations_nothing_is_used(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = setup_for(make_setup, make_version(blob, tmp_path))
    setup = replace(setup, features=replace(setup.features, max_gb=1e-6))
    choice = find_policy(setup, FitDirectory(tmp_path / "fit"), epochs=30)
    assert choice.sentence().startswith("none, as the head cannot be trained on cached activations (")


def test_it_is_needed_where_images_are_augmented(make_setup: MakeSetup) -> None:
    setup = make_setup(policy=candidates())
    network = setup.graft.network
    head, deep = plan_from_depth(network, 6, ""), plan_from_depth(network, 3, "")
    assert not needs_choice(setup, [head])
    assert needs_choice(setup, [head, deep])
    for changes in (
        {"features": replace(setup.features, views=2)},
        {"features": Features(cache=False)},
        {"recipe": Recipe(mixup_alpha=0.2)},
    ):
        assert needs_choice(replace(setup, **changes), [head])
    assert not needs_choice(replace(setup, policy=Policy("light", None, {})), [deep])


def test_only_what_was_chosen_happens_as_often_as_the_policy_says(make_setup: MakeSetup) -> None:
    setup = make_setup(policy=candidates())
    choice = PolicyChoice.nothing(setup.policy.names, "")
    rows = tuple(replace(row, kept=row.name in ("crop", "mirror")) for row in choice.rows)
    policy = with_choice(setup, PolicyChoice(rows)).policy
    assert policy.names == ("crop", "mirror")
    assert policy.transforms["mirror"].p == 0.5
    assert not isinstance(policy, CandidatePolicy)
    assert with_choice(setup, choice).policy.names == ()


def test_a_short_training_augments_nothing(make_setup: MakeSetup, tmp_path: Path) -> None:
    choice = find_policy(make_setup(policy=candidates()), FitDirectory(tmp_path / "fit"), epochs=19)
    assert choice.kept == ()
    assert "made no more answers right in 3 to 10 epochs, and 19 epochs are taken for few" in choice.sentence()
    assert not (tmp_path / "fit").exists(), "nothing is tried"


def test_a_file_that_is_gone_is_one_sentence(make_setup: MakeSetup, tmp_path: Path) -> None:
    samples = Samples([str(tmp_path / "gone.png")], np.zeros(1, np.int64), None, ["0" * 64])
    with pytest.raises(UnreadableImageError, match=r"gone\.png could be read at ingest but not now"):
        _without_effect(make_setup(policy=candidates()), samples)
