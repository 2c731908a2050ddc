from pathlib import Path

import numpy as np
import pandas as pd

from graftline.data.version import Samples
from graftline.evaluation.predictions import table

PROBABILITIES = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
PATHS = ["/a.png", "/b.png", "/c.png"]


def test_one_row_per_image_survives_parquet(tmp_path: Path) -> None:
    samples = Samples(PATHS, np.array([0, 0, 1]), np.array([1, 0.5, 1], dtype=np.float32), ["0", "1", "2"])
    written = table(samples, PROBABILITIES, ("cat", "dog"), ["aa", "bb", "cc"])
    written.to_parquet(tmp_path / "predictions.parquet", index=False)
    expected = pd.DataFrame(
        {
            "path": PATHS,
            "label": ["cat", "cat", "dog"],
            "predicted": ["cat", "dog", "cat"],
            "correct": [True, False, False],
            "probability/cat": PROBABILITIES[:, 0],
            "probability/dog": PROBABILITIES[:, 1],
            "weight": np.array([1, 0.5, 1], dtype=np.float32),
            "sha256": ["aa", "bb", "cc"],
        }
    )
    read = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(read, expected)


def test_no_column_for_what_is_not_known() -> None:
    columns = table(Samples(PATHS, np.array([0, 0, 1]), None, ["0", "1", "2"]), PROBABILITIES, ("cat", "dog")).columns
    assert list(columns) == ["path", "label", "predicted", "correct", "probability/cat", "probability/dog"]
