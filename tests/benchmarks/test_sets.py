"""The sets of the accuracy benchmark: the same on each machine, each image once, and split as they say."""

import zipfile
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy.sets import characters, digits, drawings, letters, textures, textures9
from benchmarks.accuracy.sets.draw import draw_some, draw_splits
from benchmarks.accuracy.sets.folders import DIGEST, Sample, digest, without_copies, write
from graftline.data.ingest import Ingest
from graftline.data.sources.folder import Folder
from graftline.data.split import Split

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def first(samples: object, count: int) -> list[Sample]:
    return [sample for sample, _ in zip(samples, range(count), strict=False)]  # type: ignore[call-overload]


def test_made_up_images_are_the_same_on_each_machine() -> None:
    assert digest(first(textures.samples(), 6)) == "580fcdc606b9e524"
    assert digest(first(textures9.samples(), 9)) == "893ad7b1824fe085"
    assert digest(without_copies(digits.samples())) == "454b316ffbe9db3b"


@pytest.mark.parametrize("label", ["scratch", "pit"])
def test_a_fault_is_of_few_pixels_and_away_from_the_border(label: str) -> None:
    for seed in range(20):
        draw = {"scratch": textures._scratch, "pit": textures._pit}[label]
        fault = draw(np.random.default_rng(seed))
        rows, columns = np.nonzero(fault > 0.5)
        assert 4 <= len(rows) <= 90
        limit = (256 - 224) // 2  # what a crop of the center to 224 px leaves out
        assert min(rows.min(), columns.min()) >= limit
        assert max(rows.max(), columns.max()) < 256 - limit


def test_a_letter_is_drawn_whole_in_two_tones() -> None:
    for seed in range(10):
        image = letters.draw_letter("M", FONT, np.random.default_rng(seed))
        assert image.shape == (128, 128)
        border = np.concatenate([image[:6].ravel(), image[-6:].ravel(), image[:, :6].ravel(), image[:, -6:].ravel()])
        assert len(set(border.tolist())) == 1
        assert np.ptp(image.astype(int)) >= 55
        assert np.array_equal(image, letters.draw_letter("M", FONT, np.random.default_rng(seed)))


def test_each_font_is_in_one_split() -> None:
    assert sum(letters.GROUPS.values()) == len(letters.PACKAGES) == len(set(letters.PACKAGES))


def test_each_character_is_a_class_on_any_disk() -> None:
    assert characters._has_all(FONT)
    drawn = list(characters._of_package(letters.PACKAGES[0], [FONT], "train"))
    assert len({sample.label.lower() for sample in drawn}) == len(drawn) == 144
    assert {sample.pixels.shape for sample in drawn} == {(64, 64)}
    assert len({sample.pixels.tobytes() for sample in drawn}) == 144


def test_splits_are_stratified_and_repeatable() -> None:
    labels = np.repeat([3, 5], [40, 20])
    splits = draw_splits(labels, {"train": 0.5, "validation": 0.25, "test": 0.25})
    counts = Counter(zip(labels.tolist(), splits, strict=True))
    assert counts == {
        (3, "train"): 20, (3, "validation"): 10, (3, "test"): 10,
        (5, "train"): 10, (5, "validation"): 5, (5, "test"): 5,
    }  # fmt: skip
    assert splits == draw_splits(labels, {"train": 0.5, "validation": 0.25, "test": 0.25})
    chosen = draw_some(labels, 20)
    assert Counter(labels[chosen].tolist()) == {3: 10, 5: 10}
    assert len(set(chosen.tolist())) == 20


def plain(split: str, label: str, name: str, level: int) -> Sample:
    return Sample(split, label, name, np.full((9, 9), level, np.uint8))


def test_an_image_stays_once_rather_in_the_test() -> None:
    samples = [
        plain("train", "a", "1", 10),
        plain("validation", "a", "2", 10),
        plain("test", "a", "3", 10),
        plain("train", "a", "4", 20),
        plain("train", "b", "5", 20),  # the same with another label
        plain("train", "b", "6", 30),
        plain("train", "b", "7", 30),
    ]
    assert [sample.name for sample in without_copies(samples)] == ["3", "6"]


def test_graftline_takes_a_written_set_as_it_is(tmp_path: Path) -> None:
    samples = [sample for sample in digits.samples() if sample.label in "01"]
    told = write(samples, tmp_path / "zeros")
    assert told.startswith("zeros: 2 classes, ")
    assert (tmp_path / "zeros" / DIGEST).read_text().strip() in told
    version = Ingest(None, str(tmp_path / "zeros"), Folder(), Split(), directory=str(tmp_path / "data")).run().version
    kept = without_copies(samples)
    assert Counter(version.table()["split"]) == Counter(sample.split for sample in kept)


def test_surfaces_are_pictures_of_subjects_with_enough_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "textures.pk3", "w") as archive:
        names = [f"tex_{subject}/{number}.png" for subject in ("doors", "misc") for number in range(12)]
        names += ["tex_lights/few.png"] + [f"tex_doors/{number}_nm.png" for number in range(12)]
        for name in names:
            with archive.open(f"textures/{name}", "w") as stream:
                Image.fromarray(generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(stream, "PNG")
    monkeypatch.setattr(drawings, "SURFACES", tmp_path / "textures.pk3")
    samples = list(drawings.surfaces())
    assert Counter(sample.label for sample in samples) == {"doors": 12}
    assert Counter(sample.split for sample in samples) == {"train": 7, "test": 4, "validation": 1}
