"""What a server answers for a bundle that refuses images and gives sets, and for an ensemble."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from http_server import CLASS_NAMES, FORM, HttpServer, form, photo, text

from graftline.bundle.calibration import Calibration
from graftline.bundle.decision import Decision
from graftline.bundle.ensemble import load_predictor, save_ensemble
from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import Refusal, neighbor_distances, unit
from graftline.bundle.save import change_answers

PHOTOS = [photo(seed) for seed in range(3)]
REFUSED = [False, False, True]


class Served(NamedTuple):
    server: HttpServer
    refusing: Path
    several: Path


@pytest.fixture(scope="module")
def served(bundle: Path, calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A bundle that refuses the last photo, answers by thresholds and gives sets, and an ensemble of two."""
    place = tmp_path_factory.mktemp("place")
    refusing = Path(shutil.copytree(bundle, place / "refusing"))
    embeddings = Predictor.from_directory(bundle).logits_and_embeddings(PHOTOS)[1]
    references = unit(embeddings[:2])
    limit = float(neighbor_distances(references, embeddings, 1)[2]) / 2
    decision = Decision(thresholds=(1e-9, 0.5, 0.5), set_threshold=0.3)
    change_answers(refusing, Calibration(temperature=2.0), decision, Refusal(references, 1, limit, 0.05))
    (refusing / "README.md").write_text("# Pets\n", encoding="utf-8")
    several = save_ensemble(place / "several", [bundle, calibrated], (0.25, 0.75), "mirror", {})
    with HttpServer(place, f"model=[{refusing},{several}]") as server:
        yield Served(server, refusing, several)


def test_an_image_is_refused_and_another_is_not(served: Served) -> None:
    server, predictor = served.server, Predictor.from_directory(served.refusing)
    expected = predictor.predict(PHOTOS)
    found = server.ask("/predict", form(*PHOTOS), FORM).content["predictions"]
    assert [one["refused"] for one in found] == REFUSED
    assert {one["class"] for one in found} == {CLASS_NAMES[0]}, "the one with the low threshold"
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in found], expected, rtol=1e-5)
    for one, row in zip(found, expected, strict=True):
        assert set(one["set"]) == {CLASS_NAMES[0], *(CLASS_NAMES[number] for number in np.flatnonzero(row >= 0.3))}
    table = server.ask_json("/invocations", {"inputs": [text(one) for one in PHOTOS]})
    for row, one in zip(table.content["predictions"], found, strict=True):
        columns = ["class", "probability", *(f"probability/{name}" for name in CLASS_NAMES), "set", "refused"]
        assert list(row) == columns
        assert (row["class"], row["refused"], json.loads(row["set"])) == (one["class"], one["refused"], one["set"])
    assert (table.headers["Model-Digest"], table.headers["Model-Version"]) == (predictor.digest, None)
    assert 'graftline_refused_total{model="refusing"} 2' in server.ask("/metrics").content, "one for each request"


def test_what_there_is_to_know_of_it(served: Served) -> None:
    model = served.server.ask("/model").content
    assert (model["calibration"], model["card"]) == ({"temperature": 2.0}, "# Pets\n")
    assert model["decision"] == {"thresholds": [1e-9, 0.5, 0.5], "set_threshold": 0.3}
    assert model["refusal"]["neighbor"] == 1


def test_an_ensemble_answers_as_its_predictor_does(served: Served) -> None:
    server, ensemble = served.server, load_predictor(served.several)
    answer = server.ask("/models/several/predict", form(*PHOTOS), FORM)
    assert answer.content["digest"] == answer.headers["Model-Digest"] == ensemble.digest
    found = answer.content["predictions"]
    assert [one["refused"] for one in found] == 3 * [None]
    given = [list(one["probabilities"].values()) for one in found]
    np.testing.assert_allclose(given, ensemble.predict(PHOTOS), rtol=1e-5)
