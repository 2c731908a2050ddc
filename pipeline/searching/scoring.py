"""What a search compares before it trains the winner: heads, then the best candidates trained as a whole."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftline.console import say, warn
from graftline.data.version import DatasetVersion
from graftline.errors import UserError, find_cause, first_line
from graftline.freezing.measured import Measured
from graftline.freezing.rule import FreezeRule
from graftline.freezing.rules import Nothing
from graftline.processes import Terminated
from graftline.search.candidates import Candidate
from graftline.search.contestant import BuiltCandidate, PassSeconds
from graftline.search.deeper import choose, finalists, train_deeper
from graftline.search.halving import first_images
from graftline.search.history import HEAD, ScoreFiles, SearchHistory
from graftline.search.ledger import TimeLedger, format_seconds, nice_minutes
from graftline.search.rounds import PREPARE_SECONDS, HeadRounds, TrainingImages
from graftline.training.budget import MOST_VALIDATED
from graftline.training.forecast import EXPORT_SECONDS
from graftline.training.setup import TrainingSetup

SCORING_SHARE = 1 / 3  # of the time, for heads; a training for half as long is worth less than a good choice
LEAST_TRAINING_SECONDS = 25.0  # of a winner beside the frozen pass: head, bundle, test, report
PASS_SHARE = 0.5  # of the time that one pass over all images may take, or a candidate is left out
DEEPER_SHARE = 0.25  # of what is then left, to compare the best of them trained as a whole


@dataclass(frozen=True)
class Scoring:
    """The comparisons of a search.

    Attributes:
        freeze: rule of the winner's training; one by which no winner is trained as a whole compares none so.
        history: takes what is found.
        setup: of a training on the images.
        images: that are scored.
        ledger: of the time.
        scores: files of scores.
        first: candidate that is built already.
        pass_seconds: of an image in the frozen pass, predicted.
        check: raises a UserError for a candidate that cannot be saved as a bundle; it may take seconds.
    """

    freeze: FreezeRule
    history: SearchHistory
    setup: TrainingSetup
    images: TrainingImages
    ledger: TimeLedger
    scores: ScoreFiles
    first: BuiltCandidate
    pass_seconds: PassSeconds
    check: Callable[[Candidate], None]

    def run(self, checkpoints: Path) -> bool:
        """Score the candidates, first by their heads, then the best trained as a whole.

        Returns:
            Whether that was interrupted.

        Raises:
            KeyboardInterrupt: that came before anything was scored, or the process is to end.
        """
        ledger, history = self.ledger, self.history
        until = ledger.now + SCORING_SHARE * ledger.left
        left = left_of(history)
        if (reason := no_rounds(left, self.images, self.pass_seconds, self.scores, until - ledger.now)) is not None:
            say(f"Nothing is searched, as {reason}: {left[0].name} is trained.")
            return False
        common = self.setup, history, self.images, ledger, self.scores
        built = {self.first.candidate.name: self.first}
        try:
            HeadRounds(*common, built, self.pass_seconds).run(until)
            self._keep_savable()
            if self._compares_whole:
                end = ledger.now + DEEPER_SHARE * ledger.left
                train_deeper(*common, checkpoints, end, self.pass_seconds)
        except KeyboardInterrupt as interrupt:
            if ends_process(interrupt) or choose(history) is None:
                raise
            warn("Interrupted: the head of the best candidate so far is trained. Ctrl-C again ends that too.")
            self._keep_savable()
            return True
        return False

    @property
    def _compares_whole(self) -> bool:
        return isinstance(self.freeze, Nothing | Measured)

    def _keep_savable(self) -> None:
        """Leave out the networks that cannot be saved, until none of those that may win is one of them."""
        checked = set[str]()
        while (new := next((one for one in self._may_win() if one.network not in checked), None)) is not None:
            checked.add(new.network)
            try:
                self.check(new)
            except UserError as error:
                self.history.leave_out(new.network, first_line(error))
                warn(f"{new.network} is left out: {first_line(error)}.")

    def _may_win(self) -> Sequence[Candidate]:
        best = self.history.best_by_head()
        if best is None or not self._compares_whole:
            return [] if best is None else [best]
        return [best, *finalists(self.history)]


def ends_process(interrupt: KeyboardInterrupt) -> bool:
    """Return whether it was SIGTERM, after which there is no time for another training."""
    return find_cause(interrupt, Terminated) is not None


def left_of(history: SearchHistory) -> Sequence[Candidate]:
    """Return the candidates that were not left out; all where none is left."""
    return [one for one in history.candidates if one.name not in history.outcomes] or history.candidates


def no_rounds(
    left: Sequence[Candidate], images: TrainingImages, pass_seconds: PassSeconds, files: ScoreFiles, seconds: float
) -> str | None:
    """Return why there is nothing to compare, as a part of a sentence; None where there is something.

    Scores on disk take no time.
    """
    if len(left) == 1:
        return "only one candidate is left"
    number = first_images(len(images), images.num_classes)
    if number < 2:
        return "one training image tells nothing"
    new = [one for one in left[:2] if files.load(one, HEAD, number, 0.0) is None]
    needed = sum(PREPARE_SECONDS + EXPORT_SECONDS + number * pass_seconds.of(one) for one in new)
    if needed > seconds:
        return (
            f"comparing two candidates takes about {format_seconds(needed)}, more than the "
            f"{format_seconds(max(seconds, 0))} that a search may take of this time"
        )
    return None


def leave_out_slow(
    history: SearchHistory, version: DatasetVersion, ledger: TimeLedger, pass_seconds: PassSeconds
) -> None:
    """Leave out the candidates whose pass over all images that a training needs would take too much of the time.

    Raises:
        UserError: that is all of them.
    """
    minutes = ledger.budget / 60
    numbers = {split: sum(classes.values()) for split, classes in version.counts().items()}
    images = sum({**numbers, "validation": min(MOST_VALIDATED, numbers["validation"])}.values())
    passes = {one.name: images * pass_seconds.of(one) for one in history.candidates if one.name not in history.outcomes}
    fastest = min(passes, key=passes.__getitem__)
    if passes[fastest] + LEAST_TRAINING_SECONDS > ledger.left:
        enough = nice_minutes(ledger.budget - ledger.left + (passes[fastest] + LEAST_TRAINING_SECONDS) / PASS_SHARE)
        raise UserError(
            f"{minutes:g} minute{'s are' if minutes != 1 else ' is'} not enough for {images:,} images: "
            f"one pass of {fastest}, the fastest, takes about {format_seconds(passes[fastest])}; give "
            f"Search.minutes={enough}."
        )
    limit = max(PASS_SHARE * ledger.left, passes[fastest])
    for name, seconds in passes.items():
        if seconds > limit:
            history.outcomes[name] = (
                f"not tried, as one pass over all images would take more than {format_seconds(limit)}"
            )
