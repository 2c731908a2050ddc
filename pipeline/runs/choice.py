"""Which runs are meant where one says ``best:5``, ``latest`` or nothing.

``latest`` is the training that ended last. ``best:N`` are the N different models with the lowest log loss on validation
images, among the finished trainings of its experiment with its validation and test images. Stages that read images
mean the experiment of their data set; the comparison, which reads none, means that of the newest training. An
experiment that the tracking names is meant by all of them.

What a stage cannot use (no test, no bundle on this machine) is left out, which it says. A comparison for which none is
named takes the newest training or ensemble that was tested. A member that an ensemble has trained may be among the
best, but is not the newest: the ensemble is. An evaluation is none of these: it is meant where its id stands.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftline.bundle.ensemble import read_digest
from graftline.console import say
from graftline.errors import UserError
from graftline.pipeline.runs.directory import RunDirectory
from graftline.tracking.names import BUNDLE_DIGEST, CHAMPION, VALIDATION_LOSS, registered_name
from graftline.tracking.registry import Registry
from graftline.tracking.tested_runs import TestedRun
from graftline.tracking.tracking import Tracking

LATEST = "latest"
MOST_ASKED = 50  # of the best trainings: among them is one that was tested, and is another model
_BEST = re.compile(r"best:([1-9]\d*)")


@dataclass(frozen=True)
class Need:
    """What a stage needs of a run to use it.

    Attributes:
        is_met: whether a run has it.
        lack: what runs are that have it not, after their number.
    """

    is_met: Callable[[TestedRun], bool]
    lack: str


def is_of_run(bundle: Path, run: TestedRun) -> bool:
    """Tell whether a bundle is the model that a run has made: a later training may have replaced it.

    Of a run that has logged no digest, such as one that was interrupted, any is.

    Raises:
        UserError: no bundle is there, or its description is damaged.
    """
    return run.bundle_digest in (None, read_digest(bundle))


def _has_bundle(run: TestedRun) -> bool:
    try:
        return run.directory is not None and is_of_run(RunDirectory(run.directory).bundle, run)
    except UserError:
        return False


A_TEST = Need(lambda run: run.is_tested, "were not tested")
A_BUNDLE = Need(_has_bundle, "have no bundle on this machine")


@dataclass(frozen=True)
class RunChoice:
    """The runs and models that are meant.

    Attributes:
        references: to each of them, as they are typed.
        tested: which of them has the test images.
    """

    references: list[str]
    tested: int = 0


def choose_runs(typed: Sequence[str], tracking: Tracking, need: Need, experiment: str | None = None) -> RunChoice:
    """Return the runs and models that are meant, each once.

    Args:
        typed: references, ``latest``, or ``best:N``, as above.
        tracking: knows the runs; its experiment is meant where it names one.
        need: what the best ones are to have.
        experiment: whose runs are meant else; None: that of the newest training.

    Raises:
        UserError: there are no such runs.
    """
    registry, references = tracking.registry(), list[str]()
    for one in typed:
        best = _BEST.fullmatch(one)
        if best is None and one.startswith("best:"):
            raise UserError(f"{one} does not say how many models: write best:3, for instance.")
        if one != LATEST and best is None:
            references.append(one)
            continue
        newest = registry.newest_training(tracking.experiment or experiment, members=best is not None)
        chosen = [newest] if best is None else _choose_best(registry, newest, int(best[1]), need)
        references += [run.id for run in chosen]
    return RunChoice(list(dict.fromkeys(references)))


def newest_against_champion(tracking: Tracking) -> RunChoice:
    """Return the champion, or the best training where there is none, and the newest other training or ensemble.

    Args:
        tracking: knows the runs; its experiment, or that of the newest run.

    Raises:
        UserError: there are not two.
    """
    registry = tracking.registry()
    newest = registry.newest_tested(tracking.experiment)
    name = registered_name(newest.dataset)
    champion = registry.aliased(name, CHAMPION)
    if champion is not None:
        digest = champion.tags.get(BUNDLE_DIGEST)
        if newest.bundle_digest == digest:
            newest = registry.newest_tested(newest.experiment, skip=digest)
        return RunChoice([f"models:/{name}@{CHAMPION}", newest.id], tested=1)  # the data set may have grown since
    best = best_other(registry, newest.experiment, newest.images, newest.bundle_digest)
    if best is None:
        raise UserError(
            f"{newest.name} is the only model of the experiment '{newest.experiment}' that was tested on its images: "
            "train another, or name the runs to compare."
        )
    say(f"{name} has no champion: the newest run is compared with the best other one, by validation log loss.")
    return RunChoice([best.id, newest.id])


def best_other(
    registry: Registry, experiment: str, images: Mapping[str, str], bundle_digest: str | None
) -> TestedRun | None:
    """Return what a model is to be compared with: the best other training on its images that was tested, or None.

    Args:
        registry: knows the runs.
        experiment: of the model.
        images: its images, as ``TestedRun.images`` has them.
        bundle_digest: of the model.
    """
    ranked = _different(registry.best_trainings(experiment, images, most=MOST_ASKED))
    return next((run for run in ranked if run.is_tested and run.bundle_digest != bundle_digest), None)


def _choose_best(registry: Registry, newest: TestedRun, count: int, need: Need) -> list[TestedRun]:
    """Return the best of the trainings on the newest one's images, as many as there are.

    Were they chosen by their test scores, luck would flatter the best, and no p-value would hold.

    Raises:
        UserError: there is none.
    """
    experiment = newest.experiment
    ranked = _different(registry.best_trainings(experiment, newest.images))
    usable = [run for run in ranked if need.is_met(run)]
    if not usable:
        why = f"is of any use: they {need.lack}" if ranked else f"has logged {VALIDATION_LOSS}, which tells the best"
        raise UserError(f"No training of the experiment '{experiment}' {why}; name the runs, or train again.")
    if lacking := len(ranked) - len(usable):
        say(f"Models of the experiment '{experiment}' that {need.lack} are left out: {lacking:,}.")
    chosen = usable[:count]
    losses = ", ".join(f"{run.validation_loss:.3f}" for run in chosen)
    told = _told(len(chosen), len(usable))
    say(f"{told} of '{experiment}' on the newest one's images, by validation log loss: {losses}.")
    return chosen


def _told(chosen: int, usable: int) -> str:
    """Say how many of some models are the best.

    >>> _told(1, 1), _told(4, 4), _told(1, 4), _told(3, 4)
    ('The only model', 'All 4 models', 'The best of 4 models', 'The 3 best of 4 models')
    """
    if chosen == usable:
        return f"All {usable} models" if usable > 1 else "The only model"
    return f"The {chosen} best of {usable} models" if chosen > 1 else f"The best of {usable} models"


def _different(runs: Sequence[TestedRun]) -> list[TestedRun]:
    """Return each model once, by the first of its runs."""
    models: dict[str, TestedRun] = {}
    for run in runs:
        models.setdefault(run.bundle_digest or run.id, run)
    return list(models.values())
