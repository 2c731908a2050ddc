"""Which runs are meant where one says ``best:5``, ``latest`` or nothing: of the tested ones that MLflow knows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graftline.console import say
from graftline.errors import UserError
from graftline.evaluation.metrics import LOWER_IS_BETTER
from graftline.tracking.names import BUNDLE_DIGEST, registered_name
from graftline.tracking.registry import Registry
from graftline.tracking.tested_runs import TestedRun
from graftline.tracking.tracking import Tracking

CHAMPION = "champion"
LATEST = "latest"
_BEST = re.compile(r"best:([1-9]\d*)")


@dataclass(frozen=True)
class RunChoice:
    """The runs and models that are meant.

    Attributes:
        references: to each of them, as they are typed.
        comparisons: of the others with the first that may have been made before it was known which they are.
        tested: which of them has the test images.
    """

    references: list[str]
    comparisons: int
    tested: int = 0


def choose_runs(typed: Sequence[str], tracking: Tracking, score: str) -> RunChoice:
    """Return the runs and models that are meant, each once.

    Args:
        typed: references, ``latest``, or ``best:N``: the N runs of the experiment that have the best score on the same
            test images as its newest run.
        tracking: knows the runs; its experiment, or that of the newest run.
        score: by which the best are the best.

    Raises:
        UserError: there are no such runs.
    """
    registry, references, candidates = tracking.registry(), list[str](), 0
    for one in typed:
        if one == LATEST:
            references.append(registry.newest_tested(tracking.experiment).id)
        elif (best := _BEST.fullmatch(one)) is not None:
            runs = _of_same_test(registry, tracking.experiment, score)
            references += [run.id for run in runs[: int(best[1])]]
            candidates += max(0, len(runs) - int(best[1]))
        else:
            references.append(one)
    references = list(dict.fromkeys(references))
    candidates += len(references)
    first_is_chosen = bool(typed) and _BEST.fullmatch(typed[0]) is not None
    return RunChoice(references, candidates * (candidates - 1) // 2 if first_is_chosen else candidates - 1)


def newest_against_champion(tracking: Tracking, score: str) -> RunChoice:
    """Return the champion, or the best run where there is none, and the newest other run.

    Args:
        tracking: knows the runs; its experiment, or that of the newest run.
        score: by which the best is the best.

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
        return RunChoice([f"models:/{name}@{CHAMPION}", newest.id], 1, tested=1)  # the data set may have grown
    others = [
        run
        for run in registry.tested_runs(newest.experiment, score, lower_is_better=score in LOWER_IS_BETTER)
        if run.test_digest == newest.test_digest and run.bundle_digest != newest.bundle_digest
    ]
    if not others:
        raise UserError(
            f"{newest.name} is the only model of the experiment '{newest.experiment}' that was tested on its images: "
            "train another, or name the runs to compare."
        )
    say(f"{name} has no champion: the newest run is compared with the best other one.")
    return RunChoice([others[0].id, newest.id], len(others))


def _of_same_test(registry: Registry, experiment: str | None, score: str) -> list[TestedRun]:
    """Return the runs of an experiment, the best first, that were tested on the same images as its newest one."""
    newest = registry.newest_tested(experiment)
    runs = registry.tested_runs(newest.experiment, score, lower_is_better=score in LOWER_IS_BETTER)
    same = [run for run in runs if run.test_digest == newest.test_digest]
    if left_out := len(runs) - len(same):
        say(f"{left_out:,} more of the experiment '{newest.experiment}' were tested on other images and are left out.")
    return same
