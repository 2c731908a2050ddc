"""Images that are almost the same: alike in their pixels and alike to a network.

Neither would do alone. To a network the cells of one solar module are as alike as two copies of one of them; and two
products before the same white wall have much the same pixels. How alike copies are is measured on copies that are made:
the threshold of either is what nearly all of them reach. Copies that were cropped, mirrored or turned are not found:
their pixels lie elsewhere, and to a network other images are as near (measured on ELPV, docs/audit.md).

Letters: N images, F numbers per image, M copies, P numbers of a projection.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageEnhance

from graftline.data.image_facts import THUMBNAIL, thumbnail_of

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

REACHED = 0.05  # quantile of the copies' likeness: 19 of 20 copies are as alike, in either way
SAMPLE = (
    48  # images of which copies are made: three kinds of each are 144, of which the quantile is the 7th least alike
)
PROJECTED = 256  # P; a bound by so many numbers leaves few pairs to look at
BLOCK = 512  # images that are compared with all others at a time
FEW_SHARE = 0.02  # of the pairs of a block: more of them are multiplied out faster all together
AT_ONCE = 10_000  # pairs that are multiplied out, 140 MB of thumbnails
MOST_PER_IMAGE = (
    20  # pairs that are kept of an image, the most alike: a thousand copies of one are not to fill the memory
)


def _as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=75)
    return Image.open(file).convert("RGB")


def _shrunk(picture: Image.Image) -> Image.Image:
    """Return it half as large, but not so small that there is less to see than in a thumbnail."""
    factor = min(1.0, max(0.5, 2 * THUMBNAIL / min(picture.size)))
    size = round(factor * picture.width), round(factor * picture.height)
    return picture.resize(size, Image.Resampling.LANCZOS)


# What happens to images on their way through messengers, web pages and editors.
COPIES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "saved again as JPEG": _as_jpeg,
    "half as large": _shrunk,
    "brighter by a tenth": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
}


@dataclass(frozen=True)
class Likeness:
    """How alike two images must be to count as almost the same.

    Attributes:
        pixels: least correlation of thumbnails.
        features: least cosine of activations.
    """

    pixels: float
    features: float


def make_copies(image: np.ndarray) -> list[np.ndarray]:
    """Return copies (H', W', 3) of an image (H, W, 3) uint8, one of each kind."""
    picture = Image.fromarray(image)
    return [np.array(make(picture)) for make in COPIES.values()]


def measure_likeness(originals: Sequence[np.ndarray], embed: Callable[[Sequence[np.ndarray]], np.ndarray]) -> Likeness:
    """Find out how alike copies are to their originals.

    Args:
        originals: images (H, W, 3) uint8; those of one gray, which correlate with nothing, are left out.
        embed: images → activations (M, F).

    Returns:
        The thresholds; where no original is left, such that no two images reach them.
    """
    originals = [image for image in originals if thumbnail_of(Image.fromarray(image)).any()]
    if not originals:
        return Likeness(np.inf, np.inf)
    copies = [copy for image in originals for copy in make_copies(image)]
    repeated = [image for image in originals for _ in COPIES]
    pixels = [
        float(thumbnail_of(Image.fromarray(one)) @ thumbnail_of(Image.fromarray(other)))
        for one, other in zip(repeated, copies, strict=True)
    ]
    own = np.repeat(unit(embed(originals)), len(COPIES), axis=0)
    features = np.einsum("nf,nf->n", own, unit(embed(copies)))
    return Likeness(*(float(np.quantile(values, REACHED)) for values in (pixels, features)))


def unit(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Return vectors (N, F) of length 1; one of nothing but zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def find_near_duplicates(
    thumbnails: Vectors, activations: npt.NDArray[np.floating], likeness: Likeness
) -> pd.DataFrame:
    """Return all pairs of images that are almost the same.

    Args:
        thumbnails: (N, T) of `image_facts.find_facts`.
        activations: (N, F).
        likeness: the thresholds.

    Returns:
        Columns first and second (rows of images, first < second), pixels and features (how alike they are); the most
        alike first.
    """
    parts = list(alike_pairs(thumbnails, likeness.pixels))
    first, second = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    pixels = np.einsum("nf,nf->n", thumbnails[first], thumbnails[second])
    features = np.einsum("nf,nf->n", unit(activations[first]), unit(activations[second]))
    pairs = pd.DataFrame({"first": first, "second": second, "pixels": pixels, "features": features})
    kept = pairs[pairs["features"] >= likeness.features]
    return kept.sort_values(["pixels", "first", "second"], ascending=[False, True, True], ignore_index=True)


def alike_pairs(vectors: Vectors, least: float) -> Iterator[tuple[Rows, Rows]]:
    """Yield the pairs of unit vectors (N, F) whose product is ``least`` or more, exactly, the first before the second.

    A product of two vectors is that of their projections and that of what is left of them, and the latter is no more
    than the product of the lengths (Cauchy and Schwarz). So P + 1 numbers give a bound, and only the pairs that reach
    it are multiplied out. Of an image that is like very many later ones, the pairs that are most alike are given.
    """
    projected = _with_rest(vectors)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        bounds = projected[start : start + BLOCK] @ projected[start:].T  # (B, those from the block on)
        rows, columns = np.nonzero(np.triu(bounds >= least - 1e-5, k=1))
        if len(rows) > FEW_SHARE * bounds.size:
            products = (block @ vectors[start:].T)[rows, columns]
        else:
            products = _products(block, rows, vectors, start + columns)
        reached = products >= least
        rows, columns = _highest(products[reached], rows[reached], columns[reached])
        yield rows + start, columns + start


def _products(some: Vectors, rows: Rows, others: Vectors, columns: Rows) -> Vectors:
    """Return the products of pairs of vectors, a few pairs at a time, as each takes the memory of two vectors."""
    parts = [
        np.einsum("nf,nf->n", some[rows[start : start + AT_ONCE]], others[columns[start : start + AT_ONCE]])
        for start in range(0, len(rows), AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _with_rest(vectors: Vectors) -> Vectors:
    """Return the projections of vectors on their main directions, with the length of the rest beside them."""
    sample = vectors[:: max(1, len(vectors) // 5000)]
    _, directions = np.linalg.eigh(sample.T @ sample)
    projected = vectors @ directions[:, -PROJECTED:]
    rest = np.sqrt(np.maximum(np.einsum("nf,nf->n", vectors, vectors) - np.einsum("np,np->n", projected, projected), 0))
    return np.hstack([projected, rest[:, None]]).astype(np.float32)


def _highest(products: Vectors, rows: Rows, columns: Rows) -> tuple[Rows, Rows]:
    """Return the pairs of each row with the highest products, a few of them."""
    order = np.lexsort((-products, rows))
    rows, columns = rows[order], columns[order]
    kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < MOST_PER_IMAGE
    return rows[kept], columns[kept]
