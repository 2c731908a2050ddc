"""The sets by name."""

from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.accuracy.sets import characters, digits, drawings, elpv, fashion, letters, textures, textures9
from benchmarks.accuracy.sets.folders import Sample

SETS: dict[str, Callable[[], Iterable[Sample]]] = {
    "elpv": elpv.samples,
    "fashion1k": partial(fashion.samples, 1_000),
    "fashion10k": partial(fashion.samples, 10_000),
    "fashion60k": partial(fashion.samples, 60_000),
    "letters": letters.samples,
    "characters": characters.samples,
    "digits": digits.samples,
    "textures": textures.samples,
    "textures9": textures9.samples,
    "clipart": drawings.clipart,
    "stamps": drawings.stamps,
    "icons": drawings.icons,
    "surfaces": drawings.surfaces,
}
