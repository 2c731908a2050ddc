"""The fit on a real Trainer: it learns, keeps the best weights, takes up where it left off, and keeps frozen frozen."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from timm.data import Mixup

from graftline.augment.policy import EvalTransform
from graftline.augment.preprocess import Preprocessing
from graftline.console import WorkReport, reported
from graftline.data.loaders import Loaders, make_loader
from graftline.data.version import Samples
from graftline.errors import DivergenceError, UserError
from graftline.features.loader import activation_loader
from graftline.freezing.rule import FreezeContext
from graftline.freezing.rules import AllButHead, FirstStages, Nothing
from graftline.training.divergence import MAX_LOSS
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit import FitOptions, fit
from graftline.training.fit_directory import FitDirectory
from graftline.training.module import GraftModule
from graftline.training.recipe import Recipe
from graftline.training.results import MONITOR, FitHistory, log_loss
from graftline.training.schedule import constant, warmup_cosine
from graftline.training.temperatures import losses_by_temperature

FEATURES, CLASSES, IMAGES = 8, 3, 60


def _separable(seed: int = 0) -> tuple[np.ndarray, Samples]:
    """Activations (N, F) whose classes differ in their means."""
    generator = np.random.default_rng(seed)
    labels = np.arange(IMAGES) % CLASSES
    centers = np.random.default_rng(99).normal(0, 2, (CLASSES, FEATURES))
    activations = (centers[labels] + generator.normal(0, 1, (IMAGES, FEATURES))).astype(np.float32)
    return activations, Samples(
        ["unused"] * IMAGES, labels.astype(np.int64), None, [str(number) for number in range(IMAGES)]
    )


def _cached_loaders() -> Loaders:
    (train, train_samples), (validation, validation_samples) = _separable(0), _separable(1)
    common: dict[str, Any] = {"batch_size": 16, "seed": 0}
    return (
        activation_loader([train], train_samples, shuffle=True, **common),
        activation_loader([validation], validation_samples, shuffle=False, **common),
    )


def _module(network: torch.nn.Module, **changes: Any) -> GraftModule:
    arguments: dict[str, Any] = {
        "optimizer": functools.partial(torch.optim.AdamW, lr=0.05),
        "schedule": warmup_cosine,
        "weight_decay": 0.01,
    }
    return GraftModule(network, **{**arguments, **changes})


def _head(seed: int = 0) -> torch.nn.Linear:
    torch.manual_seed(seed)
    return torch.nn.Linear(FEATURES, CLASSES)


def _trainer(epochs: int = 5, **changes: Any) -> Callable[..., pl.Trainer]:
    return functools.partial(pl.Trainer, accelerator="cpu", devices=1, max_epochs=epochs, **changes)


def _fit(module: GraftModule, directory: Path, epochs: int = 5, **changes: Any) -> FitHistory:
    own = {field.name: changes.pop(field.name) for field in fields(FitOptions) if field.name in changes}
    arguments: dict[str, Any] = {"make_trainer": _trainer(epochs), "loaders": _cached_loaders(), "show_progress": False}
    return fit(module, directory=FitDirectory(directory), options=FitOptions(**own), **{**arguments, **changes})


class _Told(FitEvents):
    """Keeps what a fit tells."""

    def __init__(self) -> None:
        self.epochs: list[tuple[Metrics, int]] = []

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        self.epochs.append((metrics, step))


def test_it_learns_and_reports_each_epoch(tmp_path: Path) -> None:
    told = _Told()
    result = _fit(_module(_head()), tmp_path, events=told)
    assert [metrics for metrics, _ in told.epochs] == result.epochs
    assert [step for _, step in told.epochs] == [4, 8, 12, 16, 20]
    assert [metrics["epoch"] for metrics in result.epochs] == [0, 1, 2, 3, 4]
    assert result.epochs[-1]["val/loss"] < result.epochs[0]["val/loss"]
    assert result.best["val/accuracy"] > 0.9
    expected = {
        "train/loss",
        "val/loss",
        "val/calibrated_loss",
        "val/accuracy",
        "epoch",
        "learning_rate",
        "images_per_second",
    }
    assert set(result.best) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


class _Steps(pl.Callback):
    """Notes the loss and the size of each training batch, by epoch."""

    def __init__(self) -> None:
        self.epochs: dict[int, list[tuple[float, int]]] = {}

    def on_train_batch_end(self, *arguments: Any) -> None:
        trainer, _, outputs, batch, _ = arguments
        noted = (float(outputs["loss"]), len(batch["label"]))
        self.epochs.setdefault(trainer.current_epoch, []).append(noted)


def test_it_tells_how_many_epochs_are_done_and_what_the_best_came_to(tmp_path: Path) -> None:
    heard = list[WorkReport]()
    with reported(heard.append):
        history = _fit(_module(_head()), tmp_path, epochs=3, show_progress=True)
        _fit(_module(_head()), tmp_path / "trial", epochs=3)  # one that nobody is shown
    assert [(one.work, one.done, one.total) for one in heard] == [("training", done, 3) for done in range(4)]
    assert heard[0].best == ""
    assert heard[-1].best == f"best val accuracy {history.best['val/accuracy']:.3f}"


def test_the_training_loss_is_the_mean_over_the_images_of_all_batches(tmp_path: Path) -> None:
    steps = _Steps()

    def make_trainer(*, callbacks: list[pl.Callback], **arguments: Any) -> pl.Trainer:
        return _trainer(3)(callbacks=[*callbacks, steps], **arguments)

    result = _fit(_module(_head()), tmp_path, make_trainer=make_trainer)
    assert [[size for _, size in noted] for noted in steps.epochs.values()] == [[16, 16, 16, 12]] * 3
    expected = [sum(loss * size for loss, size in noted) / IMAGES for noted in steps.epochs.values()]
    assert [metrics["train/loss"] for metrics in result.epochs] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("learning_rate", [1e12, 1e30, 1e38])
def test_a_training_that_diverges_ends(learning_rate: float, tmp_path: Path) -> None:
    told = _Told()
    module = _module(_head(), optimizer=functools.partial(torch.optim.SGD, lr=learning_rate), schedule=constant)
    with pytest.raises(DivergenceError, match=rf"in epoch 1 the .* loss is .*{learning_rate:.3g}".replace("+", r"\+")):
        _fit(module, tmp_path, events=told, ema_decay=0.9)
    assert len(told.epochs) == 1, "what led to it is told"
    assert not list(tmp_path.iterdir()), "nothing is left that a model could be made of"


def test_weights_that_are_no_numbers_end_the_training(tmp_path: Path) -> None:
    head = _head()
    torch.nn.init.constant_(head.bias, float("nan"))
    with pytest.raises(DivergenceError, match=r"the training loss is no number.*lower AdamW\.lr"):
        _fit(_module(head), tmp_path, epochs=1)


def test_weights_that_a_last_step_has_spoilt_end_the_training(tmp_path: Path) -> None:
    def wild(step: int, total: int) -> float:
        return 1.0 if step < total - 1 else float("inf")

    with pytest.raises(DivergenceError, match="in epoch 2 weights are no numbers"):
        _fit(_module(_head(), schedule=wild), tmp_path, epochs=2)


def test_a_validation_loss_that_is_large_at_first_ends_nothing(tmp_path: Path) -> None:
    """So it is where the statistics of BatchNorm are of a few batches only."""
    network = torch.nn.Sequential(_head(), torch.nn.BatchNorm1d(CLASSES, momentum=0.0))
    torch.nn.init.constant_(network[0].weight, 1e9)  # type: ignore[arg-type]
    result = _fit(_module(network), tmp_path)
    assert result.epochs[0]["val/loss"] > MAX_LOSS


def test_what_was_sound_before_a_training_diverged_stays(tmp_path: Path) -> None:
    def wild(step: int, total: int) -> float:
        return 1.0 if step < 8 else 1e30

    with pytest.raises(DivergenceError, match="in epoch 3"):
        _fit(_module(_head(), schedule=wild), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_gradients_are_shown_before_their_steps(accumulate: int, tmp_path: Path) -> None:
    head, seen = _head(), []
    start = head.weight.detach().clone()

    class Looking(FitEvents):
        def on_gradients(self, network: torch.nn.Module) -> None:
            assert network is head
            assert head.weight.grad is not None
            seen.append((float(head.weight.grad.abs().sum()), torch.equal(head.weight, start)))

    trainer = _trainer(2, accumulate_grad_batches=accumulate)
    _fit(_module(head), tmp_path, make_trainer=trainer, events=Looking())
    assert [unmoved for _, unmoved in seen][:3] == [True, False, False]
    assert all(size > 0 for size, _ in seen)


def test_what_is_wrong_with_the_first_gradients_ends_the_fit(tmp_path: Path) -> None:
    class Refusing(FitEvents):
        def on_gradients(self, network: torch.nn.Module) -> None:  # noqa: ARG002 - the event's signature
            raise UserError("no gradient for head.weight")

    with pytest.raises(UserError, match=r"head\.weight"):
        _fit(_module(_head()), tmp_path, events=Refusing(), ema_decay=0.9)
    assert not list(tmp_path.iterdir())


def test_the_weights_left_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    module = _module(_head(), optimizer=functools.partial(torch.optim.SGD, lr=30.0), schedule=constant)
    result = _fit(module, tmp_path, epochs=6)  # diverges, so that the last epoch is not the best
    activations, samples = _separable(1)
    with torch.inference_mode():
        logits = module(torch.from_numpy(activations))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels))
    assert float(loss) == pytest.approx(result.best["val/loss"], abs=1e-5)
    assert result.best[MONITOR] == min(metrics[MONITOR] for metrics in result.epochs[3:])


def test_an_epoch_of_the_first_half_is_not_kept_however_low_its_loss(tmp_path: Path) -> None:
    """It learns for two epochs and unlearns for four, until nothing is left of what it knew."""
    sgd = functools.partial(torch.optim.SGD, lr=0.05)
    module = _module(_head(), optimizer=sgd, schedule=lambda step, total: 1.0 if 3 * step < total else -1.0)
    result = _fit(module, tmp_path, epochs=6)
    losses = [metrics[MONITOR] for metrics in result.epochs]
    assert np.argmin(losses) < 2
    assert result.best["epoch"] == 3 + np.argmin(losses[3:])
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"]
    assert kept == result.best["epoch"]
    more = _fit(module, tmp_path, epochs=16, resume=True)  # unlearns on: of the first half is now what was kept
    assert more.best["epoch"] == kept


def test_of_a_fit_that_ends_in_its_first_half_the_last_epoch_is_kept(tmp_path: Path) -> None:
    class StopInTheThird(FitEvents):
        def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
            if metrics["epoch"] == 2:
                raise KeyboardInterrupt

        def on_interrupt(self, interrupt: KeyboardInterrupt) -> bool:  # noqa: ARG002 - the event's signature
            return True

    unlearning = _module(_head(), schedule=lambda step, total: -1.0)  # noqa: ARG005 - a schedule
    result = _fit(unlearning, tmp_path, epochs=8, events=StopInTheThird())
    assert result.interrupted
    assert result.best["epoch"] == 1
    assert result.best[MONITOR] > result.epochs[0][MONITOR]


def test_it_stops_when_validation_no_longer_gets_better(tmp_path: Path) -> None:
    module = _module(_head(), optimizer=functools.partial(torch.optim.SGD, lr=30.0), schedule=constant)
    assert len(_fit(module, tmp_path, epochs=50, patience=2).epochs) < 50


@pytest.mark.parametrize(("more", "epochs"), [(8, 7), (9, 9)])
def test_a_fit_that_has_stopped_goes_on_with_more_epochs_only(more: int, epochs: int, tmp_path: Path) -> None:
    def module() -> GraftModule:  # it learns nothing: the first epoch of the second half stays the best of that
        return _module(_head(), optimizer=functools.partial(torch.optim.SGD, lr=0.0))

    stopped = _fit(module(), tmp_path, epochs=8, patience=2)
    assert len(stopped.epochs) == 7
    resumed = _fit(module(), tmp_path, epochs=more, patience=2, resume=True)
    assert len(resumed.epochs) == epochs
    assert resumed.epochs[:7] == stopped.epochs
    assert resumed.steps == 4 * epochs


def test_resume_goes_on_with_steps_epochs_and_history(tmp_path: Path) -> None:
    whole = _module(_head())
    expected = _fit(whole, tmp_path / "whole", epochs=6)

    class StopError(Exception):
        pass

    class StopAfterThree(FitEvents):
        def on_epoch(self, metrics: Metrics, step: int) -> None:  # noqa: ARG002 - the event's signature
            if metrics["epoch"] == 3:
                raise StopError

    with pytest.raises(StopError):
        _fit(_module(_head()), tmp_path / "parts", epochs=6, events=StopAfterThree())
    resumed = _module(_head(seed=5))  # its own weights do not matter
    result = _fit(resumed, tmp_path / "parts", epochs=6, resume=True)
    assert result.steps == expected.steps == 24
    assert [metrics["epoch"] for metrics in result.epochs] == [0, 1, 2, 3, 4, 5]
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_moved_fit_that_gets_worse_keeps_its_best_epoch(move: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.05)
    began = _fit(_module(_head(), optimizer=sgd, schedule=constant), tmp_path / "a", epochs=3)
    move(tmp_path / "a", tmp_path / "b")
    unlearning = _module(_head(), optimizer=sgd, schedule=lambda step, total: -1.0)  # noqa: ARG005 - a schedule
    history = _fit(unlearning, tmp_path / "b", epochs=7, resume=True)
    kept = torch.load(tmp_path / "b" / "best.ckpt", weights_only=True)
    assert kept["epoch"] == history.best["epoch"] == began.best["epoch"]
    assert sum(key.startswith("ModelCheckpoint{") for key in kept["callbacks"]) == 2, "an older checkpoint is read, too"
    assert [metrics["epoch"] for metrics in history.epochs] == [0, 1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.rglob("*.ckpt")) == sorted(
        ["best.ckpt", "last.ckpt"] * (1 if move is shutil.move else 2)
    )


def test_same_seed_same_metrics(tmp_path: Path) -> None:
    first = _fit(_module(_head()), tmp_path / "a")
    second = _fit(_module(_head()), tmp_path / "b")
    names = ("train/loss", "val/loss", "val/accuracy")
    assert [[m[n] for n in names] for m in first.epochs] == [[m[n] for n in names] for m in second.epochs]


def test_averaged_weights_are_the_ones_validated_and_kept(tmp_path: Path) -> None:
    module = _module(_head())
    result = _fit(module, tmp_path, ema_decay=0.9)
    activations, samples = _separable(1)
    with torch.inference_mode():
        logits = module(torch.from_numpy(activations))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels))
    assert float(loss) == pytest.approx(result.best["val/loss"], abs=1e-5)
    plain = _fit(_module(_head()), tmp_path / "plain")
    assert result.best["val/loss"] != pytest.approx(plain.best["val/loss"], abs=1e-4)


def test_biases_and_norms_have_no_weight_decay(tmp_path: Path) -> None:
    seen: list[torch.optim.Optimizer] = []

    def keep(groups: Any) -> torch.optim.Optimizer:
        seen.append(torch.optim.AdamW(groups, lr=0.01))
        return seen[-1]

    _fit(_module(_head(), optimizer=keep), tmp_path, epochs=1)
    decays = {tuple(p.shape): group["weight_decay"] for group in seen[0].param_groups for p in group["params"]}
    assert decays == {(CLASSES, FEATURES): 0.01, (CLASSES,): 0.0}


@pytest.mark.parametrize("weighing", ["classes", "images"])
def test_runs_are_ranked_by_scores_in_which_each_image_counts_as_one(tmp_path: Path, weighing: str) -> None:
    class_weights = torch.tensor([0.1, 1.0, 5.0]) if weighing == "classes" else None
    module = _module(_head(), class_weights=class_weights, use_sample_weights=weighing == "images")
    (train, train_samples), (activations, samples) = _separable(0), _separable(1)
    weights = np.linspace(0.1, 1, IMAGES, dtype=np.float32)
    common: dict[str, Any] = {"batch_size": 16, "seed": 0}
    loaders = (
        activation_loader([train], train_samples, shuffle=True, **common),
        activation_loader([activations], replace(samples, weights=weights), shuffle=False, **common),
    )
    best = _fit(module, tmp_path, loaders=loaders).best
    with torch.inference_mode():
        logits, labels = module(torch.from_numpy(activations)), torch.from_numpy(samples.labels)
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    calibrated = losses_by_temperature(logits, labels).mean(dim=0).min()
    assert log_loss(best) == pytest.approx(float(calibrated), abs=1e-5)
    assert best["val/accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))
    weighed = losses * class_weights[labels] if class_weights is not None else losses * torch.from_numpy(weights)
    total = IMAGES if class_weights is not None else float(weights.sum())
    assert best["val/loss"] == pytest.approx(float(weighed.sum()) / total, abs=1e-5)
    assert log_loss(_fit(_module(_head()), tmp_path / "plain").best) > 0


def _image_loaders(folder: Path, batch_size: int = 8) -> Loaders:
    paths = sorted(str(path) for path in folder.rglob("*.png"))[::3]
    names = sorted({Path(path).parent.name for path in paths})
    samples = Samples(paths, np.array([names.index(Path(path).parent.name) for path in paths]), None, paths)
    transform = EvalTransform(Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3))
    common: dict[str, Any] = {"batch_size": batch_size, "seed": 0, "workers": 0}
    return (
        make_loader(samples, transform, shuffle=True, **common),
        make_loader(samples, transform, shuffle=False, **common),
    )


@pytest.mark.parametrize("rule", [AllButHead(), FirstStages(number=3), Nothing()])
def test_frozen_is_frozen_through_a_whole_fit(rule: Any, color_folder: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_efficientnet", num_classes=CLASSES, drop_rate=0.2)
    (plan,) = rule.decide(FreezeContext(network, 10, pretrained=True)).plans
    plan.apply(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _fit(_module(network), tmp_path, epochs=2, loaders=_image_loaders(color_folder))
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(before[name], tensor)}
    assert {name for name in moved if name in dict(network.named_parameters())} == plan.trainable
    statistics = {name for name in moved if "running_" in name or "num_batches" in name}
    if plan.only_head:
        assert not statistics, "BatchNorm below the head moved"
    else:
        trained_stages = {name.rpartition(".")[0] for name in plan.trainable}
        assert {name.rpartition(".")[0] for name in statistics} <= trained_stages
        assert statistics


@pytest.mark.parametrize("changes", [{"mixup_alpha": 0.2}, {"cutmix_alpha": 1.0}])
def test_mixup_and_cutmix_train_on_soft_labels(
    changes: dict[str, float], color_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = timm.create_model("test_efficientnet", num_classes=CLASSES)
    mixer = Recipe(batch_size=10, **changes).mixer(CLASSES)  # type: ignore[arg-type]
    mixed, timms = [], Mixup.__call__

    def mix(self: Mixup, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before = images.clone()
        images, target = timms(self, images, labels)
        assert target.shape == (10, CLASSES)
        torch.testing.assert_close(target.sum(dim=1), torch.ones(10))
        mixed.append(not torch.equal(images, before))
        return images, target

    monkeypatch.setattr(Mixup, "__call__", mix)
    result = _fit(
        _module(network, mixer=mixer), tmp_path, epochs=2, loaders=_image_loaders(color_folder, batch_size=10)
    )
    assert any(mixed)
    assert np.isfinite(result.best["train/loss"])


def test_accumulation_halves_the_optimizer_steps(tmp_path: Path) -> None:
    result = _fit(_module(_head()), tmp_path, make_trainer=_trainer(2, accumulate_grad_batches=2))
    assert result.steps == 4
