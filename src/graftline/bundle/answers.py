"""What a predictor answers, batch by batch, and who is shown it."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from graftline.bundle.images import ImageLike

NOT_FINITE = "the model gives no finite numbers for it"


class Answers(NamedTuple):
    """What a predictor gives for images, one after the other.

    Attributes:
        probabilities: (N, K) float32, a row of NaN for each image without an answer.
        refused: (N,) whether the image is refused as none of the classes; None where the bundle does not tell.
        reasons: why an image cannot be read or answered, by its number, from 0.
        embeddings: (N, E) float32, likewise; None where the bundle gives none, or they were not asked for.
    """

    probabilities: np.ndarray
    refused: np.ndarray | None
    reasons: dict[int, str]
    embeddings: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> "Answers":
        """Return those of some images."""
        return Answers(
            self.probabilities[start:stop],
            None if self.refused is None else self.refused[start:stop],
            {row - start: reason for row, reason in self.reasons.items() if start <= row < stop},
            None if self.embeddings is None else self.embeddings[start:stop],
        )


class Watch(Protocol):
    """What is shown the answers, to keep a sample of what a model sees."""

    def observe(self, images: Sequence[ImageLike], answers: Answers) -> None:
        """Take note of N images and the answers to them, in no time and without an error."""
        ...

    def close(self) -> None:
        """Come to an end."""
        ...


class Stream(Protocol):
    """What answers batch by batch, as ``Predictor.stream`` does."""

    def __call__(self, images: Iterable[str], *, embed: bool) -> Generator[Answers, None, None]:
        """Yield the answers to images, in order; ``embed``: with embeddings, where the network gives some."""
        ...


def report_progress(batches: Iterable[Answers], on_progress: Callable[[int], None] | None) -> Iterator[Answers]:
    """Yield batches, and report the number of images in each once it is done with."""
    for batch in batches:
        yield batch
        if on_progress is not None:
            on_progress(len(batch.probabilities))


def find_reasons(flaws: Mapping[int, tuple[str, str]], *outputs: np.ndarray) -> dict[int, str]:
    """Return why images have no answer: they cannot be read, or the network gives no finite numbers for them.

    A NaN would make the first class the most probable one, without a word.

    Args:
        flaws: name of each unreadable image and reason, by row.
        outputs: of the network, (N, numbers) each; the rows of images that have no answer become NaN in all of them.
    """
    reasons = {row: reason for row, (_, reason) in flaws.items()}
    is_finite = np.all([np.isfinite(output).all(axis=1) for output in outputs], axis=0)  # (N,)
    for output in outputs:
        output[~is_finite] = np.nan
    return dict.fromkeys(np.flatnonzero(~is_finite).tolist(), NOT_FINITE) | reasons


def join_answers(batches: Sequence[Answers]) -> Answers:
    """Return the answers of several batches, one at least, as one."""
    starts = np.cumsum([0, *(len(batch.probabilities) for batch in batches)])
    refused = [batch.refused for batch in batches if batch.refused is not None]
    embeddings = [batch.embeddings for batch in batches if batch.embeddings is not None]
    return Answers(
        np.concatenate([batch.probabilities for batch in batches]),
        np.concatenate(refused) if refused else None,
        {
            int(start) + row: reason
            for start, batch in zip(starts, batches, strict=False)
            for row, reason in batch.reasons.items()
        },
        np.concatenate(embeddings) if embeddings else None,
    )
