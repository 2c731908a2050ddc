"""The report as people see it: in a real Chromium."""

import base64
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_chromium
from made_predictions import predictions_of
from made_report import made_report
from PIL import Image

from graftline.data.version import DatasetVersion
from graftline.evaluation.metrics import Interval, score
from graftline.evaluation.predictions import Classifier, predict_split
from graftline.evaluation.slices import Slice
from graftline.report.figures import write_figures, write_slices_figure
from graftline.report.run_report import write_report

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt-get install chromium")

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESKTOP = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
SHOWN = "[...document.querySelectorAll('.panel')].filter(one => one.offsetParent).map(one => one.id)"
CUT = """(edge => [...document.querySelectorAll('text')].filter(text => (one => one.left < edge.left
    || one.right > edge.right || one.top < edge.top || one.bottom > edge.bottom)(text.getBoundingClientRect()))
    .map(text => text.textContent))(document.documentElement.getBoundingClientRect())"""
BROKEN = """Promise.all([...document.images].map(image => image.decode().then(() => '', () => image.alt)))
    .then(found => found.filter(Boolean))"""


@pytest.fixture(scope="module")
def url(classifier: Classifier, version: DatasetVersion, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return write_report(folder, made_report(predict_split(classifier, version), folder)).as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, url: str) -> Browser:
    browser.call("Emulation.setDeviceMetricsOverride", **DESKTOP)
    browser.messages.clear()
    browser.open("about:blank")
    browser.open(url)
    return browser


def test_every_image_loads_without_a_word(page: Browser) -> None:
    assert page.evaluate("document.images.length") > 30
    assert page.evaluate(BROKEN) == []
    assert page.messages == []


def test_a_script_of_others_does_not_run(page: Browser) -> None:
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = true'}))")
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in message for message in page.messages)


def test_a_click_on_a_cell_shows_its_images(page: Browser) -> None:
    (first,) = page.evaluate(SHOWN)
    other = page.evaluate(f"[...document.querySelectorAll('.matrix a')].find(one => one.hash != '#{first}').hash")
    page.evaluate(
        f"document.querySelector('a[href=\"{other}\"]').scrollIntoView({{block: 'center', behavior: 'instant'}})"
    )
    box = page.evaluate(f"document.querySelector('a[href=\"{other}\"]').getBoundingClientRect().toJSON()")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=box["x"] + 20, y=box["y"] + 20, button="left", clickCount=1)
    page.wait_for(f"document.querySelector('.matrix [aria-current]').hash === '{other}'")
    assert page.evaluate(SHOWN) == [other.removeprefix("#")]
    assert page.evaluate(f"document.querySelector('{other} img').getBoundingClientRect().height") > 20
    assert page.messages == []


def test_the_keyboard_opens_a_cell_and_works_without_scripts(page: Browser, url: str, tmp_path: Path) -> None:
    text = Path(url.removeprefix("file://")).read_text(encoding="utf-8")
    plain = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert len(plain) < len(text)
    (tmp_path / "plain.html").write_text(plain, encoding="utf-8")
    page.open((tmp_path / "plain.html").as_uri())
    other = page.evaluate("document.querySelector('.matrix a').hash")
    page.evaluate("document.querySelector('.matrix a').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", windowsVirtualKeyCode=13, text="\r")
    page.wait_for(f"location.hash === '{other}'")
    assert page.evaluate(SHOWN) == [other.removeprefix("#")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_hangs_over_the_edge(page: Browser, scheme: str) -> None:
    page.call("Emulation.setDeviceMetricsOverride", **PHONE)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    sizes = page.evaluate(
        "[...document.querySelectorAll('.chart text')].map(one => one.getBoundingClientRect().height)"
    )
    assert min(sizes) > 9, "text of a chart can be read"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(244, 246, 248)") == (scheme == "light")


def test_it_can_be_printed(page: Browser) -> None:
    printed = page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF-")
    assert 3 <= content.count(b"/Type /Page\n") <= 12
    page.call("Emulation.setEmulatedMedia", media="print")
    assert len(page.evaluate(SHOWN)) > 1, "all confusions are printed"
    page.call("Emulation.setEmulatedMedia", media="")


@pytest.fixture
def gray(page: Browser) -> Iterator[Browser]:
    """The page as someone sees it who sees no colors."""
    page.call("Emulation.setEmulatedVisionDeficiency", type="achromatopsia")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    yield page
    page.call("Emulation.setEmulatedVisionDeficiency", type="none")
    page.call("Emulation.setEmulatedMedia", features=[])


def pixels(page: Browser, element: str) -> np.ndarray:
    """Return what is seen of an element, an expression of the page: (H, W) gray levels."""
    page.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    box = page.evaluate(f"{element}.getBoundingClientRect().toJSON()")
    scrolled = page.evaluate("[scrollX, scrollY]")
    clip = {"x": box["x"] + scrolled[0], "y": box["y"] + scrolled[1], "scale": 2}
    clip |= {side: box[side] for side in ("width", "height")}
    shot = page.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"), dtype=np.float64)
    assert np.ptp(seen, axis=2).max() <= 2, "no color is left"
    gray: np.ndarray = seen.mean(axis=2)
    return gray


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_mistakes_are_told_from_right_answers_without_color(gray: Browser, scheme: str) -> None:
    gray.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    cells = "[...document.querySelectorAll('.matrix td.{}')].filter(one => one.querySelector('a'))"
    spreads = {}
    for kind in ("right", "wrong"):
        number = gray.evaluate(f"{cells.format(kind)}.length")
        assert number > 0
        seen = [pixels(gray, f"{cells.format(kind)}[{one}]") for one in range(number)]
        spreads[kind] = [cell[-30:-12, 30:-12].std() for cell in seen]  # below the numbers: plain, or hatched
    assert max(spreads["right"]) < 1
    assert min(spreads["wrong"]) > 3


def test_the_series_of_a_chart_are_told_apart_without_color(gray: Browser) -> None:
    legends = gray.evaluate("[...document.querySelectorAll('.legend')].map(one => one.children.length)")
    assert max(legends) > 2
    for legend, number in enumerate(legends):
        symbols = [
            pixels(gray, f"document.querySelectorAll('.legend')[{legend}].children[{one}].querySelector('svg')")
            for one in range(number)
        ]
        size = np.min([symbol.shape for symbol in symbols], axis=0)
        drawn = [symbol[: size[0], : size[1]] < 200 for symbol in symbols]  # what is ink, however dark it is
        for one, other in itertools.combinations(drawn, 2):
            assert (one != other).sum() > 0.1 * max(one.sum(), other.sum()), (legend, number)


@pytest.mark.parametrize("num_classes", [2, 9, 21])
def test_figures_hold_their_texts(page: Browser, version: DatasetVersion, tmp_path: Path, num_classes: int) -> None:
    samples, generator = version.samples("test"), np.random.default_rng(0)
    names = [f"{number} {'a class of a long name, ' * 9}{'猫' * number}" for number in range(num_classes)]
    probabilities = generator.dirichlet(np.ones(num_classes), len(samples.paths))
    labels = np.arange(len(samples.paths)) % num_classes
    predictions = predictions_of(probabilities, labels, names, paths=samples.paths)
    files = write_figures(predictions, score(predictions, resamples=20), tmp_path)
    files["slices"] = tmp_path / "slices.svg"
    worst = Slice("group", names[-1], 1_234, Interval(0.1, 0.0, 0.4), 0.9, 0.01)
    write_slices_figure([worst, replace(worst, p_value=1.0)], files["slices"])
    for name, file in files.items():
        page.open(file.as_uri())
        assert page.evaluate("document.querySelectorAll('text').length") > 3, name
        assert page.evaluate(CUT) == [], name
    assert page.messages == []
