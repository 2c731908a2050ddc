"""The server's own pages, in a real Chromium."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from http_server import CLASS_NAMES, HttpServer, photo

from graftline.bundle.neighbors import Neighbors
from graftline.bundle.predictor import Predictor
from graftline.bundle.refusal import unit
from graftline.bundle.save import keep_neighbors
from graftline.data.decode import decode_rgb
from graftline.report.thumbnails import thumbnail

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (Debian: chromium)")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Serves a bundle with two training images, of which the first one is `photo` 0."""
    place = tmp_path_factory.mktemp("place")
    copy = Path(shutil.copytree(bundle, place / "pets"))
    photos = [photo(0), photo(2)]
    _, embeddings = Predictor.from_directory(copy).logits_and_embeddings(photos)
    pictures = [thumbnail(decode_rgb(one), 112).source for one in photos]
    keep_neighbors(copy, Neighbors(unit(embeddings).astype(np.float16), np.array([1, 2], np.int32), pictures))
    with HttpServer(place, f"model={copy}") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def choose(browser: Browser, *files: Path) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
    browser.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])


DROP = """
const event = new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer: new DataTransfer()});
event.dataTransfer.items.add(new File(["hello"], "dropped.txt"));
document.getElementById("drop").dispatchEvent(event)
"""


def articles(browser: Browser, count: int) -> list[str]:
    """Return the text of each answer, the newest first, once there are so many."""
    deadline = time.monotonic() + 30
    done = "[...document.querySelectorAll('article')].filter(one => !one.innerText.includes('waits')).length"
    while browser.evaluate(done) < count:
        assert time.monotonic() < deadline, browser.evaluate("document.body.innerText")
        time.sleep(0.05)
    found: list[str] = browser.evaluate("[...document.querySelectorAll('article')].map(one => one.innerText)")
    return found


def test_photos_are_chosen_and_dropped(
    server: HttpServer, browser: Browser, predictor: Predictor, tmp_path: Path
) -> None:
    files = [tmp_path / "one.jpg", tmp_path / "two.jpg"]
    for seed, file in enumerate(files):
        file.write_bytes(photo(seed))
    browser.open(server.url)
    choose(browser, *files)
    second, first = articles(browser, 2)
    for text, row in zip((first, second), predictor.predict(files), strict=True):
        assert CLASS_NAMES[row.argmax()] in text
        for share in row:
            assert f"{100 * share:.1f} %" in text
    browser.wait_for("document.querySelectorAll('.why:not([hidden])').length === 2")
    shown = "[...document.querySelectorAll('article')].at(-1).querySelector('.why')"  # of the first photo
    text = browser.evaluate(f"{shown}.innerText")
    assert f"where “{CLASS_NAMES[predictor.predict(files[:1])[0].argmax()]}” shows (Grad-CAM)" in text
    labels = browser.evaluate(f"[...{shown}.querySelectorAll('li span')].map(one => one.textContent)")
    assert labels == [CLASS_NAMES[1], CLASS_NAMES[2]], "itself is the nearest one"
    browser.wait_for(f"{shown}.querySelector('canvas').width === 64")
    warm = (
        "canvas.getContext('2d').getImageData(0, 0, 64, 64).data.some((level, place) => place % 4 === 3 && level > 99)"
    )
    browser.wait_for(f"(canvas => {warm})({shown}.querySelector('canvas'))")
    browser.evaluate(DROP)
    newest = articles(browser, 3)[0]
    assert "dropped.txt" in newest
    assert "it is text; put the file itself in its place" in newest
    assert "3 classes: cat, class, döner & co" in browser.evaluate("document.getElementById('facts').innerText")
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [message for message in browser.messages if "400" not in message] == []  # of the text


def test_the_addresses_are_described(server: HttpServer, browser: Browser) -> None:
    browser.messages.clear()
    browser.open(f"{server.url}/docs")
    deadline = time.monotonic() + 30
    while "/invocations" not in (text := browser.evaluate("document.body.innerText")):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    assert f"{server.url}/predict" in text
    assert browser.messages == []
