"""Golden images: what a bundle's writer saw at each step from a file to logits, for others to compare with.

A bundle keeps some real images of its data set and a made-up one in every format and mode that we read. With them lies
what became of each: hashes of the decoded pixels, of the resized ones and of the network's input, the logits, and
values at ``GRID`` x ``GRID`` places of the pixels, from which follows by how much another machine differs.

Letters: M golden images, G ``GRID``, H, W size of an image, h, w size of the network's input in px, C its channels,
K classes.
"""

import hashlib
import itertools
import json
import logging
import platform
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import PIL
from PIL import features

from graftline.augment.preprocess import Preprocessing
from graftline.bundle.layout import GOLDEN_FOLDER
from graftline.bundle.odd_images import make_odd_images
from graftline.data.decode import PLAIN, DecodeError, Decoding, decode_rgb
from graftline.data.file_names import to_path
from graftline.data.image_bytes import open_image, read_status
from graftline.errors import UserError
from graftline.files import write_json

if TYPE_CHECKING:  # it loads pandas, which a small serving container has not got
    from graftline.data.version import Samples

logger = logging.getLogger(__name__)

GRID = 24  # places along each edge at which pixels are kept
BATCH_SIZE = 8
MAX_BYTES = 2_000_000  # of a real image's file
RECORD_FILE, VALUES_FILE, IMAGES_FOLDER = "golden.json", "values.npz", "images"
HASHED_STEPS = ("decode", "resize", "normalize")
ARRAYS = ("decoded", "resized", "normalized", "logits")  # of a Replay, as they are kept

RunNetwork = Callable[[np.ndarray], np.ndarray]  # images (B, C, h, w) float32 → logits (B, K) float32


@dataclass(frozen=True)
class BundleOptions:
    """What a bundle holds beside the network (Hydra target).

    Attributes:
        golden: how many real images of the validation split it keeps, 0 where images may not leave; made-up images are
            kept in any case.
        neighbors: how many training images it keeps in small, for a server's page to show the nearest ones; 0: none.
    """

    golden: int = 16
    neighbors: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise UserError(f"BundleOptions.{name} is {value}, it must be at least 0.")


@dataclass(frozen=True)
class Replay:
    """What became of golden images, step by step.

    Attributes:
        hashes: M times a hash by step; empty for an image that could not be read.
        decoded: (M, G, G, 3) uint8, pixels of the decoded images.
        resized: (M, G, G, C) uint8, pixels of the resized and cropped images.
        normalized: (C, 256) float32, what each gray level becomes.
        logits: (M, K) float32.
        unreadable: why an image could not be read, by its number; its pixels are 0 and its logits mean nothing.
    """

    hashes: Sequence[Mapping[str, str]]
    decoded: np.ndarray
    resized: np.ndarray
    normalized: np.ndarray
    logits: np.ndarray
    unreadable: Mapping[int, str]


def choose_golden(samples: "Samples", count: int) -> list[Path]:
    """Choose real images, the same ones for the same images in any order, spread over the classes.

    Args:
        samples: those to choose from.
        count: how many; fewer where there are not as many files that can be read and have 2 MB at most.
    """
    turns, ranked = Counter[int](), dict[str, tuple[int, str, Path]]()  # ranked by sha256, so that no image is twice
    for sha256, path, label in sorted(zip(samples.sha256, samples.paths, samples.labels.tolist(), strict=True)):
        if sha256 not in ranked:
            ranked[sha256] = (turns[label], sha256, Path(to_path(path)))
            turns[label] += 1
    fit = (path for _, _, path in sorted(ranked.values()) if _is_fit(path, samples.decoding))
    chosen = list(itertools.islice(fit, count))
    if len(chosen) < count:
        logger.info(f"The bundle keeps {len(chosen)} real images: there are no more that have 2 MB at most.")
    return chosen


def _is_fit(path: Path, decoding: Decoding) -> bool:
    """Tell whether a file is small and still readable: a bundle should not fail for one that has vanished since."""
    try:
        return read_status(str(path)).size <= MAX_BYTES and decode_rgb(path, decoding).size > 0
    except (OSError, DecodeError, UserError):
        return False


def _read(path: Path) -> bytes:
    with open_image(path) as file:
        return file.read()


def write_golden(
    bundle: Path,
    real: Sequence[Path],
    preprocessing: Preprocessing,
    run: RunNetwork,
    decoding: Decoding = PLAIN,
) -> None:
    """Write golden images and what becomes of them here.

    Args:
        bundle: the directory that gets the folder ``golden``.
        real: files of the data set's own images, which are copied.
        preprocessing: what is done to each image.
        run: the network.
        decoding: how files become pixels.

    Raises:
        UserError: a real image cannot be read.
    """
    images = {f"real_{number:02}{path.suffix.lower()}": _read(path) for number, path in enumerate(real)}
    images |= make_odd_images()
    folder = bundle / GOLDEN_FOLDER
    (folder / IMAGES_FOLDER).mkdir(parents=True)
    for name, content in images.items():
        (folder / IMAGES_FOLDER / name).write_bytes(content)
    replayed = replay([folder / IMAGES_FOLDER / name for name in images], preprocessing, run, decoding)
    for number, reason in replayed.unreadable.items():
        raise UserError(f"{[*real, *images][number]} cannot be read ({reason}): repair it or leave it out.")
    entries = [{"file": name, **hashes} for name, hashes in zip(images, replayed.hashes, strict=True)]
    write_json(folder / RECORD_FILE, {"environment": environment(), "images": entries})
    arrays = {name: getattr(replayed, name) for name in ARRAYS}
    np.savez_compressed(folder / VALUES_FILE, allow_pickle=False, **arrays)


def read_golden(bundle: Path) -> tuple[list[Path], Replay, dict[str, str]]:
    """Return a bundle's golden images, what became of them where it was written, and in which environment.

    Raises:
        UserError: it has none, or they are damaged.
    """
    folder = bundle / GOLDEN_FOLDER
    if not folder.is_dir():
        raise UserError(
            f"{bundle} has no golden images, it was saved in format 1 or has lost them: train again, or compare "
            "predictions by hand."
        )
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        with np.load(folder / VALUES_FILE, allow_pickle=False) as values:
            arrays = {name: values[name] for name in ARRAYS}
        files = [folder / IMAGES_FOLDER / entry["file"] for entry in record["images"]]
        hashes = [{step: entry[step] for step in HASHED_STEPS} for entry in record["images"]]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"The golden images in {folder} are damaged ({error}): save the bundle again.") from error
    return files, Replay(hashes, **arrays, unreadable={}), record["environment"]


def replay(
    files: Sequence[Path | bytes],
    preprocessing: Preprocessing,
    run: RunNetwork,
    decoding: Decoding = PLAIN,
    *,
    of_our_own: bool = True,
) -> Replay:
    """Decode, resize, normalize and classify images, and keep what each step gave.

    Args:
        files: image files, or their bytes.
        preprocessing: what is done to each image.
        run: the network.
        decoding: how files become pixels.
        of_our_own: whether they are golden images, which a low limit on pixels does not refuse.
    """
    channels = preprocessing.channels
    if of_our_own:
        decoding = decoding.of_our_own()
    hashes: list[dict[str, str]] = [{} for _ in files]
    decoded = np.zeros((len(files), GRID, GRID, 3), dtype=np.uint8)
    resized = np.zeros((len(files), GRID, GRID, channels), dtype=np.uint8)
    logits: list[np.ndarray] = []
    unreadable: dict[int, str] = {}
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        inputs = np.zeros((len(batch), channels, *preprocessing.image_size), dtype=np.float32)
        for number, file in enumerate(batch, start):
            try:
                pixels = decode_rgb(file, decoding)  # (H, W, 3)
            except DecodeError as error:
                unreadable[number] = error.reason
                continue
            frame = preprocessing.frame(pixels)  # (h, w, C)
            inputs[number - start] = preprocessing.normalize(frame)  # (C, h, w)
            decoded[number], resized[number] = _at_grid(pixels), _at_grid(frame)
            steps = (pixels, frame, inputs[number - start])
            hashes[number] = {step: _hash(array) for step, array in zip(HASHED_STEPS, steps, strict=True)}
        logits.append(run(inputs))
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], channels, axis=2)  # (1, 256, C)
    return Replay(hashes, decoded, resized, preprocessing.normalize(levels)[:, 0], np.concatenate(logits), unreadable)


def environment(device: str = "cpu") -> dict[str, str]:
    """Return what decides how images are decoded, resized and classified.

    Args:
        device: torch's name of the device on which the network runs.
    """
    return {
        "pillow": PIL.__version__,
        "jpeg": str(features.version("jpg")),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "processor": _processor(),
        "device": device,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _at_grid(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels of an image (H, W, C) at evenly spaced places (G, G, C), as they are."""
    rows, columns = (((np.arange(GRID) + 0.5) * edge / GRID).astype(int) for edge in pixels.shape[:2])
    places: np.ndarray = pixels[rows[:, None], columns]
    return places


def _hash(array: np.ndarray) -> str:
    """Return 16 hex digits that name an array's shape and values."""
    total = hashlib.sha256(str(array.shape).encode())
    total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]
