"""Cut several crops out of one test image, whose predictions are then averaged; each set of crops is defined once.

Pillow and numpy alone, as for `preprocess`, so that a serving container can average over crops too.

Letters: ``H``, ``W`` size of an image in px, ``h``, ``w`` size of the network's input in px, ``C`` its channels,
``n`` different crops of an image, ``S`` sets of crops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from graftline.augment.preprocess import Preprocessing
from graftline.errors import UserError

Frames = list[np.ndarray]  # crops, each (h, w, C) uint8

CANVAS_SHARE = 224 / 256  # of the resized image's edge that a corner crop keeps: Krizhevsky et al. 2012, section 4.1
SHORT_SIDES = (256 / 224, 288 / 224, 320 / 224, 352 / 224)  # times the crop's: Szegedy et al. 2014, section 7


@dataclass(frozen=True)
class CropSet:
    """Say what a set of crops is, costs, and where it is wrong.

    Attributes:
        count: crops of an image; of those that are alike, fewer may be made.
        where: they lie, in a few words.
        wrong: on which images it does harm.
        cut: an (H, W, 3) uint8 image → crops, each counting alike in their mean.
        needs_square: whether the network must see squares.
        needs_room: whether the crops are corners, which need an image larger than the crop.
    """

    count: int
    where: str
    wrong: str
    cut: Callable[[np.ndarray, Preprocessing], Frames]
    needs_square: bool = False
    needs_room: bool = False


class Cut(NamedTuple):
    """The crops of one image for several sets.

    Attributes:
        inputs: (n, C, h, w) float32, the network's inputs, each different from all others.
        shares: (S, n) float64, the part of each input in each set's mean; each row sums to 1.
    """

    inputs: np.ndarray
    shares: np.ndarray


def cut(image: np.ndarray, preprocessing: Preprocessing, names: Sequence[str]) -> Cut:
    """Return the network's inputs for several sets of crops of an (H, W, 3) uint8 image.

    Crops that have the same pixels become one input, be they of one set or of several: 5 crops are among the 10, and of
    the 144 of a square image, 48 are different.

    Args:
        image: the decoded image.
        preprocessing: the network's.
        names: of ``CROP_SETS``, S of them, which `check` has let pass.
    """
    found: dict[bytes, int] = {}
    frames: Frames = []
    rows: list[list[int]] = []
    for name in names:
        row = []
        for frame in CROP_SETS[name].cut(image, preprocessing):
            pixels = frame.tobytes()
            if pixels not in found:
                found[pixels] = len(frames)
                frames.append(frame)
            row.append(found[pixels])
        rows.append(row)
    shares = np.stack([np.bincount(row, minlength=len(frames)) / len(row) for row in rows])
    return Cut(np.stack([preprocessing.normalize(frame) for frame in frames]), shares)


def check(name: str, preprocessing: Preprocessing) -> None:
    """Make sure that a network can take a set of crops.

    Raises:
        UserError: there is no such set, or the network's images have no place for it.
    """
    if name not in CROP_SETS:
        raise UserError(f"There are no crops '{name}': take some of {', '.join(CROP_SETS)}.")
    crops, (height, width) = CROP_SETS[name], preprocessing.image_size
    if crops.needs_square and height != width:
        raise UserError(
            f"The crops '{name}' are squares, but this network sees images of {height} x {width} px: take 10 or mirror."
        )
    if crops.needs_room and (min(_canvas_size(preprocessing)) <= min(height, width)):
        raise UserError(
            f"The crops '{name}' lie in the corners of a larger image, for which {height} x {width} px are too few: "
            "take 1 or mirror."
        )


def _center(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    return [preprocessing.frame(image)]


def _mirror(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    return _with_mirrored(_center(image, preprocessing))


def _five(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    """Return the center, then the four corners of the canvas.

    The canvas is the central part of the resized image, as of AlexNet's 256 x 256 px for crops of 224. It is resized as
    for the center, unless that keeps more of the image than AlexNet's: then there would be no corners to speak of.
    """
    size = _canvas_size(preprocessing)
    canvas = replace(preprocessing, image_size=size, crop_pct=1.0).frame(image)
    return [*_center(image, preprocessing), *_corners(canvas, preprocessing)]


def _ten(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    return _with_mirrored(_five(image, preprocessing))


def _googlenet(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    """Return six crops of the three squares of an image at four scales, each mirrored too.

    A square is resized out of the image, not the image as a whole, so that a long one takes no more memory than any
    other; the filter sees what lies beyond the square, so that the pixels are those of the paper's way.
    """
    side = preprocessing.image_size[0]
    frames: Frames = []
    for short in SHORT_SIDES:
        edge = round(short * side)
        stretched = replace(preprocessing, image_size=(edge, edge))
        for box in _squares(image):
            square = stretched.resample(image, box)  # (edge, edge, C)
            start = round((edge - side) / 2)
            frames += [*_corners(square, preprocessing), square[start : start + side, start : start + side]]
            frames.append(_shrunk(square, preprocessing))
    return _with_mirrored(frames)


def _scales(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    """Return the center at the network's own scale and at GoogLeNet's three larger ones, relative to the first."""
    shares = [SHORT_SIDES[0] / short for short in SHORT_SIDES]
    return [replace(preprocessing, crop_pct=share * preprocessing.crop_pct).frame(image) for share in shares]


def _d4(image: np.ndarray, preprocessing: Preprocessing) -> Frames:
    """Return the eight symmetries of a square: four turns of the center, each mirrored too."""
    (center,) = _center(image, preprocessing)
    return _with_mirrored([np.rot90(center, turns) for turns in range(4)])


def _with_mirrored(frames: Frames) -> Frames:
    return [*frames, *(frame[:, ::-1] for frame in frames)]


def _canvas_size(preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (height, width) of the image whose corners are cut out, px."""
    height, width = (math.floor(edge / min(preprocessing.crop_pct, CANVAS_SHARE)) for edge in preprocessing.image_size)
    return height, width


def _corners(canvas: np.ndarray, preprocessing: Preprocessing) -> Frames:
    """Return upper left, upper right, lower left and lower right, each (h, w, C)."""
    height, width = preprocessing.image_size
    rows, columns = (0, canvas.shape[0] - height), (0, canvas.shape[1] - width)
    return [canvas[top : top + height, left : left + width] for top in rows for left in columns]


def _squares(image: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Return the boxes of the first, middle and last square along the longer side; of a square image itself, once."""
    height, width = image.shape[:2]
    short, rest = min(height, width), abs(height - width)
    starts = (0, round(rest / 2), rest) if rest else (0,)
    return [
        (start, 0, start + short, short) if width > height else (0, start, short, start + short) for start in starts
    ]


def _shrunk(square: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return a square (e, e, C) resized to (h, w, C)."""
    rgb = np.repeat(square, 3, axis=2) if preprocessing.channels == 1 else square
    return preprocessing.resample(rgb, (0, 0, square.shape[1], square.shape[0]))


_MIRRORED = "where left and right differ: text, signs, one side of a body"

CROP_SETS: dict[str, CropSet] = {
    "1": CropSet(1, "the center, as in training and serving", "nowhere beyond the model itself", _center),
    "mirror": CropSet(2, "the center and its mirror image", _MIRRORED, _mirror),
    "scales": CropSet(
        4,
        "the center at four scales, from the network's own to 8/11 of its width",
        "where size tells the classes apart, or what matters lies at the border",
        _scales,
    ),
    "5": CropSet(
        5, "the four corners and the center", "where what matters lies in the center alone", _five, needs_room=True
    ),
    "d4": CropSet(
        8,
        "the center, turned by 0, 90, 180 and 270 degrees and mirrored",
        f"where up matters, as in most photographs, and {_MIRRORED}",
        _d4,
        needs_square=True,
    ),
    "10": CropSet(10, "the four corners and the center, mirrored too", _MIRRORED, _ten, needs_room=True),
    "144": CropSet(
        144,
        "four scales x three squares x (four corners, center, the square itself) x mirrored",
        f"{_MIRRORED}; where size tells the classes apart",
        _googlenet,
        needs_square=True,
        needs_room=True,
    ),
}
