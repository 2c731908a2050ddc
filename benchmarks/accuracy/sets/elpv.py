"""ELPV: cells of solar modules, in the split that `make train` draws; from the package elpv-dataset."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.accuracy.sets.folders import Sample
from graftline.data.ingest import Ingest
from graftline.data.sources.elpv import Elpv
from graftline.data.split import Split


def samples() -> Iterator[Sample]:
    """Yield the 2,624 gray images, 300 x 300 px, functional or defective; without the weights of doubtful cells."""
    with tempfile.TemporaryDirectory() as folder:
        table = Ingest("elpv", None, Elpv(), Split(), directory=folder).run().version.table()
    columns = (table[name].tolist() for name in ("split", "label", "path"))
    for split, label, path in zip(*columns, strict=True):
        yield Sample(split, label, Path(path).stem, np.asarray(Image.open(path).convert("L")))
