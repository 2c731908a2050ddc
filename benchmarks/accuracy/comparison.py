"""Put side by side what was measured: for each set and budget, each peer's score beside graftline's best within it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.intervals import paired, wilson
from benchmarks.accuracy.results import Result, Run, read_correct
from benchmarks.accuracy.runners import OURS, PEERS

SLACK = 1.1  # whoever took more than that times a budget, graftline or a peer, is not compared at it


@dataclass(frozen=True)
class Row:
    """One peer on one set within one budget; the mean over seeds.

    Attributes:
        minutes: the budget.
        accuracy: 0 to 1.
        interval: of 95 %, of one seed's size.
        seconds: to the trained model.
        seeds: how many.
        is_in_time: whether each seed kept to the budget.
        ahead: by how much graftline's is better, and the interval of that; None for graftline's own, and where
            one of the two took too long.
    """

    image_set: str
    minutes: float
    peer: str
    accuracy: float
    interval: tuple[float, float]
    seconds: float
    seeds: int
    is_in_time: bool
    ahead: tuple[float, float, float] | None


def compare(results: Mapping[Run, Result], folder: Path) -> list[Row]:
    """Return the rows, by set, budget and peer."""
    rows = []
    budgets = {run.minutes for run in results if run.minutes is not None}
    for image_set in dict.fromkeys(run.image_set for run in results):
        for minutes in sorted(budgets):
            groups = _within(results, image_set, minutes)
            ours = {peer: group for peer, group in groups.items() if peer in OURS}
            rival = pick_ours(ours, minutes)
            for peer, group in groups.items():
                ahead = None
                if rival and peer not in OURS and _is_in_time(group, minutes):
                    ahead = paired(*(read_correct(folder, (one.run for one in runs)) for runs in (ours[rival], group)))
                rows.append(_row(image_set, minutes, peer, group, ahead))
    return rows


def pick_ours(ours: Mapping[str, list[Result]], minutes: float) -> str | None:
    """Return the way of using graftline that is compared at a budget: search, else train with minutes, else train.

    It is the first that was run and kept to the budget: chosen by what the user would type, never by its test score.
    """
    for peer in ("graftline-search", "graftline-minutes", "graftline"):
        if peer in ours and _is_in_time(ours[peer], minutes):
            return peer
    return None


def _is_in_time(group: Iterable[Result], minutes: float) -> bool:
    return all(result.trained_seconds <= SLACK * minutes * 60 for result in group)


def _within(results: Mapping[Run, Result], image_set: str, minutes: float) -> dict[str, list[Result]]:
    """Return the results of each peer for a set and a budget; those without a budget count for each."""
    here = [result for run, result in results.items() if run.image_set == image_set and run.minutes in (minutes, None)]
    grouped = {peer: [result for result in here if result.run.peer == peer] for peer in PEERS}
    return {peer: group for peer, group in grouped.items() if group}


def _row(
    image_set: str, minutes: float, peer: str, group: list[Result], ahead: tuple[float, float, float] | None
) -> Row:
    accuracy = _mean(result.accuracy for result in group)
    interval = wilson(accuracy, group[0].num_images)
    seconds = _mean(result.trained_seconds for result in group)
    return Row(image_set, minutes, peer, accuracy, interval, seconds, len(group), _is_in_time(group, minutes), ahead)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
