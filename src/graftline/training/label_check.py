"""The label check: which transforms of a policy keep the label, by what a head that never saw them makes of them.

Letters: N images, K classes.
"""

import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Sequence

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from graftline.augment.policy import CROP, Augment, CandidatePolicy
from graftline.backbones.layers import body_groups
from graftline.data.loaders import decode_sample
from graftline.data.version import Samples, order_by_content
from graftline.features.cache import CacheFullError
from graftline.features.frozen_pass import content_draw
from graftline.freezing.plan import FreezePlan, plan_from_depth
from graftline.freezing.rates import head_rate
from graftline.training.fit_directory import FitDirectory
from graftline.training.policy_choice import FEWEST_IMAGES, CandidateResult, HeadKnowledge, PolicyChoice, within_margin
from graftline.training.recipe import Recipe
from graftline.training.setup import TrainingSetup
from graftline.training.source_decision import choose_source
from graftline.training.training_source import CachedSource, LiveSource
from graftline.training.trial import fitted

logger = logging.getLogger(__name__)

# Everything trained on 1,078 digits: 98.7 % right without augmentation, 97.3 % with it after 3 epochs; 99.8 and 99.1 %
# after 10 epochs (docs/augmentation.md). Between 11 and 19 nothing was measured.
FEWEST_EPOCHS = 20
LOOKS = 128, 512  # validation images; the second number of them where the first leaves it open
LOOKED_AT = 16  # images of which pixels are compared
HEAD_IMAGES, HEAD_IMAGES_OF_CLASS = 4000, 20  # training images of the head, or so many per class if that is more
VISIBLE = 2  # gray levels: a smaller change is what a JPEG's rounding makes of gray


def find_policy(setup: TrainingSetup, directory: FitDirectory, epochs: int) -> PolicyChoice:
    """Find out which candidates of a setup's policy keep the label; network and random numbers are then as before.

    The head alone is trained on plain images, on cached activations. Then each candidate happens to each of some
    validation images, and only those are kept that hardly change what the head says of them.

    Args:
        setup: of a training that is still to begin, with a ``CandidatePolicy``.
        directory: for checkpoints, which do not stay.
        epochs: of the training: how often an image is seen at most.
    """
    start = time.perf_counter()
    names = setup.policy.names
    if epochs < FEWEST_EPOCHS:
        few = f"{epochs} epoch{' is' if epochs == 1 else 's are'} taken for few"
        why = f"augmentation made no more answers right in 3 to 10 epochs, and {few}"
        return PolicyChoice.nothing(names, f"{why} (from {FEWEST_EPOCHS} epochs on it is found out)")
    if (count := setup.version.num_images("validation")) < FEWEST_IMAGES:
        why = f"{count} validation images cannot show which transforms keep the label ({FEWEST_IMAGES} can)"
        return PolicyChoice.nothing(names, why)
    with isolate_rng(include_cuda=setup.execution.is_cuda):
        choice = _check(_for_the_head(setup), directory)
    return dataclasses.replace(choice, seconds=time.perf_counter() - start)


def with_choice(setup: TrainingSetup, choice: PolicyChoice | None) -> TrainingSetup:
    """Return a setup whose policy is what was chosen of its candidates; none of them where nothing was chosen."""
    if not isinstance(setup.policy, CandidatePolicy):
        return setup
    return dataclasses.replace(setup, policy=setup.policy.only(() if choice is None else choice.kept))


def needs_choice(setup: TrainingSetup, plans: Sequence[FreezePlan]) -> bool:
    """Tell whether it matters which candidates are used: not where a head is trained on plain cached activations.

    Args:
        setup: of the training.
        plans: of its phases.
    """
    live = setup.features.cache is False or setup.recipe.mixes_images
    deep = any(not plan.only_head for plan in plans)
    return isinstance(setup.policy, CandidatePolicy) and (live or deep or setup.features.views > 0)


def _for_the_head(setup: TrainingSetup) -> TrainingSetup:
    """Return the setup of a training of the head alone, whatever is given for that of the rest."""
    version = setup.version
    most = {"train": max(HEAD_IMAGES, HEAD_IMAGES_OF_CLASS * len(version.class_names)), "validation": max(LOOKS)}
    return dataclasses.replace(
        setup,
        version=version.part(**most),
        features=dataclasses.replace(setup.features, cache=True, views=0),
        recipe=Recipe(),
        optimizer=functools.partial(torch.optim.AdamW, lr=head_rate(setup.graft.network)),
    )


def _check(setup: TrainingSetup, directory: FitDirectory) -> PolicyChoice:
    """Fit the head, and try all candidates that change anything."""
    policy, network = setup.policy, setup.graft.network
    logger.info("Finding out on validation images which transforms keep the label.")
    plan = plan_from_depth(network, len(body_groups(network)), "the label check: the head alone")
    plan.apply(network)
    if isinstance(source := choose_source(setup, plan), LiveSource):
        return PolicyChoice.nothing(policy.names, f"the head cannot be trained on cached activations ({source.why})")
    folder = FitDirectory(directory.trial)
    try:
        with fitted(setup, folder, plan, "Epochs, the head alone") as fit:
            assert isinstance(fit.source, CachedSource)
            return _try_candidates(fit.source)
    except CacheFullError as error:
        return PolicyChoice.nothing(policy.names, f"there is no room for their activations ({error})")
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def _try_candidates(source: CachedSource) -> PolicyChoice:
    """Judge each candidate by the source's trained head, on a few images; those that are left open on more."""
    setup, policy = source.setup, source.setup.policy
    train, validation = setup.version.samples("train"), setup.version.samples("validation")
    shares = np.bincount(train.labels, minlength=len(setup.version.class_names)) / len(train.labels)
    knowledge = HeadKnowledge.of(source.validation_logits(), validation.labels, shares)
    if knowledge.known.low <= 0:
        why = "the head alone knows too little of these classes to tell which transforms keep the label"
        return PolicyChoice.nothing(policy.names, why)
    order = order_by_content(validation.sha256)
    rows = _without_effect(setup, validation.take(order[:LOOKED_AT]))
    for look in sorted({min(look, len(order)) for look in LOOKS}):
        names = [name for name in policy.names if name not in rows or rows[name].is_open]
        chosen = np.sort(order[:look])
        candidates = [policy.only([name]).certain() for name in names]
        logits = source.augmented_logits(validation.take(chosen), candidates) if names else []
        for name, given in zip(names, logits, strict=True):
            rows[name] = knowledge.judge(name, given, chosen, setup.version.class_names)
    chances = {
        CROP: 1.0,
        **{name: transform.p for name, transform in policy.transforms.items() if transform is not None},
    }
    return PolicyChoice(within_margin([rows[name] for name in policy.names], chances))


def _without_effect(setup: TrainingSetup, samples: Samples) -> dict[str, CandidateResult]:
    """Return a result for each candidate that changes no pixel of the images, such as the colors of gray ones."""
    preprocessing, policy = setup.graft.preprocessing, setup.policy
    effective, gray = set[str](), True
    for index, sha256 in enumerate(samples.sha256):
        image = decode_sample(samples, index)
        gray = gray and int(np.ptp(image, axis=2).max()) <= VISIBLE
        plain = preprocessing.frame(image).astype(np.int16)
        for name in policy.names:
            augment = Augment(policy.only([name]).certain(), preprocessing, setup.seed)
            changed, _ = augment.augment(image, content_draw(sha256, view=0))
            if np.abs(changed - plain).max() > VISIBLE:
                effective.add(name)
    why = "the images are gray" if gray else "it changes nothing"
    return {name: CandidateResult(name, kept=False, why=why) for name in policy.names if name not in effective}
