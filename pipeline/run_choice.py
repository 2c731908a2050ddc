"""Which runs are meant where one says ``best:5``, ``latest`` or nothing: of the tested ones that MLflow knows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from graftline.console import say
from graftline.errors import UserError
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
        tested: which of them has the test images.
    """

    references: list[str]
    tested: int = 0


def choose_runs(typed: Sequence[str], tracking: Tracking) -> RunChoice:
    """Return the runs and models that are meant, each once.

    Args:
        typed: references, ``latest``, or ``best:N``: the N runs of the experiment that have the lowest log loss on
            validation images, among those that were tested on the same images as its newest run.
        tracking: knows the runs; its experiment, or that of the newest run.

    Raises:
        UserError: there are no such runs.
    """
    registry, references = tracking.registry(), list[str]()
    for one in typed:
        if one == LATEST:
            references.append(registry.newest_tested(tracking.experiment).id)
        elif (best := _BEST.fullmatch(one)) is not None:
            references += [
                run.id for run in _best(registry, registry.newest_tested(tracking.experiment))[: int(best[1])]
            ]
        else:
            references.append(one)
    return RunChoice(list(dict.fromkeys(references)))


def newest_against_champion(tracking: Tracking) -> RunChoice:
    """Return the champion, or the best run where there is none, and the newest other run.

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
    others = [run for run in _best(registry, newest) if run.bundle_digest != newest.bundle_digest]
    if not others:
        raise UserError(
            f"{newest.name} is the only model of the experiment '{newest.experiment}' that was tested on its images: "
            "train another, or name the runs to compare."
        )
    say(f"{name} has no champion: the newest run is compared with the best other one, by validation log loss.")
    return RunChoice([others[0].id, newest.id])


def _best(registry: Registry, newest: TestedRun) -> list[TestedRun]:
    """Return the runs of a run's experiment that were tested on the same images, the best on validation images first.

    Were they chosen by their test scores, luck would flatter the best, and no p-value would hold.
    """
    runs = registry.best_tested(newest.experiment)
    same = [run for run in runs if run.test_digest == newest.test_digest]
    if left_out := len(runs) - len(same):
        say(f"{left_out:,} more of the experiment '{newest.experiment}' were tested on other images and are left out.")
    return same
