"""Members x crops on one split: how good each combination is, what it costs, and which are worth their time.

Letters: N images, M members, S sets of crops, K classes, R rows of the table, B resamples of a chunk.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np

from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.ensemble import Ensemble
from graftline.bundle.grid import Average, Grid, mean_logits, true_log_probabilities
from graftline.bundle.predictor import softmax
from graftline.console import counted
from graftline.data.version import DatasetVersion
from graftline.evaluation.bootstrap import Ints, multiplicities
from graftline.evaluation.evaluation import Evaluation, EvaluationResult
from graftline.evaluation.metrics import TAILS, Interval, score, widened_share
from graftline.evaluation.notes import notes_on
from graftline.evaluation.paired import widened_difference
from graftline.evaluation.predictions import Predictions, predict_split
from graftline.evaluation.verdict import PairedTest, accuracy_notes, judge_accuracies

MOST_TIMED, TIMED_SECONDS = 32, 1.0  # images behind each measured time: as many as take about a second
LARGEST_LOSS = float(-np.log(np.finfo(np.float64).eps))  # as scikit-learn's log_loss clips
NO_DECISIONS: Mapping[tuple[int, ...], Decision] = MappingProxyType({})
NOTHING_KNOWN: Mapping[int, np.ndarray] = MappingProxyType({})


@dataclass(frozen=True)
class GridRow:
    """A combination of members, and of crops that each is averaged over.

    Attributes:
        members: their numbers.
        crops: name of the set.
        accuracy: with its interval.
        log_loss: in nats, with its interval.
        accuracy_gain: what is gained over the first row, on the same resamples.
        log_loss_gain: likewise; less loss is a negative gain.
        milliseconds: per image, files to probabilities.
        is_on_frontier: whether no row that takes as little time is as accurate.
        test: of its accuracy against the first row's; the first row has none.
    """

    members: tuple[int, ...]
    crops: str
    accuracy: Interval
    log_loss: Interval
    accuracy_gain: Interval
    log_loss_gain: Interval
    milliseconds: float
    is_on_frontier: bool
    test: PairedTest | None = None


@dataclass(frozen=True)
class GridCandidate:
    """A combination before it is scored.

    Attributes:
        members: their numbers.
        crops: name of the set.
        logits: (N, K) of the average.
        decision: which class is answered, given their probabilities.
        milliseconds: per image.
    """

    members: tuple[int, ...]
    crops: str
    logits: np.ndarray
    decision: Decision
    milliseconds: float


@dataclass(frozen=True)
class GridResult:
    """What members x crops gave.

    Attributes:
        whole: the evaluation of all members together with the last set of crops, which is the row that was decided on
            before any was seen.
        rows: of the table.
    """

    whole: EvaluationResult
    rows: list[GridRow]

    @property
    def whole_row(self) -> GridRow:
        """The row of all members with the last set of crops."""
        return self.rows[-1]

    @property
    def verdict_notes(self) -> list[str]:
        """What to know before believing the rows' verdicts, in sentences."""
        return verdict_notes(self.rows, self.whole.predictions)


def verdict_notes(rows: Sequence[GridRow], predictions: Predictions) -> list[str]:
    """Return what to know before believing the verdicts of rows, in sentences.

    Args:
        rows: what `score_candidates` returned.
        predictions: any of the same images.
    """
    tests = [row.test for row in rows if row.test is not None]
    return accuracy_notes(tests, len(predictions.labels), predictions.drawn_groups)


def evaluate_grid(
    evaluation: Evaluation,
    grid: Grid,
    whole: Ensemble,
    version: DatasetVersion,
    split: str,
    known: Mapping[int, np.ndarray] = NOTHING_KNOWN,
) -> GridResult:
    """Classify the images of a split once, each decoded once, and score every combination.

    Args:
        evaluation: batch size, resamples and seed.
        grid: members and sets of crops.
        whole: all members of the grid with its last set of crops; its shares are those of some of them, too.
        version: has the images.
        split: its name.
        known: as for `classify`.

    Raises:
        UserError: as `Evaluation.run`.
    """
    paths = version.samples(split).paths
    start = time.perf_counter()
    logits = classify(grid, version, split, evaluation.batch_size, known)
    speed = len(paths) / (time.perf_counter() - start)
    everyone = range(len(grid.members))
    mean = mean_over(logits[:, -1], everyone, grid.average, whole.shares)
    predictions = predict_split(whole, version, split, known_logits=mean)
    scores = score(predictions, evaluation.resamples, evaluation.seed)
    times = measure(grid, paths, evaluation.batch_size)
    if known:
        speed = 1000 / float(times.sum())
    labels, seed = predictions.labels, evaluation.seed
    decisions: dict[tuple[int, ...], Decision] = {(number,): one for number, one in enumerate(grid.decisions)}
    decisions[tuple(everyone)] = whole.decision
    rows = compare(
        logits,
        labels,
        grid.crops,
        times,
        evaluation.resamples,
        seed,
        grid.average,
        decisions,
        predictions.drawn_groups,
        whole.shares,
    )
    return GridResult(EvaluationResult(predictions, scores, notes_on(predictions, scores), speed), rows)


def classify(
    grid: Grid,
    version: DatasetVersion,
    split: str,
    batch_size: int,
    known: Mapping[int, np.ndarray] = NOTHING_KNOWN,
) -> np.ndarray:
    """Return the logits (M, S, N, K) of the images of a split; each is decoded once.

    Args:
        grid: members and sets of crops.
        version: has the images.
        split: its name.
        batch_size: inputs per step of a network.
        known: number of a member → its logits (N, K) for one crop, in its own order of classes. It is not run where the
            grid has no other crops.
    """
    assert not known or grid.crops == ("1",), "what is known is of one crop"
    paths, left = version.samples(split).paths, [one for one in range(len(grid.members)) if one not in known]
    if not known:
        return _run(grid, paths, split, batch_size)
    logits = np.empty((len(grid.members), len(grid.crops), len(paths), len(grid.class_names)), dtype=np.float32)
    for number, of_member in known.items():
        own = grid.members[number].class_names
        logits[number, 0] = of_member[:, [own.index(name) for name in grid.class_names]]
    if left:
        members, names = tuple(grid.members[one] for one in left), tuple(grid.names[one] for one in left)
        run = replace(grid, members=members, names=names)
        order = [run.class_names.index(name) for name in grid.class_names]
        for number, found in zip(left, _run(run, paths, split, batch_size), strict=True):
            logits[number] = found[..., order]
    return logits


def _run(grid: Grid, paths: Sequence[str], split: str, batch_size: int) -> np.ndarray:
    """Return the logits (M, S, N, K) of images, with progress."""
    number = len(grid.members)
    label = f"Classifying the {split} images with {number} model{'s' if number > 1 else ''}"
    with counted(label, len(paths)) as advance:
        return grid.logits(paths, batch_size, advance)


def combinations(num_members: int) -> list[tuple[int, ...]]:
    """Return the ensembles that are compared: each member alone, then the first two, three, ... of them together.

    >>> combinations(3)
    [(0,), (1,), (2,), (0, 1), (0, 1, 2)]
    """
    alone = [(number,) for number in range(num_members)]
    return alone + [tuple(range(size)) for size in range(2, num_members + 1)]


def mean_over(
    logits: np.ndarray,
    members: Sequence[int],
    average: Average = "probabilities",
    shares: Sequence[float] | None = None,
) -> np.ndarray:
    """Return the logits (..., K) of the average of some members.

    Args:
        logits: (M, ..., K).
        members: their numbers; one that comes twice counts twice.
        average: what is averaged.
        shares: (M,) how much each member counts beside the others, above 0; None: all count alike.
    """
    counts = np.bincount(members, minlength=len(logits)) * np.asarray(1.0 if shares is None else shares)
    return mean_logits(logits, counts / counts.sum(), average)


def compare(
    logits: np.ndarray,
    labels: np.ndarray,
    crops: Sequence[str],
    milliseconds: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    average: Average = "probabilities",
    decisions: Mapping[tuple[int, ...], Decision] = NO_DECISIONS,
    groups: Ints | None = None,
    shares: Sequence[float] | None = None,
) -> list[GridRow]:
    """Score each combination of members with each set of crops, all on the same resamples of the images.

    Args:
        logits: (M, S, N, K), what `graftline.bundle.grid.Grid.logits` returned.
        labels: (N,) numbers of classes.
        crops: names of the S sets.
        milliseconds: (M, S) per image. An ensemble is taken to need the time of all its members.
        resamples: behind each interval.
        seed: of the resamples, which are those of the other scores of the same seed.
        average: what of the members is averaged.
        decisions: numbers of members → which class they answer together; all others answer the most probable one.
        groups: (N,) of the images, as for `graftline.evaluation.bootstrap.multiplicities`.
        shares: as for `mean_over`.

    Returns:
        The rows, those of the first combination first.
    """
    candidates = (
        GridCandidate(
            members=members,
            crops=crops[column],
            logits=mean_over(logits[:, column], members, average, shares),
            decision=decisions.get(members, MOST_PROBABLE),
            milliseconds=float(milliseconds[list(members), column].sum()),
        )
        for members in combinations(len(logits))
        for column in range(len(crops))
    )
    return score_candidates(candidates, labels, resamples, seed, groups)


def score_candidates(
    candidates: Iterable[GridCandidate],
    labels: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    groups: Ints | None = None,
) -> list[GridRow]:
    """Score combinations on the same resamples of the images; what each gains is over the first one.

    Args:
        candidates: R of them, each of which is let go before the next one is taken: its logits may fill the memory.
        labels: (N,) numbers of classes.
        resamples: behind each interval.
        seed: of the resamples, which are those of the other scores of the same seed.
        groups: (N,) of the images, as for `graftline.evaluation.bootstrap.multiplicities`.
    """
    scored = list(map(partial(_score_images, labels), candidates))
    hits = np.array([of_images for _, of_images, _ in scored])  # (R, N)
    losses = np.array([terms for *_, terms in scored])  # (R, N)
    kept = [candidate for candidate, *_ in scored]
    resampled, accuracy_gain, spread = _with_gain(hits.astype(np.float64), resamples, seed, groups)
    accuracy = [widened_share(one, np.ones(len(labels)), groups) for one in resampled]
    accuracy_gain[1:] = [
        widened_difference(gain, of_row, hits[0], groups)
        for gain, of_row in zip(accuracy_gain[1:], hits[1:], strict=True)
    ]
    tests = [None, *judge_accuracies(hits, accuracy_gain, spread, groups)]
    log_loss, log_loss_gain, _ = _with_gain(losses, resamples, seed, groups)
    on_frontier = frontier([one.milliseconds for one in kept], [one.value for one in accuracy])
    return [
        GridRow(
            members=candidate.members,
            crops=candidate.crops,
            accuracy=accuracy[row],
            log_loss=log_loss[row],
            accuracy_gain=accuracy_gain[row],
            log_loss_gain=log_loss_gain[row],
            milliseconds=candidate.milliseconds,
            is_on_frontier=row in on_frontier,
            test=tests[row],
        )
        for row, candidate in enumerate(kept)
    ]


def frontier(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the numbers of those that score higher than all that cost as little or less, the cheapest first.

    >>> frontier([3.0, 1.0, 2.0, 2.0], [0.9, 0.8, 0.7, 0.85])
    [1, 3, 0]
    """
    best, found = -np.inf, []
    for number in sorted(range(len(costs)), key=lambda number: (costs[number], -scores[number])):
        if scores[number] > best:
            best = scores[number]
            found.append(number)
    return found


def measure(grid: Grid, paths: Sequence[str], batch_size: int) -> np.ndarray:
    """Return how many milliseconds (M, S) an image takes each member with each set of crops, from file to probability.

    Each is timed alone, as it would serve, on up to 32 images and for about a second.
    """
    times = np.empty((len(grid.members), len(grid.crops)))
    for row in range(len(grid.members)):
        for column, crops in enumerate(grid.crops):
            alone = replace(grid, members=(grid.members[row],), crops=(crops,), names=(grid.names[row],))
            seconds = _seconds(alone, paths[:1], batch_size)  # the first call also allocates
            count = int(np.clip(TIMED_SECONDS / seconds, 2, min(MOST_TIMED, len(paths))))
            times[row, column] = 1000 * _seconds(alone, paths[:count], batch_size) / len(paths[:count])
    return times


def _seconds(grid: Grid, paths: Sequence[str], batch_size: int) -> float:
    start = time.perf_counter()
    grid.logits(paths, batch_size)
    return time.perf_counter() - start


def _score_images(labels: np.ndarray, candidate: GridCandidate) -> tuple[GridCandidate, np.ndarray, np.ndarray]:
    """Return a candidate without its logits, whether it is right for each image (N,), and its losses (N,)."""
    hits = candidate.decision.answer(softmax(candidate.logits)) == labels
    return replace(candidate, logits=candidate.logits[:0].copy()), hits, _losses(candidate.logits, labels)


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log loss (N,) of each image."""
    losses: np.ndarray = np.minimum(-true_log_probabilities(logits, labels), LARGEST_LOSS)
    return losses


def _with_gain(
    terms: np.ndarray, resamples: int, seed: int, groups: Ints | None
) -> tuple[list[Interval], list[Interval], np.ndarray]:
    """Return the mean of each row of terms (R, N) and its difference from the first row's, each with its interval.

    With them come the standard errors (R,) of the differences.

    The intervals are percentiles over the same resamples for all rows (paired: Efron and Tibshirani 1993, chapter 13),
    so that what all rows share cancels.
    """
    chunks = multiplicities(terms.shape[1], resamples, seed, groups)
    drawn = [terms @ counts / counts.sum(axis=0) for counts in chunks]  # each (R, B)
    resampled = np.concatenate(drawn, axis=1)
    means = terms.mean(axis=1)
    differences = resampled - resampled[0]
    return _intervals(means, resampled), _intervals(means - means[0], differences), differences.std(axis=1, ddof=1)


def _intervals(values: np.ndarray, resampled: np.ndarray) -> list[Interval]:
    low, high = np.quantile(resampled, TAILS, axis=1)
    return [Interval(*map(float, ends)) for ends in zip(values, low, high, strict=True)]
