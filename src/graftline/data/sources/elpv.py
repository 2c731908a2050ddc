"""List the sample data set: ELPV, electroluminescence images of solar cells, of the package elpv-dataset."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from graftline.data.sources.source import require
from graftline.errors import UserError

CLASS_NAMES = ("functional", "defective")


@dataclass(frozen=True)
class Elpv:
    """List ELPV: 2,624 gray images, 300 x 300 px, each with a defect's probability: 0, 1/3, 2/3 or 1 (Hydra target).

    Its raters' doubt becomes the weight: 1 where they agreed (0 and 1), else the probability, 1/3 or 2/3. The stratum
    is probability x type of cell (mono, poly), by which Deitsch et al. 2019 (arXiv 1807.02894) stratify their split.
    The type is also a column of its own, as scores are told by it.

    The images come from 44 modules, but nothing published says which image comes from which, and no two files are the
    same; so there is no honest group, and the column stays empty. Cells of one module may lie in different splits.

    Attributes:
        threshold: a cell is defective if its probability is larger.
        origin: of the images where no path is given, for the cards of models.
    """

    threshold: float = 0.5
    origin: ClassVar[str] = "the Python package elpv-dataset"

    def read(self, path: Path | None) -> pd.DataFrame:
        """List the images of the installed package ``elpv-dataset``, or those below ``path``, which has a labels.csv.

        Raises:
            UserError: the package is not installed, or ``path`` has no labels.csv of ELPV.
        """
        labels = (_packaged() if path is None else require(path, "the folder with ELPV's labels.csv")) / "labels.csv"
        try:
            table = pd.read_csv(labels, sep=r"\s+", names=["path", "probability", "type"])
            probability = table["probability"].astype("float64")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{labels} is not ELPV's list of images: leave Ingest.path out for the package's, or use Folder()."
            ) from error
        names = np.where(probability > self.threshold, "defective", "functional")
        return pd.DataFrame(
            {
                "path": f"{labels.parent}/" + table["path"],
                "label": pd.Categorical(names, categories=CLASS_NAMES),
                "weight": probability.where(~probability.isin([0, 1]), 1.0),
                "stratum": probability.map("{:.2f} ".format) + table["type"],
                "type": table["type"],
            }
        )


def _packaged() -> Path:
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise UserError(
            "The sample data is not installed: pip install elpv-dataset, or name its folder as Ingest.path."
        )
    return Path(package.origin).parent / "data"
