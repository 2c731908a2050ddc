"""The scores that a search has given so far, in memory and on disk, so that an interrupted one goes on."""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from zipfile import BadZipFile

import numpy as np

from graftline.evaluation.head_score import HeadScore
from graftline.files import atomic_file
from graftline.freezing.measurement import Difference
from graftline.search.candidates import Candidate
from graftline.search.halving import RoundVerdict, judge

Depth = Literal["head", "whole"]
HEAD, WHOLE = get_args(Depth)
FORMAT = 3  # of scores on disk; raise it when other images are scored, or in another way


@dataclass(frozen=True)
class ScoredCandidate:
    """What one round found of a candidate.

    Attributes:
        candidate: which one.
        images: that it was fitted to, all epochs of a whole network counted.
        score: of images that it was not fitted to.
        seconds: that it took.
        at: seconds since the search began when it was known.
        depth: what was fitted.
        allowed: seconds that it might take, where it was trained as a whole.
    """

    candidate: Candidate
    images: int
    score: HeadScore
    seconds: float
    at: float
    depth: Depth = HEAD
    allowed: float = 0.0

    def line(self) -> str:
        """Return it as a line of the log."""
        score = self.score
        return (
            f"  {self.candidate.name:<32} accuracy {score.accuracy:.3f}, log loss {score.log_loss:.3f}; "
            f"{self.seconds:.1f} s"
        )


@dataclass
class SearchHistory:
    """What was tried and what became of it.

    Attributes:
        candidates: all there were, in the order in which they are tried.
        scored: the scores in the order in which they were known.
        outcomes: name of a candidate → what became of it, in words.
        verdicts: of the last round that was complete, the best first.
        on_score: hears of each score.
    """

    candidates: Sequence[Candidate]
    scored: list[ScoredCandidate] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    verdicts: list[RoundVerdict] = field(default_factory=list)
    on_score: Callable[[ScoredCandidate], None] = field(default=lambda _: None)

    def add(self, scored: ScoredCandidate) -> None:
        """Note a score."""
        self.scored.append(scored)
        self.on_score(scored)

    def last(self, name: str, depth: Depth = HEAD) -> ScoredCandidate | None:
        """Return the last score of a candidate, None where it has none."""
        return next(iter(reversed(self._scores(name, depth))), None)

    def seconds(self, name: str) -> float:
        """Return how long all scores of a candidate took."""
        return sum(one.seconds for one in self.scored if one.candidate.name == name)

    def best_by_head(self) -> Candidate | None:
        """Return the best candidate of the largest round, complete or not; None where nothing is scored."""
        largest = self._largest_round()
        return min(largest, key=lambda one: one.score.log_loss).candidate if largest else None

    def leave_out(self, network: str, why: str) -> None:
        """Forget the scores of a network that cannot be taken, at any size, and judge the others without it."""
        names = {one.name for one in self.candidates if one.network == network}
        self.outcomes |= dict.fromkeys(names, why)
        self.scored = [one for one in self.scored if one.candidate.name not in names]
        self.judge_largest_round()

    def judge_largest_round(self) -> list[RoundVerdict]:
        """Judge the heads of the most images, and note why those go that do not stay."""
        largest = self._largest_round()
        self.verdicts = judge({one.candidate.name: one.score for one in largest}) if largest else []
        for verdict in self.verdicts:
            self.outcomes.pop(verdict.name, None)
            if not verdict.stays:
                why = "clearly worse" if verdict.is_clearly_worse else "in the worse half"
                self.outcomes[verdict.name] = f"{why} on {largest[0].images:,} images"
        return self.verdicts

    def difference(self, name: str, chosen: str, depth: Depth = HEAD) -> Difference | None:
        """Return how much more log loss a candidate has than the chosen one, in the last round that both were in."""
        by_number = {len(one.score.losses): one for one in self._scores(name, depth)}
        for other in reversed(self._scores(chosen, depth)):
            if (one := by_number.get(len(other.score.losses))) is not None:
                return Difference.of(one.score.losses, other.score.losses)
        return None

    def _largest_round(self) -> list[ScoredCandidate]:
        """Return the scores of the heads of the most images."""
        heads = [one for one in self.scored if one.depth == HEAD]
        most = max((one.images for one in heads), default=0)
        return [one for one in heads if one.images == most]

    def _scores(self, name: str, depth: Depth) -> list[ScoredCandidate]:
        return [one for one in self.scored if one.candidate.name == name and one.depth == depth]


@dataclass(frozen=True)
class ScoreFiles:
    """Scores on disk: a file for each candidate and number of images.

    Attributes:
        directory: where they lie.
        digest: of the dataset version that they are of.
        recipe: digest of how whole networks are trained; a head knows no recipe.
    """

    directory: Path
    digest: str
    recipe: str = ""

    def save(self, scored: ScoredCandidate) -> None:
        """Write a score."""
        score = scored.score
        with atomic_file(self._path(scored.candidate, scored.depth, scored.images)) as temporary:
            np.savez(
                temporary,
                allow_pickle=False,
                format=FORMAT,
                digest=self.digest,
                images=scored.images,
                losses=score.losses,
                hits=score.hits,
                strength=score.strength,
                seconds=scored.seconds,
                allowed=scored.allowed,
            )

    def load(self, candidate: Candidate, depth: Depth, images: int, at: float) -> ScoredCandidate | None:
        """Return a score that was written before; None where there is none.

        Args:
            candidate: which one.
            depth: what was fitted.
            images: that it was fitted to, where it was a head; a network was to as many as there was time for.
            at: seconds since the search began.
        """
        path = self._path(candidate, depth, images)
        with (
            contextlib.suppress(OSError, KeyError, ValueError, BadZipFile),
            np.load(path, allow_pickle=False) as file,
        ):
            if self._is_own(file):
                score = HeadScore(file["losses"], file["hits"], float(file["strength"]))
                seconds, allowed = float(file["seconds"]), float(file["allowed"])
                return ScoredCandidate(candidate, int(file["images"]), score, seconds, at, depth, allowed)
        return None

    def take_over(self, other: Path) -> int:
        """Copy the scores of another search that are of the same images and recipe; returns how many there are."""
        files = [file for file in sorted(other.glob("*.npz")) if self._fits(file)]
        self.directory.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, self.directory / file.name)
        return len(files)

    def _fits(self, path: Path) -> bool:
        *_, depth, recipe = path.stem.split("-")
        if depth == WHOLE and recipe != self.recipe:
            return False
        with contextlib.suppress(OSError, KeyError, ValueError, BadZipFile), np.load(path, allow_pickle=False) as file:
            return self._is_own(file)
        return False

    def _is_own(self, file: Mapping[str, np.ndarray]) -> bool:
        return int(file["format"]) == FORMAT and str(file["digest"]) == self.digest

    def _path(self, candidate: Candidate, depth: Depth, images: int) -> Path:
        return self.directory / f"{candidate.key}-{depth}-{images if depth == HEAD else self.recipe}.npz"
