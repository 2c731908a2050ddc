"""Run a bundle on images. Imports numpy, Pillow and ONNX Runtime only: it also runs in a small serving container.

Letters: N images, B batch, C channels, H, W height and width in px, K classes, E numbers of an embedding.
"""

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import onnxruntime

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.calibration import UNCALIBRATED, Calibration
from graftline.bundle.decision import MOST_PROBABLE, Decision
from graftline.bundle.layout import (
    EMBEDDING,
    INPUT,
    LOGITS,
    ONNX_FILE,
    REFERENCES_FILE,
    WEIGHTS_FILE,
    find_damage,
    read_description,
)
from graftline.bundle.refusal import Refusal
from graftline.data.decode import PLAIN, DecodeError, Decoding, decode_rgb
from graftline.errors import UserError, first_line
from graftline.execution import Execution

ImageLike: TypeAlias = Path | str | bytes | np.ndarray
"""A file, an encoded file's bytes, or uint8 pixels, (H, W, 3) RGB or (H, W) gray."""
EngineName: TypeAlias = Literal["onnx", "torch"]
Engine: TypeAlias = Callable[[np.ndarray, Sequence[str]], list[np.ndarray]]
"""Runs the network: images (B, C, H, W) float32 and names of outputs → these: logits (B, K), embedding (B, E)."""


T = TypeVar("T")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, K) of logits (N, K), in their precision; computed in float64.

    >>> softmax(np.log(np.array([[1.0, 3.0]])))
    array([[0.25, 0.75]])
    """
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(logits.dtype)
    return probabilities


class Answers(NamedTuple):
    """What a predictor gives for images, one after the other.

    Attributes:
        probabilities: (N, K) float32, a row of NaN for each unreadable image.
        refused: (N,) whether the image is refused as none of the classes; None where the bundle does not tell.
        reasons: why an image cannot be read, by its number, from 0.
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


def told(batches: Iterable[Answers], on_progress: Callable[[int], None] | None) -> Iterator[Answers]:
    """Yield batches, and tell the number of images in each once it is done with."""
    for batch in batches:
        yield batch
        if on_progress is not None:
            on_progress(len(batch.probabilities))


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
            check: whether the description and the network's file must be what was saved; hashing the file takes a part
                of the time of loading it.

        Raises:
            UserError: no bundle is there, one that this version of graftline cannot read, or a changed one.
        """
        directory = Path(directory)
        content = read_description(directory)
        file = ONNX_FILE if engine == "onnx" else WEIGHTS_FILE
        files = [file] if content.get("refusal") is None else [file, REFERENCES_FILE]
        if check and (damaged := find_damage(directory, content, *files)):
            raise UserError(f"{directory / damaged[0]} is not what was saved: copy or save the bundle again.")
        return cls(
            class_names=tuple(content["class_names"]),
            preprocessing=Preprocessing.from_dict(content["preprocessing"]),
            digest=content["digest"],
            embedding_size=content["embedding_size"],
            card=content["card"],
            engine=(onnx_engine if engine == "onnx" else _torch_engine)(directory, execution),
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
        (logits,) = self._run(images, batch_size, on_progress, refuse, {LOGITS: len(self.class_names)})
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
        logits, embeddings = self._run(images, batch_size, on_progress, refuse, sizes)
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
        """As ``predict``, but go on where an image cannot be read.

        Returns:
            (N, K) float32 probabilities with a row of NaN for each unreadable image, and by the number of the image
            (from 0) the reason.
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
        return join_answers([none, *told(self.stream(images, batch_size), on_progress)])

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
                refused = None if self.refusal is None else self.refusal.refused(embeddings[0])
                reasons = {row: reason for row, (_, reason) in flaws.items()}
                yield Answers(softmax(logits), refused, reasons, embeddings[0] if embed and embeddings else None)

    def _run(
        self,
        images: Iterable[ImageLike],
        batch_size: int,
        on_progress: Callable[[int], None] | None,
        on_unreadable: Callable[[int, str, str], None],
        sizes: dict[str, int],
    ) -> list[np.ndarray]:
        """Return an array (N, size) float32 for each output of the network in ``sizes``; NaN where unreadable."""
        found = [[np.empty((0, size), dtype=np.float32) for size in sizes.values()]]
        done = 0
        with contextlib.closing(self._steps(images, batch_size, sizes)) as steps:
            for outputs, flaws in steps:
                for row, (name, reason) in flaws.items():
                    on_unreadable(done + row, name, reason)
                found.append(outputs)
                done += len(outputs[0])
                if on_progress is not None:
                    on_progress(len(outputs[0]))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _steps(
        self, images: Iterable[ImageLike], batch_size: int, sizes: dict[str, int]
    ) -> Generator[tuple[list[np.ndarray], dict[int, tuple[str, str]]], None, None]:
        """Yield for each batch what ``_run`` returns, and by row the name of an unreadable image and the reason."""
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


def prepare_ahead(
    images: Iterable[ImageLike], prepare: Callable[[ImageLike], T], threads: int, ahead: int
) -> Generator[tuple[str, T | str], None, None]:
    """Yield each image's name and what is prepared of it, or why it cannot be read.

    Threads work on the next ``ahead`` images while the caller is busy with those it has.
    """

    def work(image: ImageLike) -> T | str:
        try:
            return prepare(image)
        except DecodeError as error:
            return error.reason
        except ValueError as error:
            return str(error)

    pending: deque[tuple[str, Future[T | str]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for index, image in enumerate(images):
            pending.append((_name(image, index), pool.submit(work, image)))
            if len(pending) > ahead:
                name, item = pending.popleft()
                yield name, item.result()
        for name, item in pending:
            yield name, item.result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_pixels(image: ImageLike, decoding: Decoding) -> np.ndarray:
    """Return an image as (H, W, 3) uint8.

    Raises:
        ValueError: it cannot be read; ``DecodeError`` for a file.
    """
    if not isinstance(image, np.ndarray):
        return decode_rgb(image, decoding)
    if image.dtype == np.uint8 and image.ndim == 2 and image.size:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ValueError(f"an array of {image.dtype} {image.shape} is neither uint8 (H, W, 3) nor uint8 (H, W)")


def _name(image: ImageLike, index: int) -> str:
    return str(image) if isinstance(image, Path | str) else f"Image number {index}, from 0,"


def refuse(_index: int, name: str, reason: str) -> None:
    """Say that an image cannot be read."""
    raise UserError(f"{name} cannot be read ({reason}): repair it or leave it out.")


def onnx_engine(directory: Path, execution: Execution) -> Engine:
    """Run a bundle's network with ONNX Runtime."""
    file = directory / ONNX_FILE
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = execution.num_threads
    # idle threads sleep instead of spinning: meanwhile the cores prepare images
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only
    _share_memory()
    options.add_session_config_entry("session.use_env_allocators", "1")
    providers: list[Any] = ["CPUExecutionProvider"]
    if execution.is_cuda and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        number = execution.device.partition(":")[2] or "0"
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": number}))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime has a class for each of its status codes
        raise UserError(f"{file} cannot be loaded ({first_line(error)}): save the bundle again.") from error

    def run(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(values) for values in session.run(list(outputs), {INPUT: images})]

    return run


@functools.cache
def _share_memory() -> None:
    """Let all networks of this process work in the same memory; each would keep 800 MB (Lite0, 32 images)."""
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def _torch_engine(directory: Path, execution: Execution) -> Engine:
    import timm
    import torch

    import graftline.backbones.zoo  # noqa: F401 - registers our own networks with timm

    device = execution.torch_device
    network = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    network = network.to(device, memory_format=torch.channels_last)

    def run(images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device, memory_format=torch.channels_last)  # (B, C, H, W)
            if EMBEDDING in outputs:
                features = network.forward_features(batch)
                embedding = network.forward_head(features, pre_logits=True)  # (B, E)
                found = {LOGITS: network.forward_head(features), EMBEDDING: embedding}
            else:
                found = {LOGITS: network(batch)}  # (B, K)
            return [found[name].cpu().numpy() for name in outputs]

    return run
