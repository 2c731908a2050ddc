"""A server says why it answers as it does, with what the bundle holds."""

import asyncio
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from http_server import CLASS_NAMES, photo

from graftline.bundle.layout import FEATURES, read_description
from graftline.bundle.predictor import Predictor
from graftline.execution import Execution
from graftline.serving.app import Service
from graftline.serving.explanation import Explainer
from graftline.serving.limits import Limits, RefusedRequest
from graftline.serving.measures import Measures
from graftline.serving.origin import BundleFolder
from graftline.serving.pixels import Pixels
from graftline.serving.slot import Slot


@pytest.fixture(scope="module")
def explainer(bundle: Path, predictor: Predictor) -> Explainer:
    return Explainer.load(predictor, bundle, read_description(bundle))


def test_it_says_where_the_class_shows(explainer: Explainer, predictor: Predictor) -> None:
    found = explainer.explain(photo(1))
    (expected,) = predictor.predict([photo(1)])
    assert found["class"] == CLASS_NAMES[expected.argmax()]
    assert found["probability"] == pytest.approx(expected.max(), abs=1e-5)
    assert found["heat"]["method"] == "Grad-CAM"
    heat = np.array(found["heat"]["map"])
    (features,) = predictor.engine(predictor.preprocessing(np.zeros((9, 9, 3), np.uint8))[None], [FEATURES])
    assert heat.shape == features.shape[2:]
    assert (heat.min(), heat.max()) == (0, 1)
    assert found["view"].startswith("data:image/webp;base64,")
    assert found["neighbors"] is None
    assert "bundle.neighbors=1000" in found["note"]


def test_without_a_map_places_are_covered(explainer: Explainer) -> None:
    found = replace(explainer, weights=None).explain(photo(1))
    assert found["heat"]["method"] == "occlusion"
    assert np.shape(found["heat"]["map"]) == (8, 8)


def test_what_cannot_be_read_is_said(explainer: Explainer) -> None:
    with pytest.raises(ValueError, match=r"^it is text"):
        explainer.explain(b"hello")


def test_an_ensemble_is_not_explained(bundle: Path) -> None:
    async def ask() -> None:
        slot = Slot(BundleFolder(bundle, "pets"), Execution(), Limits(), Measures(), Pixels())
        await slot.start()
        try:
            assert (await slot.explain(photo(1)))[1]["class"] in CLASS_NAMES
            slot._running = slot.running._replace(model=replace(slot.model, explainer=None))  # as one has none
            await slot.explain(photo(1))
        finally:
            await slot.close()

    with pytest.raises(RefusedRequest, match="An ensemble is not explained: serve one of its members"):
        asyncio.run(ask())


def test_a_brace_in_a_name_is_a_brace(bundle: Path) -> None:
    """Starlette's paths take it for a wildcard."""

    async def ask(path: str) -> int:
        slot = Slot(BundleFolder(bundle, "a{x}"), Execution(), Limits(), Measures(), Pixels())
        await slot.start()
        status: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            status.append(message.get("status", 0))

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "query_string": b"", "root_path": ""}
        scope["headers"] = [(b"host", b"localhost")]
        try:
            await Service({"a{x}": slot}, Limits(), Measures()).app()(scope, receive, send)
        finally:
            await slot.close()
        return status[0]

    assert asyncio.run(ask("/models/a{x}/model")) == 200
    assert asyncio.run(ask("/models/abc/model")) == 404
