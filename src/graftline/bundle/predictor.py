"""Run a bundle on images. Imports numpy, Pillow and ONNX Runtime only: it also runs in a small serving container.

Letters: N images, B batch, C channels, H, W height and width in px, K classes, E numbers of an embedding.
"""

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.answers import Answers, find_reasons, join_answers, report_progress
from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.engines import ENGINE_FILES, Engine, EngineName, onnx_engine, torch_engine
from graftline.bundle.images import ImageLike, prepare_ahead, read_pixels, refuse_unreadable
from graftline.bundle.layout import (
    EMBEDDING,
    LOGITS,
    REFERENCES_FILE,
    find_damage,
    read_description,
)
from graftline.bundle.refusal import Refusal
from graftline.data.decode import PLAIN, Decoding
from graftline.errors import UserError
from graftline.execution import Execution


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, K) of logits (N, K), in their precision; computed in float64.

    >>> softmax(np.log(np.array([[1.0, 3.0]])))
    array([[0.25, 0.75]])
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(logits.dtype)
    return probabilities


def check_files(directory: Path, content: Mapping[str, Any], engine: EngineName) -> None:
    """Make sure that a bundle's description, and the files that an engine loads, are what was saved.

    Args:
        directory: the bundle.
        content: its description.
        engine: what is to run the network.

    Raises:
        UserError: one is not; the first of them is named.
    """
    files = [*ENGINE_FILES[engine], *([] if content.get("refusal") is None else [REFERENCES_FILE])]
    if damaged := find_damage(directory, content, *files):
        raise UserError(f"{directory / damaged[0]} is not what was saved: copy or save the bundle again.")


@dataclass(frozen=True)
class Predictor:
    """Classifies images with a bundle; open one with ``from_directory``. May be used from several threads at once.

    Attributes:
        class_names: K names, in the order of the columns that ``predict`` returns.
        preprocessing: what is done to each image.
        digest: 16 hex digits that name what the bundle computes: network, class names, preprocessing, calibration,
            decision, refusal.
        embedding_size: E; None where the network gives no embedding.
        card: what ``bundle.json`` says about the training (freeze plan, dataset digest, metrics, ...).
        engine: runs the network; its logits are not calibrated.
        threads: how many images are prepared at the same time.
        decoding: how files become pixels.
        calibration: what becomes of the network's logits before anybody sees them.
        decision: which class is answered, given the probabilities.
        refusal: which images are none of the classes; None: it does not tell.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    digest: str
    embedding_size: int | None
    card: dict[str, Any]
    engine: Engine
    threads: int
    decoding: Decoding = PLAIN
    calibration: Calibration = UNCALIBRATED
    decision: Decision = MOST_PROBABLE
    refusal: Refusal | None = None

    @classmethod
    def from_directory(
        cls,
        directory: Path | str,
        engine: EngineName = "onnx",
        execution: Execution = Execution(),  # noqa: B008 - immutable
        *,
        check: bool = True,
    ) -> "Predictor":
        """Load a bundle.

        Args:
            directory: what ``save_bundle`` wrote.
            engine: ``onnx`` runs model.onnx with ONNX Runtime; ``torch`` runs model.safetensors with timm and torch.
            execution: the device, and how many threads prepare images and run the network. ONNX Runtime uses a GPU if
                it was built for one.
            check: whether the description and the network's files must be what was saved; hashing them takes a part of
                the time of loading them.

        Raises:
            UserError: no bundle is there, one that this version of graftline cannot read, or a changed one.
        """
        directory = Path(directory)
        content = read_description(directory)
        if check:
            check_files(directory, content, engine)
        return cls(
            class_names=tuple(content["class_names"]),
            preprocessing=Preprocessing.from_dict(content["preprocessing"]),
            digest=content["digest"],
            embedding_size=content["embedding_size"],
            card=content["card"],
            engine=(onnx_engine if engine == "onnx" else torch_engine)(directory, execution),
            threads=execution.num_threads,
            decoding=Decoding.from_dict(content.get("decoding")),
            calibration=Calibration.from_dict(content.get("calibration")),
            decision=Decision.from_dict(content.get("decision")),
            refusal=Refusal.load(directory / REFERENCES_FILE, content.get("refusal")),
        )

    def logits(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Run the network on N images.

        Args:
            images: taken one after the other, so that they may be a generator; few of them are in memory at a time.
            batch_size: images per step of the network.
            on_progress: is given the number of images just done, after each step.

        Returns:
            (N, K) float32 logits, calibrated, so that their softmax is what ``predict`` returns.

        Raises:
            UserError: an image cannot be read; it is named.
        """
        (logits,) = self._run(images, batch_size, on_progress, {LOGITS: len(self.class_names)})
        return logits

    def logits_and_embeddings(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run the network on N images, once, and keep what its classifier is given too.

        Args:
            images: as for ``logits``, and so are the others.
            batch_size: images per step of the network.
            on_progress: is given the number of images just done, after each step.

        Returns:
            (N, K) float32 logits, calibrated, and (N, E) float32 embeddings.

        Raises:
            UserError: an image cannot be read, or the bundle gives no embedding.
        """
        if self.embedding_size is None:
            raise UserError(
                "This bundle gives no embedding: its format is 1, or its network has no features below one classifier."
            )
        sizes = {LOGITS: len(self.class_names), EMBEDDING: self.embedding_size}
        logits, embeddings = self._run(images, batch_size, on_progress, sizes)
        return logits, embeddings

    def predict(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Classify N images.

        Args:
            images: taken one after the other, so that they may be a generator; few of them are in memory at a time.
            batch_size: images per step of the network.
            on_progress: is given the number of images just done, after each step.

        Returns:
            (N, K) float32 probabilities; each row sums to 1.

        Raises:
            UserError: an image cannot be read; it is named.
        """
        return softmax(self.logits(images, batch_size, on_progress))

    def predict_readable(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """As ``predict``, but go on where an image cannot be read or answered.

        Returns:
            (N, K) float32 probabilities with a row of NaN for each such image, and by the number of the image (from 0)
            the reason.
        """
        answers = self.predict_refusing(images, batch_size, on_progress)
        return answers.probabilities, answers.reasons

    def predict_refusing(
        self, images: Iterable[ImageLike], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> Answers:
        """As ``predict_readable``, and tell which images are refused as none of the classes.

        Returns:
            Probabilities (N, K); (N,) whether the image is refused, None where the bundle does not tell; reasons.
        """
        none = Answers(
            np.empty((0, len(self.class_names)), np.float32), None if self.refusal is None else np.empty(0, bool), {}
        )
        return join_answers([none, *report_progress(self.stream(images, batch_size), on_progress)])

    def stream(
        self, images: Iterable[ImageLike], batch_size: int = 32, *, embed: bool = False
    ) -> Generator[Answers, None, None]:
        """As ``predict_refusing``, but yield the answers batch by batch: the number of images may be any.

        Args:
            images: as for ``logits``.
            batch_size: images per step of the network.
            embed: whether the answers are to have embeddings, where the network gives some.
        """
        sizes = {LOGITS: len(self.class_names)}
        if self.refusal is not None or embed:
            assert self.refusal is None or self.embedding_size is not None, "a refusal needs embeddings"
            sizes |= {} if self.embedding_size is None else {EMBEDDING: self.embedding_size}
        with contextlib.closing(self._steps(images, batch_size, sizes)) as steps:
            for (logits, *embeddings), flaws in steps:
                reasons = find_reasons(flaws, logits, *embeddings)
                refused = None if self.refusal is None else self.refusal.refused(embeddings[0])
                yield Answers(softmax(logits), refused, reasons, embeddings[0] if embed and embeddings else None)

    def _run(
        self,
        images: Iterable[ImageLike],
        batch_size: int,
        on_progress: Callable[[int], None] | None,
        sizes: dict[str, int],
    ) -> list[np.ndarray]:
        """Return an array (N, size) float32 for each output of the network in ``sizes``.

        Raises:
            UserError: an image cannot be read.
        """
        found = [[np.empty((0, size), dtype=np.float32) for size in sizes.values()]]
        with contextlib.closing(self._steps(images, batch_size, sizes)) as steps:
            for outputs, flaws in steps:
                refuse_unreadable(flaws)
                found.append(outputs)
                if on_progress is not None:
                    on_progress(len(outputs[0]))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _steps(
        self, images: Iterable[ImageLike], batch_size: int, sizes: dict[str, int]
    ) -> Generator[tuple[list[np.ndarray], dict[int, tuple[str, str]]], None, None]:
        """Yield for each batch what ``_run`` returns, and by row the name of an unreadable image and the reason.

        The numbers of an unreadable image are NaN.
        """
        ahead = 2 * batch_size
        with contextlib.closing(prepare_ahead(images, self._prepare, self.threads, ahead)) as prepared:
            while batch := list(itertools.islice(prepared, batch_size)):
                inputs = {row: item for row, (_, item) in enumerate(batch) if isinstance(item, np.ndarray)}
                flaws = {row: (name, item) for row, (name, item) in enumerate(batch) if isinstance(item, str)}
                outputs = [np.full((len(batch), size), np.nan, dtype=np.float32) for size in sizes.values()]
                if inputs:
                    found = self.engine(np.stack(list(inputs.values())), list(sizes))
                    for name, output, values in zip(sizes, outputs, found, strict=True):
                        output[list(inputs)] = self.calibration.apply(values) if name == LOGITS else values
                yield outputs, flaws

    def _prepare(self, image: ImageLike) -> np.ndarray:
        """Return the network's input (C, H, W) float32."""
        return self.preprocessing(read_pixels(image, self.decoding))
