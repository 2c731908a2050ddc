"""A boundary that is tried leaves no trace, and is scored image by image."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftline.augment.draw import Draw
from graftline.augment.policy import CandidatePolicy, EvalTransform, RandomCrop
from graftline.backbones.weights import Weights
from graftline.data.decode import decode_rgb
from graftline.data.version import DatasetVersion
from graftline.errors import DivergenceError, TooLittleMemoryError
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.freezing.measured import Measured
from graftline.freezing.measurement import BoundaryTrial
from graftline.freezing.plan import plan_from_depth
from graftline.freezing.rule import FreezeDecision
from graftline.freezing.rules import Nothing
from graftline.training.events import FitEvents, Metrics
from graftline.training.fit_directory import FitDirectory
from graftline.training.image_seconds import seconds_per_image
from graftline.training.phase import fit_phase
from graftline.training.phases import train
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.temperatures import losses_by_temperature
from graftline.training.training_source import LiveSource, TrainingSource
from graftline.training.trial import FoldTrials, Trials, keep_trials, make_freeze_context
from graftline.training.validation_scores import score_validation

MakeSetup = Callable[..., TrainingSetup]
DROPOUT = {"drop_rate": 0.2}


def attempt(setup: TrainingSetup, frozen_groups: int, directory: Path) -> BoundaryTrial:
    plan = plan_from_depth(setup.graft.network, frozen_groups, "", epochs=2, learning_rate=0.03)
    return Trials(setup, FitDirectory(directory))(plan)


def test_a_trial_is_the_same_whatever_was_tried_before(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(network=DROPOUT, features=Features(cache=False))
    network = setup.graft.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    left = FitDirectory(tmp_path).trial / "06" / "last.ckpt"
    left.parent.mkdir(parents=True)
    left.write_text("what a killed trial left")
    first, second, again = (attempt(setup, number, tmp_path) for number in (6, 5, 6))
    assert all(network.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    keep_trials(FreezeDecision((first.plan,), tried=()), FitDirectory(tmp_path))
    assert not list(tmp_path.iterdir())
    other = make_setup(network=DROPOUT, features=Features(cache=False))
    torch.rand(1)  # dropout must not depend on what drew random numbers before
    alone = attempt(other, 5, tmp_path)
    for trial, repeated in ((first, again), (second, alone)):
        np.testing.assert_array_equal(trial.losses, repeated.losses)
        np.testing.assert_array_equal(trial.hits, repeated.hits)
    assert (first.losses != second.losses).all()
    assert (first.boundary, first.cached) == ("head", False)


def test_one_that_does_not_fit_the_gpu_is_a_sentence_and_leaves_no_trace(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(features=Features(cache=False))
    network = setup.graft.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = network.register_forward_hook(run_out)
    for needs in (lambda: attempt(setup, 0, tmp_path), lambda: seconds_per_image(setup)):
        with pytest.raises(TooLittleMemoryError, match=r"^The training does not fit the GPU's memory: ") as error:
            needs()
        assert (error.value.__cause__, error.value.__context__) == (None, None), "what keeps what lies on the GPU"
    handle.remove()
    assert all(network.state_dict()[name].equal(tensor) for name, tensor in before.items())
    assert attempt(setup, 0, tmp_path).losses.size
    assert seconds_per_image(setup) > 0


def test_a_gpu_that_has_no_room_for_a_whole_step_is_timed_by_fewer_images(make_setup: MakeSetup) -> None:
    """What is trained may be the head alone, which fits."""
    setup, tried = make_setup(), list[int]()

    def run_out(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        tried.append(len(inputs[0]))
        if tried[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    setup.graft.network.register_forward_pre_hook(run_out)
    assert seconds_per_image(setup) > 0
    assert tried == [16, 8, 4, 4, 4]


@pytest.mark.parametrize(
    ("batch_size", "accumulated", "processes", "epochs"),
    [(None, None, 1, 3), (16, None, 1, 3), (256, None, 1, 6), (32, 8, 1, 6), (None, 2, 4, 6)],
)
def test_larger_steps_keep_their_number(
    make_setup: MakeSetup,
    tmp_path: Path,
    batch_size: int | None,
    accumulated: int | None,
    processes: int,
    epochs: int,
) -> None:
    """Of 14,000 images: 8 times as many as usual in a step take 6 epochs in place of 3."""
    setup = make_setup(recipe=Recipe(batch_size=batch_size, workers=0), execution=Execution(world_size=processes))
    setup = replace(setup, make_trainer=functools.partial(setup.make_trainer, accumulate_grad_batches=accumulated))
    context = make_freeze_context(setup, FitDirectory(tmp_path))
    (few,), (many,) = (Nothing().decide(replace(context, num_images=images)).plans for images in (36, 14_000))
    assert few.epochs == 30
    assert many.epochs == epochs


def test_each_images_loss_is_that_of_the_best_epochs_network(
    version: DatasetVersion, make_setup: MakeSetup, tmp_path: Path
) -> None:
    setup, sources = make_setup(), list[TrainingSource]()

    class Keeping(FitEvents):
        def on_source(self, source: TrainingSource) -> None:
            sources.append(source)

    network = setup.graft.network
    plan = plan_from_depth(network, 6, "", epochs=3, learning_rate=0.03)
    result = fit_phase(setup, plan, FitDirectory(tmp_path / "fit"), events=Keeping(), show_progress=False)
    (source,) = sources
    assert source.network is not network  # the tail, on cached activations
    losses, hits = score_validation(setup, source)
    samples, transform = version.samples("validation"), EvalTransform(setup.graft.preprocessing)
    images = torch.stack(
        [torch.as_tensor(transform(decode_rgb(path), Draw(0, index))) for index, path in enumerate(samples.paths)]
    )
    with torch.inference_mode():
        logits = network.eval()(images)
    labels = torch.tensor(samples.labels)
    by_temperature = losses_by_temperature(logits, labels).numpy()
    np.testing.assert_allclose(losses, by_temperature[:, by_temperature.mean(axis=0).argmin()], atol=1e-4)
    for number in range(3):  # a class that alone counts has the temperature that suits it best
        weighed, _ = score_validation(setup, source, np.eye(3)[number])
        best = by_temperature[labels.numpy() == number].mean(axis=0).argmin()
        np.testing.assert_allclose(weighed, by_temperature[:, best], atol=1e-4)
    np.testing.assert_array_equal(hits, (logits.argmax(dim=1) == labels).float().numpy())
    assert losses.mean() == pytest.approx(result.history.best["val/calibrated_loss"], abs=1e-4)


def test_the_context_is_that_of_the_training(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup()
    setup = replace(
        setup,
        graft=replace(setup.graft, weights=Weights("none")),
        make_trainer=functools.partial(setup.make_trainer, max_epochs=7),
    )
    context = make_freeze_context(setup, FitDirectory(tmp_path))
    assert context.network is setup.graft.network
    assert (context.num_images, context.validation_counts, context.pretrained, context.epochs) == (
        36,
        (4, 4, 4),
        False,
        7,
    )


def test_a_trial_goes_on_from_another_and_becomes_a_phase(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup, directory = make_setup(features=Features(cache=False)), FitDirectory(tmp_path)
    trials, network = Trials(setup, directory), setup.graft.network
    plan = plan_from_depth(network, 6, "", epochs=3, learning_rate=0.03)
    first = trials(plan)
    second = trials(plan, start=first)
    assert second.chain() == [first, second]
    assert second.losses.mean() < first.losses.mean()  # six epochs in place of three
    assert first.trained_images == 3 * 36
    decision = FreezeDecision((plan, plan), tried=(first.folder, second.folder))
    keep_trials(decision, directory)
    heard = _Heard()
    result = train(setup, decision.plans, directory, events=heard, finished=2)
    assert [phase.history.best["val/calibrated_loss"] for phase in result.phases] == pytest.approx(
        [first.losses.mean(), second.losses.mean()], abs=1e-5
    )
    assert heard.epochs == [0, 1, 2, 3, 4, 5]  # they are told as if they had been trained just now
    assert heard.steps == [3, 6, 9, 12, 15, 18]
    losses, _ = score_validation(setup, LiveSource(setup, ""))
    np.testing.assert_allclose(losses, second.losses, atol=1e-5)


def test_a_trial_on_all_images_is_kept_where_what_follows_is_worse(
    make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path
) -> None:
    setup = make_setup(version=judged_version, features=Features(cache=False))
    directory = FitDirectory(tmp_path)
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=6, learning_rate=0.03)
    trial = Trials(setup, directory)(plan)
    worse = replace(plan, epochs=1, learning_rate=0.0, anew=True)
    keep_trials(FreezeDecision((plan, worse), tried=(trial.folder,)), directory)
    for tried_on_all, phase in ((True, 0), (False, 1)):
        decision = FreezeDecision((plan, worse), tried=(trial.folder,), tried_on_all=tried_on_all)
        assert FreezeDecision.from_json(decision.to_json()) == decision
        result = train(setup, decision.plans, directory, finished=1, first_judged=decision.first_judged)
        assert result.best_phase == phase


def test_a_trial_may_use_a_part_of_the_images(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(features=Features(cache=False))
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=1, learning_rate=0.03)
    trial = Trials(setup, FitDirectory(tmp_path))(plan, max_images=12)
    assert trial.trained_images == 12
    assert len(trial.losses) == 12  # of the validation split, which stays whole


def test_a_trial_of_all_training_images_sees_a_part_of_many_validation_images(
    make_setup: MakeSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftline.training.trial.MOST_JUDGED", 6)
    features = Features(directory=str(tmp_path / "cache"))
    trial = attempt(make_setup(features=features), 6, tmp_path)
    assert (trial.images, len(trial.losses)) == (36, 6)
    (table,) = features.store.entries()
    assert sum(header.images for header in table.headers) == 36 + 6, "the others are not even computed"


def test_fits_without_a_fold_say_which(
    make_setup: MakeSetup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = make_setup(features=Features(cache=False))
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=1, learning_rate=0.03)
    trial = FoldTrials(setup, FitDirectory(tmp_path))(plan)
    assert len(trial.losses) == 36 + 12, "each training and validation image is judged"
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epochs, the head alone")]
    assert told == [f"Epochs, the head alone, fold {number} of 3: 1" for number in (1, 2, 3)]


def test_a_trial_has_a_rare_class_too(make_setup: MakeSetup, version: DatasetVersion, tmp_path: Path) -> None:
    """Two thirds of two classes of 12, and all 3 of a third one."""
    samples = version.samples("train")
    seen, splits = [0, 0, 0], dict.fromkeys(version.samples("validation").sha256, "validation")
    for sha256, label in zip(samples.sha256, samples.labels.tolist(), strict=True):
        seen[label] += 1
        if label > 0 or seen[0] <= 3:
            splits[sha256] = "train"
    setup = make_setup(version=version.divided(splits), features=Features(cache=False))
    plan = plan_from_depth(setup.graft.network, 6, "", epochs=1, learning_rate=0.03)
    trial = Trials(setup, FitDirectory(tmp_path))(plan, max_images=18)
    assert trial.images == 8 + 8 + 3


def test_a_trial_computes_each_image_once_where_no_view_is_augmented(make_setup: MakeSetup, tmp_path: Path) -> None:
    features = Features(views=3, directory=str(tmp_path / "cache"))
    setup = make_setup(policy=CandidatePolicy("auto", RandomCrop((0.5, 1.0), (1.0, 1.0)), {}), features=features)
    attempt(setup, 6, tmp_path)
    (table,) = features.store.entries()
    assert sum(header.images for header in table.headers) == 36 + 12


def test_a_head_on_images_is_not_tried_where_the_time_is_short(
    make_setup: MakeSetup, judged_version: DatasetVersion, tmp_path: Path
) -> None:
    """Its 30 epochs would be over when the time is."""
    setup = make_setup(version=judged_version, features=Features(cache=False))
    directory = FitDirectory(tmp_path)
    context = make_freeze_context(setup, directory, deadline=time.monotonic() + 0.01)
    decision = Measured().decide(context)
    (plan,) = decision.plans
    assert plan.only_head
    assert plan.decision.startswith("the time does not allow for a trial: all 6 layer groups")
    assert (decision.measurement, decision.tried) == (None, ())
    assert not directory.trial.exists()


def test_a_trial_that_diverges_says_at_which_rate_and_leaves_no_trace(make_setup: MakeSetup, tmp_path: Path) -> None:
    setup = make_setup(features=Features(cache=False), optimizer=functools.partial(torch.optim.AdamW, lr=1e30))
    before = {name: tensor.clone() for name, tensor in setup.graft.network.state_dict().items()}
    plan = plan_from_depth(setup.graft.network, 0, "", epochs=3, learning_rate=0.001)
    with pytest.raises(DivergenceError, match=r"at a learning rate of 1e\+30: lower AdamW\.lr\."):
        Trials(setup, FitDirectory(tmp_path))(plan)
    after = setup.graft.network.state_dict()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


class _Heard(FitEvents):
    """Keeps the number and the step of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[int] = []

    def on_epoch(self, metrics: Metrics, step: int) -> None:
        self.epochs.append(metrics["epoch"])
        self.steps.append(step)
