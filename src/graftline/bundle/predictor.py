"""Run a bundle on images. Imports numpy, Pillow and ONNX Runtime only: it also runs in a small serving container.

Letters: N images, B batch, C channels, H, W height and width in px, K classes.
"""

import contextlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import onnxruntime

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.layout import CARD_FILE, FORMAT, INPUT, ONNX_FILE, OUTPUT
from graftline.data.decode import DecodeError, decode_rgb
from graftline.errors import UserError, first_line

Image: TypeAlias = Path | str | bytes | np.ndarray
"""A file, an encoded file's bytes, or uint8 pixels, (H, W, 3) RGB or (H, W) gray."""
Engine: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""(B, C, H, W) float32 → logits (B, K) float32."""


@dataclass(frozen=True)
class Predictor:
    """Classifies images with a bundle; open one with ``from_directory``. May be used from several threads at once.

    Attributes:
        class_names: K names, in the order of the columns that ``predict`` returns.
        preprocessing: what is done to each image.
        card: what ``bundle.json`` says about the training (freeze plan, dataset digest, metrics, ...).
        engine: runs the network.
        threads: how many images are prepared at the same time.
    """

    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    card: dict[str, Any]
    engine: Engine
    threads: int

    @classmethod
    def from_directory(
        cls, directory: Path | str, engine: Literal["onnx", "torch"] = "onnx", threads: int | None = None
    ) -> "Predictor":
        """Load a bundle.

        Args:
            directory: what ``save_bundle`` wrote.
            engine: ``onnx`` runs model.onnx with ONNX Runtime; ``torch`` runs model.safetensors with timm and torch,
                on a GPU if there is one.
            threads: how many are used to prepare images, and as many by ONNX Runtime; None: one per core.

        Raises:
            UserError: no bundle is there, or one that this version of graftline cannot read.
        """
        directory = Path(directory)
        content = _read_card(directory)
        threads = threads if threads is not None else _count_cores()
        return cls(
            class_names=tuple(content["class_names"]),
            preprocessing=Preprocessing.from_dict(content["preprocessing"]),
            card=content["card"],
            engine=_onnx_engine(directory / ONNX_FILE, threads) if engine == "onnx" else _torch_engine(directory),
            threads=threads,
        )

    def predict(
        self, images: Iterable[Image], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
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

        def refuse(_index: int, name: str, reason: str) -> None:
            raise UserError(f"{name} cannot be read ({reason}): repair it or leave it out.")

        return self._predict(images, batch_size, on_progress, refuse)

    def predict_readable(
        self, images: Iterable[Image], batch_size: int = 32, on_progress: Callable[[int], None] | None = None
    ) -> tuple[np.ndarray, dict[int, str]]:
        """As ``predict``, but go on where an image cannot be read.

        Returns:
            (N, K) float32 probabilities with a row of NaN for each unreadable image, and by the number of the image
            (from 0) the reason.
        """
        reasons: dict[int, str] = {}

        def note(index: int, _name: str, reason: str) -> None:
            reasons[index] = reason

        return self._predict(images, batch_size, on_progress, note), reasons

    def _predict(
        self,
        images: Iterable[Image],
        batch_size: int,
        on_progress: Callable[[int], None] | None,
        on_unreadable: Callable[[int, str, str], None],
    ) -> np.ndarray:
        steps = [np.empty((0, len(self.class_names)), dtype=np.float32)]
        done = 0
        with contextlib.closing(self._prepare_ahead(images, ahead=2 * batch_size)) as prepared:
            while batch := list(itertools.islice(prepared, batch_size)):
                inputs = {row: item for row, (_, item) in enumerate(batch) if isinstance(item, np.ndarray)}
                for row, (name, reason) in enumerate(batch):
                    if isinstance(reason, str):
                        on_unreadable(done + row, name, reason)
                probabilities = np.full((len(batch), len(self.class_names)), np.nan, dtype=np.float32)
                if inputs:
                    probabilities[list(inputs)] = _softmax(self.engine(np.stack(list(inputs.values()))))
                steps.append(probabilities)
                done += len(batch)
                if on_progress is not None:
                    on_progress(len(batch))
        return np.concatenate(steps)

    def _prepare_ahead(
        self, images: Iterable[Image], ahead: int
    ) -> Generator[tuple[str, np.ndarray | str], None, None]:
        """Yield each image's name and its (C, H, W) float32 input, or why there is none.

        Threads work on the next ``ahead`` images while the caller is busy with those it has.
        """
        pending: deque[tuple[str, Future[np.ndarray | str]]] = deque()
        pool = ThreadPoolExecutor(self.threads)
        try:
            for index, image in enumerate(images):
                pending.append((_name(image, index), pool.submit(self._prepare, image)))
                if len(pending) > ahead:
                    name, item = pending.popleft()
                    yield name, item.result()
            for name, item in pending:
                yield name, item.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, image: Image) -> np.ndarray | str:
        try:
            return self.preprocessing(_pixels(image))
        except DecodeError as error:
            return error.reason
        except ValueError as error:
            return str(error)


def _pixels(image: Image) -> np.ndarray:
    """Return (H, W, 3) uint8."""
    if not isinstance(image, np.ndarray):
        return decode_rgb(image)
    if image.dtype == np.uint8 and image.ndim == 2 and image.size:
        return np.repeat(image[:, :, None], 3, axis=2)
    if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
        return image
    raise ValueError(f"an array of {image.dtype} {image.shape} is neither uint8 (H, W, 3) nor uint8 (H, W)")


def _name(image: Image, index: int) -> str:
    return str(image) if isinstance(image, Path | str) else f"Image number {index}, from 0,"


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Return (B, K) float32 probabilities; in float64 in between, so that they sum to 1 as well as they can."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _read_card(directory: Path) -> dict[str, Any]:
    file = directory / CARD_FILE
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{directory} is not a bundle: {CARD_FILE} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): save the bundle again.") from error
    if content.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {content.get('format')}, but this version of graftline reads format {FORMAT}: "
            "use the version that wrote it, or train again."
        )
    return content


def _onnx_engine(file: Path, threads: int) -> Engine:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # idle threads sleep instead of spinning: meanwhile the cores prepare images
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime has a class for each of its status codes
        raise UserError(f"{file} cannot be loaded ({first_line(error)}): save the bundle again.") from error

    def run(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run([OUTPUT], {INPUT: images})
        return np.asarray(logits)

    return run


def _torch_engine(directory: Path) -> Engine:
    import timm
    import torch

    import graftline.backbones.zoo  # noqa: F401 - registers our own networks with timm

    device = torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    network = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    network = network.to(device, memory_format=torch.channels_last)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(device, memory_format=torch.channels_last)  # (B, C, H, W)
            logits: np.ndarray = network(batch).cpu().numpy()  # (B, K)
            return logits

    return run


def _count_cores() -> int:
    # as many as the process may use, which a container or `taskset` can limit
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
