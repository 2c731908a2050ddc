"""The short fits of whole networks: on training images only, and as long as there is time for."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from timm.models.efficientnet import EfficientNet

from graftline.augment.policy import Policy
from graftline.backbones.backbone import Backbone
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split
from graftline.data.version import DatasetVersion, Samples
from graftline.errors import UserError
from graftline.evaluation.head_score import HeadScore
from graftline.execution import Execution
from graftline.features.cache import Features
from graftline.pipeline.search import _is_enough
from graftline.pipeline.searching.scoring import leave_out_slow, no_rounds
from graftline.search import deeper, rounds
from graftline.search.candidates import Candidate
from graftline.search.contestant import PassSeconds
from graftline.search.deeper import choose, digest_recipe, hold_out, train_deeper
from graftline.search.halving import judge
from graftline.search.history import HEAD, WHOLE, ScoredCandidate, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger
from graftline.search.rounds import HeadRounds, TrainingImages
from graftline.training import trial
from graftline.training.head_trunk import HeadTrunk
from graftline.training.recipe import Recipe
from graftline.training.schedule import constant
from graftline.training.setup import TrainingSetup
from graftline.training.validation_scores import score_validation


@pytest.fixture(scope="module")
def version(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    return (
        Ingest(None, str(color_folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data"))).run().version
    )


@pytest.fixture(scope="module")
def larger(color_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Three times as many images, of which enough can be held out to choose by."""
    folder = tmp_path_factory.mktemp("larger")
    for file in color_folder.rglob("*.png"):
        (folder / file.parent.name).mkdir(exist_ok=True)
        for turns in range(3):
            Image.open(file).rotate(90 * turns).save(folder / file.parent.name / f"{turns}-{file.name}")
    split = Split(train=0.6, validation=0.2, test=0.2, seed=0, existing=True)
    return Ingest(None, str(folder), Folder(), split, directory=str(tmp_path_factory.mktemp("data"))).run().version


def images(version: DatasetVersion, groups: list[str] | None = None) -> TrainingImages:
    samples = version.samples("train")
    return TrainingImages(samples, groups or samples.sha256, 3)


def test_held_out_are_training_images_only(version: DatasetVersion) -> None:
    training = version.samples("train")
    divided = hold_out(version, images(version))
    parts: list[Samples] = [divided.samples(split) for split in ("train", "validation")]
    first, second = (set(part.sha256) for part in parts)
    assert first | second == set(training.sha256)
    assert not first & second
    assert np.ptp(np.bincount(parts[1].labels)) <= 1
    assert divided.class_names == version.class_names
    with pytest.raises(UserError, match=r"test split of .* has no images"):
        divided.samples("test")
    assert version.samples("train").sha256 == training.sha256  # which is as it was


def test_no_group_is_on_both_sides(version: DatasetVersion) -> None:
    digests = version.samples("train").sha256
    groups = [f"camera {index % 6}" for index in range(len(digests))]
    divided = hold_out(version, images(version, groups))
    by_digest = dict(zip(digests, groups, strict=True))
    sides = [{by_digest[one] for one in divided.samples(split).sha256} for split in ("train", "validation")]
    assert not sides[0] & sides[1]


def test_a_large_group_is_not_all_that_is_held_out(version: DatasetVersion) -> None:
    digests = version.samples("train").sha256
    groups = ["large" if index % 2 else f"camera {index}" for index in range(len(digests))]
    by_digest = dict(zip(digests, groups, strict=True))
    held_out = {by_digest[one] for one in hold_out(version, images(version, groups)).samples("validation").sha256}
    assert "large" not in held_out
    assert len(held_out) > 1


@pytest.fixture
def setup(version: DatasetVersion, weights_dir: Path, tmp_path: Path) -> TrainingSetup:
    """That of a training of one of the tiny networks."""
    backbone = Backbone("test_efficientnet", weights_dir=str(weights_dir), image_size=32)
    return TrainingSetup(
        graft=backbone.build(version.class_names),
        version=version,
        policy=Policy("none", None, {}),
        features=Features(cache=False, directory=str(tmp_path / "cache")),
        recipe=Recipe(workers=0),
        optimizer=functools.partial(torch.optim.AdamW, lr=None),  # type: ignore[arg-type]  # as the plan recommends
        schedule=constant,
        make_trainer=functools.partial(pl.Trainer, accelerator="cpu"),
        execution=Execution(),
        seed=0,
    )


@pytest.fixture
def history(weights_dir: Path) -> SearchHistory:
    """Two candidates whose heads cannot be told apart."""
    names = ("test_efficientnet", "test_resnet")
    backbones = [Backbone(name, weights_dir=str(weights_dir), image_size=32) for name in names]
    candidates = [Candidate(backbone, 32, 1e6, 0) for backbone in backbones]
    score = HeadScore(np.full(36, 0.5), np.ones(36), 1.0)
    verdicts = judge({candidate.name: score for candidate in candidates})
    scored = [ScoredCandidate(candidate, 36, score, 1.0, 1.0) for candidate in candidates]
    return SearchHistory(candidates, scored, {}, verdicts)


def test_those_that_heads_cannot_tell_apart_are_trained(
    setup: TrainingSetup,
    larger: DatasetVersion,
    history: SearchHistory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = replace(setup, version=larger)
    images, ledger = TrainingImages.of(setup.version), TimeLedger(60.0)
    given = list[Any]()

    def score(*args: Any) -> Any:
        given.append(args[-1])
        return score_validation(*args)

    monkeypatch.setattr(trial, "score_validation", score)
    files = ScoreFiles(tmp_path / "scores", setup.version.digest)
    train_deeper(
        setup, history, images, ledger, files, tmp_path / "fits", until=20.0, pass_seconds=PassSeconds(0.03, 1e-12)
    )
    whole = [one for one in history.scored if one.depth == WHOLE]
    assert [one.candidate for one in whole] == list(history.candidates)
    labels = hold_out(setup.version, images).samples("validation").labels
    held_out = len(labels)
    for weights in given:  # by which the temperature is chosen
        np.testing.assert_array_equal(weights, images.weights(labels))
    assert len(given) == 2
    for one in whole:
        assert one.score.losses.shape == (held_out,)
        assert one.score.log_loss < np.log(3)  # something is learned of three colors, however slow the machine
        assert one.images > 36
        known = files.load(one.candidate, WHOLE, 0, at=0.0)
        assert known is not None
        assert known.images == one.images
        assert 9.0 < known.allowed <= 10.0
    assert not list((tmp_path / "fits").glob("trial/*"))
    assert choose(history) in history.candidates
    again = SearchHistory(history.candidates, [], {}, history.verdicts)  # a little more time: nothing is trained anew
    train_deeper(setup, again, images, TimeLedger(60.0), files, tmp_path / "fits", 21.0, PassSeconds(0.0, 1e-12))
    assert [one.seconds for one in again.scored] == [one.seconds for one in whole]
    less = SearchHistory(history.candidates, [], {}, history.verdicts)  # nor where the time would not suffice for it
    train_deeper(setup, less, images, TimeLedger(60.0), files, tmp_path / "fits", 2.0, PassSeconds(0.0, 1.0))
    assert [one.seconds for one in less.scored] == [one.seconds for one in whole]


@pytest.mark.parametrize("when", ["timed", "trained"])
def test_one_that_does_not_fit_the_gpu_is_not_compared_and_the_next_is_trained(
    setup: TrainingSetup,
    larger: DatasetVersion,
    history: SearchHistory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    forward: Callable[[EfficientNet, torch.Tensor], torch.Tensor] = EfficientNet.forward_features

    def run_out(network: EfficientNet, x: torch.Tensor) -> torch.Tensor:
        if network.training and (when == "timed" or x.any()):  # black images are timed
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(network, x)

    monkeypatch.setattr(EfficientNet, "forward_features", run_out)
    setup = replace(setup, version=larger)
    seen, files = TrainingImages.of(setup.version), ScoreFiles(tmp_path / "scores", setup.version.digest)
    train_deeper(setup, history, seen, TimeLedger(60.0), files, tmp_path / "fits", 10.0, PassSeconds(0.01, 1e-12))
    assert [one.candidate.network for one in history.scored if one.depth == WHOLE] == ["test_resnet"]
    assert "test_efficientnet 32 px is not compared: The training does not fit the GPU's memory: choose " in caplog.text


def test_a_recipe_is_known_by_what_a_training_depends_on(setup: TrainingSetup) -> None:
    other = replace(setup, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    same = replace(setup, recipe=replace(setup.recipe, resume="abc"))
    assert digest_recipe(same) == digest_recipe(setup)
    assert digest_recipe(other) != digest_recipe(setup)
    assert digest_recipe(replace(setup, recipe=Recipe(workers=0, label_smoothing=0.1))) != digest_recipe(setup)
    mirrored = Policy("mirror", None, {"horizontal_flip": albumentations.HorizontalFlip(p=0.5)})
    assert digest_recipe(replace(setup, policy=mirrored)) != digest_recipe(setup)


def test_too_few_to_hold_out_choose_nothing(
    setup: TrainingSetup, history: SearchHistory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files, seen = ScoreFiles(tmp_path / "scores", setup.version.digest), TrainingImages.of(setup.version)
    train_deeper(setup, history, seen, TimeLedger(60.0), files, tmp_path / "fits", 20.0, PassSeconds(0.1, 1e-12))
    assert all(one.depth == HEAD for one in history.scored)
    assert "Too few training images to hold out some and compare the best 2 trained as a whole" in caplog.text


def test_without_time_the_heads_decide(
    setup: TrainingSetup,
    larger: DatasetVersion,
    history: SearchHistory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    setup = replace(setup, version=larger)
    files = ScoreFiles(tmp_path / "scores", setup.version.digest)
    images = TrainingImages.of(setup.version)
    train_deeper(
        setup,
        history,
        images,
        TimeLedger(60.0),
        files,
        tmp_path / "fits",
        until=1.0,
        pass_seconds=PassSeconds(0.0, 1.0),
    )
    assert all(one.depth == HEAD for one in history.scored)
    assert choose(history) is history.candidates[0]
    monkeypatch.setattr(deeper, "seconds_per_image", lambda _setup: 0.9)
    caplog.set_level("INFO")
    train_deeper(setup, history, images, TimeLedger(60.0), files, tmp_path / "fits", 30.0, PassSeconds(0.1, 1e-12))
    number = hold_out(setup.version, images).num_images("train")
    assert f"no time, as {number} images would take {number} s" in caplog.text


def test_what_is_left_is_enough_for_a_training_or_for_its_head_alone(setup: TrainingSetup) -> None:
    assert _is_enough(setup, 120.0)
    assert not _is_enough(setup, 15.0)  # which its end alone takes


def test_two_candidates_are_compared_where_there_is_time_or_their_scores_are_known(
    version: DatasetVersion, history: SearchHistory, tmp_path: Path
) -> None:
    fast, files = PassSeconds(0.0, 1e-12), ScoreFiles(tmp_path, version.digest)
    assert no_rounds(history.candidates, images(version), fast, files, seconds=60.0) is None
    reason = no_rounds(history.candidates, images(version), fast, files, seconds=5.0)
    assert reason is not None
    assert reason.startswith("comparing two candidates takes about 12 s, more than the 5 s")
    for one in history.scored:
        files.save(one)
    assert no_rounds(history.candidates, images(version), fast, files, seconds=5.0) is None


def test_no_more_validation_images_count_than_a_training_looks_at(
    version: DatasetVersion, history: SearchHistory
) -> None:
    table = version.table()
    validation = table[table["split"] == "validation"]
    many = version._with_table(pd.concat([table, *[validation] * 999], ignore_index=True))  # 9,000 images
    ledger, tenth = TimeLedger(720.0), PassSeconds(0.1, 0.0)
    leave_out_slow(history, many, ledger, tenth)  # those 2,000 and 48 others take 205 s
    assert not history.outcomes
    with pytest.raises(UserError, match=r"^12 minutes are not enough for 2,048 images: .* give Search.minutes=45\.$"):
        leave_out_slow(history, many, ledger, PassSeconds(0.5, 0.0))


def test_a_candidate_whose_pass_does_not_fit_the_gpu_is_left_out(
    setup: TrainingSetup, history: SearchHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own size it was measured, a larger one may take more memory than there is."""

    def run_out(_trunk: HeadTrunk, _samples: Samples) -> np.ndarray:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(HeadTrunk, "activations_quietly", run_out)
    first, fast = history.candidates[0], PassSeconds(0.0, 1e-12)
    fresh, files = SearchHistory([first]), ScoreFiles(tmp_path, setup.version.digest)
    HeadRounds(setup, fresh, images(setup.version), TimeLedger(60.0), files, {}, fast).run(until=60.0)
    assert not fresh.scored
    assert fresh.outcomes[first.name] == (
        "not tried: The frozen pass of test_efficientnet does not fit the GPU's memory at 32 px: choose a smaller "
        "Backbone.image_size"
    )


def test_scores_that_are_taken_over_count_however_short_the_time_is(
    setup: TrainingSetup, history: SearchHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "first_images", lambda *_: 18)
    first = history.candidates[0]
    larger = replace(first, backbone=replace(first.backbone, image_size=48), side=48)
    fresh, files = SearchHistory([*history.candidates, larger]), ScoreFiles(tmp_path, setup.version.digest)
    for candidate in fresh.candidates:
        for number in (18, 36):
            score = HeadScore(np.full(number, 0.5), np.ones(number), 1.0)
            files.save(ScoredCandidate(candidate, number, score, 60.0, 60.0))
    ledger = TimeLedger(60.0)
    all_images, slow = images(setup.version), PassSeconds(0.0, 1.0)
    HeadRounds(setup, fresh, all_images, ledger, files, {}, slow).run(until=ledger.now)
    assert [one.images for one in fresh.scored] == [18, 18, 18, 36, 36]
