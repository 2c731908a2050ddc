"""The module's loss: what each image, class and blend of two counts in it, and what becomes of validation losses."""

import functools
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from timm.data import Mixup

from graftline.data.loaders import Batch
from graftline.data.version import Samples
from graftline.training.module import GraftModule
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.temperatures import TEMPERATURES

FEATURES, CLASSES = 8, 3


def _module(network: torch.nn.Module, **changes: Any) -> GraftModule:
    optimizer = functools.partial(torch.optim.AdamW, lr=0.05)
    module = GraftModule(network, optimizer=optimizer, schedule=constant, weight_decay=0.01, **changes)
    module.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    return module


def _head() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(FEATURES, CLASSES)


def test_sample_weights_silence_wrong_labels() -> None:
    labels = torch.tensor([0, 1])
    inputs, weights = torch.randn(2, FEATURES), torch.tensor([1.0, 0.0])
    module = _module(_head(), use_sample_weights=True)
    step = module.step(inputs, labels, weights, smoothing=0.0)
    assert torch.isclose(step.loss, torch.nn.functional.cross_entropy(step.logits[:1], labels[:1]))
    plain = _module(_head()).step(inputs, labels, weights, smoothing=0.0)
    assert torch.isclose(plain.loss, torch.nn.functional.cross_entropy(plain.logits, labels))


def test_class_weights_and_smoothing_leave_a_sure_image_its_class() -> None:
    """Two classes, 50 images of one for each of the other, which one number tells apart."""
    labels = torch.tensor([0] * 50 + [1])
    weights = Recipe(class_weights=True).class_weight_tensor(Samples([""] * 51, labels.numpy(), None, [""] * 51), 2)
    module = _module(torch.nn.Linear(1, 2), class_weights=weights)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        step = module.step(1.0 - 2.0 * labels[:, None], labels, torch.ones(51), smoothing=0.1)
        step.loss.backward()  # type: ignore[no-untyped-call]  # torch's has no types
        optimizer.step()
    assert step.logits.argmax(dim=1).tolist() == labels.tolist()
    torch.testing.assert_close(step.logits.softmax(dim=1).amax(dim=1), torch.full((51,), 0.95), atol=0.02, rtol=0)


def _pair(labels: list[int], weights: list[float]) -> Batch:
    images = torch.randn(2, FEATURES, generator=torch.Generator().manual_seed(0))
    return {"image": images, "label": torch.tensor(labels), "weight": torch.tensor(weights), "index": torch.arange(2)}


def _mixed_gradient(labels: list[int], weights: list[float], **changes: Any) -> torch.Tensor:
    """Return the gradient of a training step on two images that are mixed, always by the same share."""
    np.random.seed(0)  # noqa: NPY002 - timm's Mixup draws from NumPy's global generator
    head = _head()
    module = _module(head, mixer=Recipe(mixup_alpha=1.0).mixer(CLASSES), **changes)
    module.training_step(_pair(labels, weights), 0).backward()  # type: ignore[no-untyped-call]  # torch's has no types
    assert head.weight.grad is not None
    return head.weight.grad


def test_a_label_that_weighs_nothing_teaches_nothing_where_images_are_mixed() -> None:
    first, second = (_mixed_gradient([0, label], [1.0, 0.0], use_sample_weights=True) for label in (1, 2))
    assert bool(first.any())
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    first, second = (_mixed_gradient([0, label], [1.0, 0.5], use_sample_weights=True) for label in (1, 2))
    assert not torch.allclose(first, second)
    assert not _mixed_gradient([0, 1], [0.0, 0.0], use_sample_weights=True).any()


def test_all_but_the_last_of_an_odd_number_of_images_are_mixed() -> None:
    """As a last batch has them, or each one where there are fewer training images than a step takes."""
    images, labels, weights = torch.randn(5, FEATURES), torch.tensor([0, 1, 2, 1, 1]), torch.ones(5)
    mixer = Recipe(mixup_alpha=1.0).mixer(CLASSES)
    assert mixer is not None
    mixed, soft, _ = _module(_head(), mixer=mixer)._mixed(mixer, images.clone(), labels, weights)
    assert (mixed != images).any(dim=1).tolist() == [True] * 4 + [False]
    plain = torch.nn.functional.one_hot(labels, CLASSES)
    assert (soft != plain).any(dim=1).tolist() == [True] * 4 + [False]
    seen = list[torch.Tensor]()
    module = _module(_head(), mixer=mixer)
    module.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    module.training_step({"image": images.clone(), "label": labels, "weight": weights, "index": labels}, 0)
    assert (seen[0] != images).any(dim=1).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 4.0]])
def test_mixed_labels_are_smoothed_as_timm_does_and_weighed_by_their_classes(weights: list[float] | None) -> None:
    class_weights = None if weights is None else torch.tensor(weights)
    found = _mixed_gradient([0, 2], [1.0, 1.0], label_smoothing=0.1, class_weights=class_weights)
    targets = []
    for smoothing in (0.1, 0.0):
        np.random.seed(0)  # noqa: NPY002 - likewise
        batch, mixup = _pair([0, 2], [1.0, 1.0]), Mixup(1.0, label_smoothing=smoothing, num_classes=CLASSES)
        images, target = mixup(batch["image"], batch["label"])
        targets.append(target)
    head, (smoothed, plain) = _head(), targets
    if class_weights is not None:  # the blend of what each of the two images would cost
        each = 0.9 * torch.eye(CLASSES) + 0.1 / CLASSES  # smoothed labels, a row per class
        smoothed = (plain * class_weights) @ each
    losses = -(smoothed * head(images).log_softmax(dim=1)).sum(dim=1)
    losses.mean().backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(found, head.weight.grad)


def test_a_loss_that_is_no_number_is_seen() -> None:
    module = _module(_head())
    losses = torch.tensor([0.5, float("nan"), 0.2])
    alike = losses[:, None].expand(-1, len(TEMPERATURES))
    module.count(losses, alike, alike, torch.ones(3), torch.ones(3), torch.ones(3))
    assert bool(module.validated.reduced()["loss"].isnan())
    assert bool(module.validated.reduced()["calibrated_loss"].isnan().all())


def test_an_image_that_weighs_nothing_does_not_count() -> None:
    module = _module(_head())
    losses, weights, real = (torch.tensor(one) for one in ([1.0, 2.0, 9.0], [3.0, 1.0, 0.0], [1.0, 1.0, 0.0]))
    alike = losses[:, None].expand(-1, len(TEMPERATURES))
    module.count(losses, alike, alike, torch.tensor([1.0, 0.0, 0.0]), weights, real)
    weighed = {name: float(value.max()) for name, value in module.validated.reduced().items()}
    assert weighed == {"loss": 1.25, "calibrated_loss": 1.25}
    means = {name: float(value.max()) for name, value in module.unweighted.reduced().items()}
    assert means == {"log_loss": 1.5, "accuracy": 0.5}
