"""A report shows what other stages have found about its model and its images, and says how to get the rest."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from workplace import TINY, Workplace

from graftline.pipeline.cli import compose
from graftline.pipeline.training.result import TrainResult

DATA = ("data=folder", "data.path=photos")
NETWORK = ("backbone=test_efficientnet", "backbone.weights=none", "backbone.image_size=32", "accelerator=cpu")
FEW = ("evaluation.resamples=100", "tracking.system_metrics=false")


pytestmark = pytest.mark.long  # all of a training, an audit, a learning curve and explanations


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """400 images of two colors that are not easily told apart, of which an audit and a learning curve are there."""
    workplace = make_workplace("summaries")
    generator = np.random.default_rng(0)
    for name, red in (("pale", 110), ("red", 150)):
        (workplace.root / "photos" / name).mkdir(parents=True)
        for number in range(200):
            color = np.array([generator.normal(red, 15), 120, 120])
            pixels = (color + generator.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(workplace.root / "photos" / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace.root)
        compose("audit", [*DATA, *NETWORK]).run()
        compose("learning-curve", [*DATA, *NETWORK, "seeds=3", "resamples=100", FEW[1]]).run()
    return workplace


@pytest.fixture(autouse=True)
def _in_place(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)


@pytest.fixture(scope="module")
def trained(place: Workplace) -> TrainResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        result = compose("train", [*DATA, *TINY, "trainer.max_epochs=1", "tracking.register=false"]).run()
    assert isinstance(result, TrainResult)
    return result


def sections(page: str) -> set[str]:
    return set(re.findall(r'<section id="([\w-]+)">', page))


def commands(page: str) -> list[str]:
    """The commands of what was not computed."""
    return re.findall(r"<dd><code>graftline (.*?)</code></dd>", unescape(page.partition('<section id="missing">')[2]))


def read(report: Path) -> str:
    page = report.read_text(encoding="utf-8")
    links = set(re.findall(r'<a href="#([\w-]+)">', page.partition("<nav")[2].partition("</nav>")[0]))
    assert links == sections(page)
    return page


def found(stage: str) -> dict[str, Any]:
    (directory,) = Path("outputs", stage).iterdir()
    return found_in(directory)


def found_in(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return content


def test_a_training_shows_what_an_audit_and_a_learning_curve_have_found(trained: TrainResult) -> None:
    page = unescape(read(trained.report))
    audit, curve = found("audit"), found("learning-curve")
    assert audit["label_errors"] > 0
    assert f"{audit['label_errors']:,} of 400 labels are probably wrong" in page
    assert page.count('<p class="given">labeled ') == min(6, audit["label_errors"])
    gain = curve["metrics"]["gain/times_2"]
    bring = f"twice the labels would bring {100 * gain['value']:+.1f} [{100 * gain['low']:.1f}, "
    assert f"Heads on test_efficientnet at 32 px: {bring}" in page
    assert "probably wrong</dt>" not in page
    assert {"audit", "learning-curve"} <= sections(page)
    assert not [command for command in commands(page) if command.startswith(("audit", "learning-curve"))]
    assert trained.report.stat().st_size < 600_000


def test_an_evaluation_prefers_the_learning_curve_of_its_network(trained: TrainResult, tmp_path: Path) -> None:
    """Another network's curve of the same images is newer."""
    (curve,) = Path("outputs", "learning-curve").iterdir()
    newer = curve.with_name("newer")
    shutil.copytree(curve, newer)
    content = found_in(newer) | {"backbone": "resnet10t"}
    (newer / "result.json").write_text(json.dumps(content), encoding="utf-8")
    try:
        for number, typed in enumerate((f"bundle={trained.directory}", f"runs=[{trained.directory}]")):
            compose("evaluate", [typed, *DATA, *FEW]).run(tmp_path / str(number))
            assert "Heads on test_efficientnet at 32 px" in read(tmp_path / str(number) / "report.html")
    finally:
        shutil.rmtree(newer)


def test_the_command_in_the_report_brings_the_explanations_into_that_of_an_evaluation(trained: TrainResult) -> None:
    page = read(trained.report)
    assert "explain" not in sections(page)
    (explain,) = [command for command in commands(page) if command.startswith("explain ")]
    bundle = f"bundle={trained.directory}"

    def evaluate(*typed: str) -> str:
        directory = Path("outputs", "evaluate", str(len(list(Path("outputs").glob("evaluate/*")))))
        compose("evaluate", [bundle, *DATA, *FEW, *typed, f"hydra.run.dir={directory}"]).run()
        return read(directory / "report.html")

    before = evaluate()
    assert f"explain {bundle}" in commands(before)
    compose("explain", [*shlex.split(explain)[1:], "accelerator=cpu"]).run()
    after = evaluate()
    assert "explain" in sections(after)
    assert f"The {found('explain')['images']} mistakes on the test images that the model was surest of." in after
    assert not [command for command in commands(after) if command.startswith("explain")]
    others = evaluate("split=validation")
    assert "explain" not in sections(others), "these are mistakes on other images"
    assert f"explain {bundle} split=validation" in commands(others)


def test_other_images_and_files_that_cannot_be_read_are_left_out(trained: TrainResult, tmp_path: Path) -> None:
    other = [*DATA, "data.split.seed=5", f"data.directory={tmp_path}", "backbone.drop_rate=0.1"]
    typed = [*TINY, *other, "trainer.max_epochs=1", "tracking.register=false"]
    compose("train", typed).run(tmp_path / "other")
    page = read(tmp_path / "other" / "report.html")
    assert not {"audit", "learning-curve"} & sections(page)
    own = [*(one for one in TINY if one.startswith("backbone")), *other]
    assert {"audit", "learning-curve"} <= {command.split()[0] for command in commands(page)}
    for command in commands(page):
        stage, *words = shlex.split(command)
        if stage in ("audit", "learning-curve"):
            assert sorted(words) == sorted(own), "of these images and this network"
            compose(stage, words)

    (decisions,) = Path("outputs", "audit").glob("*/decisions.csv")
    kept = decisions.read_bytes()
    try:
        decisions.write_bytes(b"something else\n")
        bundle = f"bundle={trained.directory}"
        page = read(Path(compose("evaluate", [bundle, *DATA, *FEW]).run(tmp_path / "evaluated").table[1][1]))
    finally:
        decisions.write_bytes(kept)
    assert "audit" not in sections(page)
    assert "learning-curve" in sections(page)


def test_a_picture_that_was_cut_off_costs_its_section_and_not_the_report(trained: TrainResult, tmp_path: Path) -> None:
    (picture,) = Path("outputs", "learning-curve").glob("*/learning_curve.png")
    kept = picture.read_bytes()
    try:
        picture.write_bytes(kept[: len(kept) // 2])
        compose("evaluate", [f"bundle={trained.directory}", *DATA, *FEW]).run(tmp_path / "evaluated")
    finally:
        picture.write_bytes(kept)
    page = read(tmp_path / "evaluated" / "report.html")
    assert "learning-curve" not in sections(page)
    assert "audit" in sections(page)
