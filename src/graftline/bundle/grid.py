"""Run several networks on several crops of each image, which is decoded once.

Letters: N images, M members, S sets of crops, K classes, n different crops of an image, E numbers of an embedding,
C channels, h, w size of a network's input in px.
"""

import contextlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from graftline.augment.crops import CROP_SETS, Cut, check, cut
from graftline.augment.preprocess import Preprocessing
from graftline.bundle.decision import Decision
from graftline.bundle.images import ImageLike, prepare_ahead, read_pixels, refuse_unreadable
from graftline.bundle.layout import EMBEDDING, LOGITS
from graftline.bundle.predictor import Predictor
from graftline.data.decode import Decoding
from graftline.errors import UserError

MOST_BYTES_AHEAD = 256_000_000  # of inputs that threads prepare while the networks run
BLOCK = 1_000_000  # logits that are averaged at a time, 8 MB of float64

Cuts: TypeAlias = Mapping[Preprocessing, Cut]
"""The crops of one image, for each way to prepare it that a member has."""

Average: TypeAlias = Literal["probabilities", "logits"]
"""What of several crops or members is averaged."""


class Step(NamedTuple):
    """What becomes of some images.

    Attributes:
        logits: (M, S, images, K) float32; those of an unreadable image are NaN.
        flaws: the name of an unreadable image and the reason, by row.
        embeddings: (images, E) float32, the first member's of each image's first crop, likewise; None where it gives
            none, or they were not asked for.
    """

    logits: np.ndarray
    flaws: dict[int, tuple[str, str]]
    embeddings: np.ndarray | None


def mean_logits(logits: np.ndarray, shares: np.ndarray, average: Average) -> np.ndarray:
    """Return the logits of a weighted average of several answers.

    Args:
        logits: (m, ..., K) float32, each of which stands for its softmax.
        shares: (m,), of each in the average; they sum to 1.
        average: "probabilities", or "logits": the geometric mean of the probabilities, rescaled to sum to 1
            (logarithmic opinion pool: Genest and Zidek 1986, Statistical Science 1(1), section 3).

    Returns:
        (..., K) float32, whose softmax is the average. Of one that has all the share, these are its own logits.

    >>> logits = np.log(np.array([[0.2, 0.8], [0.6, 0.4]], np.float32))
    >>> odds = np.exp(mean_logits(logits, np.array([0.5, 0.5]), "logits"))
    >>> round(float(odds[0] / odds[1]), 4), (0.2 / 0.8 * 0.6 / 0.4) ** 0.5
    (0.6124, 0.6123724356957945)
    >>> np.exp(mean_logits(logits, np.array([0.5, 0.5]), "probabilities")).round(3).tolist()
    [0.4000000059604645, 0.6000000238418579]
    """
    used = np.flatnonzero(shares)
    if len(used) == 1:
        only: np.ndarray = logits[used[0]]
        return only
    flat = logits.reshape(len(logits), -1, logits.shape[-1])
    mean = np.empty(flat.shape[1:], dtype=np.float32)
    for rows in _blocks(len(mean), len(used) * logits.shape[-1]):
        terms = log_softmax(flat[used, rows])
        if average == "logits":
            mean[rows] = np.tensordot(shares[used], terms, axes=1)
            continue
        terms += np.log(shares[used])[:, None, None]
        top = terms.max(axis=0)
        mean[rows] = top + np.log(np.exp(terms - top).sum(axis=0))
    return mean.reshape(logits.shape[1:])


def true_log_probabilities(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the logarithms (N,) float64 of the true classes' probabilities, given logits (N, K) and labels (N,)."""
    blocks = _blocks(*logits.shape)
    return np.concatenate([log_softmax(logits[rows])[np.arange(len(labels[rows])), labels[rows]] for rows in blocks])


def _blocks(num_rows: int, row_size: int) -> Iterator[slice]:
    """Yield rows that are worked on together, in float64: several such copies of all of them would fill the memory."""
    size = max(1, BLOCK // row_size)
    yield from (slice(start, min(start + size, num_rows)) for start in range(0, max(num_rows, 1), size))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms (..., K) float64 of the probabilities that logits (..., K) stand for."""
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    return exact


@dataclass(frozen=True)
class Grid:
    """Members x sets of crops. Members may have image sizes and orders of classes of their own.

    Attributes:
        members: loaded bundles of the same classes; the first one's order of classes is that of all results.
        crops: names of `graftline.augment.crops.CROP_SETS`.
        decoding: how files become pixels.
        names: of the members, for messages.
        average: what of an image's crops is averaged.

    Raises:
        UserError: members of other classes, or crops that a network cannot take.
    """

    members: tuple[Predictor, ...]
    crops: tuple[str, ...]
    decoding: Decoding
    names: tuple[str, ...]
    average: Average = "probabilities"

    def __post_init__(self) -> None:
        first = set(self.class_names)
        for name, member in zip(self.names, self.members, strict=True):
            for crops in self.crops:
                try:
                    check(crops, member.preprocessing)
                except UserError as error:
                    raise UserError(f"{name}: {error}") from error
            if missing := sorted(first ^ set(member.class_names)):
                raise UserError(
                    f"{name} does not know the same classes as {self.names[0]}: one of them has no {missing[0]!r}; "
                    "take members that were trained on the same classes."
                )

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the results' last axis."""
        return self.members[0].class_names

    @property
    def decisions(self) -> list[Decision]:
        """Which class each member answers when it is alone, with the classes in the order of the results."""
        return [member.decision.reordered(order) for member, order in zip(self.members, self._orders, strict=True)]

    def logits(
        self,
        images: Iterable[ImageLike],
        batch_size: int = 32,
        on_progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """Run all members on all crops of N images.

        Args:
            images: taken one after the other; few of them are in memory at a time.
            batch_size: inputs per step of a network, at most.
            on_progress: is given the number of images just done.

        Returns:
            (M, S, N, K) float32 logits, each member's calibrated as when it is alone. They stand for the average of the
            crops; those of a single crop are the member's own.

        Raises:
            UserError: an image cannot be read.
        """
        size = (
            len(self.members),
            len(self.crops),
            len(images) if isinstance(images, Sized) else 0,
            len(self.class_names),
        )
        whole, done = np.empty(size, dtype=np.float32), 0
        with contextlib.closing(self.steps(images, batch_size)) as steps:
            for found, flaws, _ in steps:
                refuse_unreadable(flaws)
                number = found.shape[2]
                if done + number > whole.shape[2]:  # how many images there are was not known
                    whole = np.concatenate([whole, np.empty_like(whole), found], axis=2)
                whole[:, :, done : done + number] = found
                done += number
                if on_progress is not None:
                    on_progress(number)
        return whole[:, :, :done]

    def steps(
        self, images: Iterable[ImageLike], batch_size: int = 32, *, embed: bool = False
    ) -> Generator[Step, None, None]:
        """Yield what ``logits`` returns group by group, and go on where an image cannot be read.

        Args:
            images: as for ``logits``.
            batch_size: likewise.
            embed: whether embeddings are to be among it, where the first member gives some.
        """
        width = self.members[0].embedding_size if embed else None
        prepared = prepare_ahead(images, self._cut, self.members[0].threads, self._ahead(batch_size))
        with contextlib.closing(prepared):
            for group in _groups(prepared, batch_size):
                shape = (len(self.members), len(self.crops), len(group), len(self.class_names))
                found = np.full(shape, np.nan, dtype=np.float32)
                flaws = {row: (name, item) for row, (name, item) in enumerate(group) if isinstance(item, str)}
                readable = [row for row in range(len(group)) if row not in flaws]
                cuts = [item for _, item in group if not isinstance(item, str)]
                embeddings = None if width is None else np.full((len(group), width), np.nan, dtype=np.float32)
                for number in range(len(self.members)) if cuts else ():
                    if number == 0 and embeddings is not None:
                        found[0][:, readable], embeddings[readable] = self._run(0, cuts, batch_size, embed=True)
                    else:
                        found[number][:, readable], _ = self._run(number, cuts, batch_size)
                yield Step(found, flaws, embeddings)

    def passes(self, image: np.ndarray) -> list[list[int]]:
        """Return how many different crops an (H, W, 3) uint8 image has, for each member and set: M times S."""
        cuts = self._cut(image)
        return [np.count_nonzero(cuts[member.preprocessing].shares, axis=1).tolist() for member in self.members]

    def _cut(self, image: ImageLike) -> Cuts:
        pixels = read_pixels(image, self.decoding)
        return {way: cut(pixels, way, self.crops) for way in self._ways}

    def _run(
        self, number: int, cuts: Sequence[Cuts], batch_size: int, *, embed: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a member's logits (S, images, K), and embeddings (images, E); E is 0 where none are asked for."""
        member = self.members[number]
        own = [one[member.preprocessing] for one in cuts]
        inputs = np.concatenate([one.inputs for one in own])  # (sum of n, C, h, w)
        batches = np.array_split(inputs, math.ceil(len(inputs) / batch_size))
        names = [LOGITS, EMBEDDING] if embed else [LOGITS]
        outputs = (member.engine(batch, names) for batch in batches)
        found, *embeddings = [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
        logits = member.calibration.apply(found)[:, self._orders[number]]
        starts = np.cumsum([0, *(len(one.inputs) for one in own)])[:-1]
        of_images = np.split(logits, starts[1:])  # each (n, K)
        first = embeddings[0][starts] if embed else np.empty((len(own), 0), np.float32)
        averaged = np.stack(
            [
                [mean_logits(rows, shares, self.average) for shares in one.shares]
                for rows, one in zip(of_images, own, strict=True)
            ],
            axis=1,
        )
        return averaged, first

    @cached_property
    def _ways(self) -> list[Preprocessing]:
        """The different ways to prepare an image."""
        return list(dict.fromkeys(member.preprocessing for member in self.members))

    @cached_property
    def _orders(self) -> list[list[int]]:
        """Where each member has the classes, in the order of the results."""
        return [[member.class_names.index(name) for name in self.class_names] for member in self.members]

    def _ahead(self, batch_size: int) -> int:
        """Return how many images may be prepared ahead of the networks."""
        crops = sum(CROP_SETS[name].count for name in self.crops)
        of_image = sum(4 * crops * way.channels * math.prod(way.image_size) for way in self._ways)
        return max(1, min(2 * batch_size, MOST_BYTES_AHEAD // of_image))


def _groups(prepared: Iterator[tuple[str, Cuts | str]], batch_size: int) -> Iterator[list[tuple[str, Cuts | str]]]:
    """Yield images together that have as many crops as a network should take at once."""
    group: list[tuple[str, Cuts | str]] = []
    num_inputs = 0
    for name, item in prepared:
        group.append((name, item))
        num_inputs += 1 if isinstance(item, str) else max(len(one.inputs) for one in item.values())
        if num_inputs >= batch_size:
            yield group
            group, num_inputs = [], 0
    if group:
        yield group
