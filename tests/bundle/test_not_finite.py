"""An image for which a network gives no finite numbers has no answer, wherever it is asked for one."""

import base64
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bundles import without_numbers_for_blank
from PIL import Image

from conftest import COLORS, paint
from graftline.bundle.answers import NOT_FINITE
from graftline.bundle.batch import BatchJob, TableFormat
from graftline.bundle.ensemble import AnyPredictor, Ensemble
from graftline.bundle.predictor import Predictor
from graftline.data.decoding import PLAIN
from graftline.data.image_list import ImageLister
from graftline.serving.answers import classify


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images: the second is broken, the third blank."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(4):
        paint(COLORS["red"], number).save(root / f"{number}.png")
    (root / "1.png").write_bytes(b"")
    Image.new("RGB", (24, 24), "white").save(root / "2.png")
    return root


@pytest.fixture(params=["network", "ensemble"])
def predictor(request: pytest.FixtureRequest, bundle: Path) -> AnyPredictor:
    one = without_numbers_for_blank(Predictor.from_directory(bundle))
    if request.param == "network":
        return one
    return Ensemble((one, Predictor.from_directory(bundle)), ("a", "b"), (0.5, 0.5), "1", {}, PLAIN)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_it_has_a_reason_and_no_probabilities(bundle: Path, photos: Path, number: float) -> None:
    predictor = without_numbers_for_blank(Predictor.from_directory(bundle), number)
    (answers,) = predictor.stream(sorted(photos.iterdir()), embed=True)
    assert answers.reasons == {1: "the file has no content", 2: NOT_FINITE}
    assert answers.embeddings is not None
    for values in (answers.probabilities, answers.embeddings):
        assert np.isnan(values).all(axis=1).tolist() == [False, True, True, False]
        assert np.isfinite(values[[0, 3]]).all()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_says_so(predictor: AnyPredictor, photos: Path, tmp_path: Path, form: TableFormat) -> None:
    """And names no class, which would be the first."""
    job = BatchJob(predictor, ImageLister().read(photos, tmp_path), tmp_path, form)
    counts = job.run()
    table = pd.read_csv(job.part(0)) if form == "csv" else pd.read_parquet(job.part(0))
    assert table["error"].fillna("").tolist() == ["", "the file has no content", NOT_FINITE, ""]
    assert table.loc[[1, 2], table.columns[1:-1]].isna().all(axis=None)
    assert table.loc[[0, 3], table.columns[1:-1]].notna().all(axis=None)
    assert (counts.unreadable, counts.classes.total()) == (2, 2)


def test_a_server_refuses_it(predictor: AnyPredictor, photos: Path) -> None:
    """With a sentence, as an image that it cannot read: JSON has no NaN."""
    files = [(photos / name).read_bytes() for name in ("0.png", "2.png")]
    with pytest.raises(ValueError, match=f"^image 1: {NOT_FINITE}$"):
        classify(predictor, [base64.b64encode(file).decode() for file in files])
