"""Sets that are small, uneven, or of many classes: a training goes through, or says in a sentence why not."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from workplace import TINY, Workplace


def write_images(folder: Path, images_per_class: Mapping[str, int], px: int = 16) -> None:
    """Write noisy squares, a color for each class."""
    generator = np.random.default_rng(0)
    for name, number in images_per_class.items():
        (folder / name).mkdir(parents=True)
        color = generator.integers(40, 215, 3)
        for index in range(number):
            pixels = color + generator.normal(0, 20, (px, px, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")


def test_a_class_with_three_images_is_trained_and_named(workplace: Workplace, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 24, "dog": 24, "owl": 3})
    ran = workplace.run("train", "data=folder", f"data.path={tmp_path / 'images'}", *TINY)
    assert ran.code == 0, ran.output
    assert "1 classes with few images: owl: 3 images, fewer than 10" in ran.output
    assert 0 <= ran.result["metrics"]["accuracy"]["value"] <= 1


def test_two_validation_images_and_random_weights_train_everything(workplace: Workplace, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 8, "dog": 8})
    arguments = ["data=folder", f"data.path={tmp_path / 'images'}", *TINY]
    ran = workplace.run("train", *arguments, "freeze=auto")
    assert ran.code == 0, ran.output
    assert re.search(r"^all +10 +2 +4$", ran.output, re.MULTILINE), "images of train, validation and test"
    assert "the weights are random, there is nothing to keep" in ran.output
    assert "nothing frozen" in ran.output


def test_one_class_that_is_left_ends_in_a_sentence_before_anything_slow(workplace: Workplace, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 6, "dog": 6})
    for file in (tmp_path / "images" / "dog").iterdir():
        file.write_text("moved to another folder\n")
    ran = workplace.run("train", "data=folder", f"data.path={tmp_path / 'images'}", *TINY)
    assert ran.code == 1
    last = ran.output.strip().splitlines()[-1]
    assert last.startswith("No image of the class 'dog' can be used (6 of 6: it is text")
    assert last.endswith("or remove the class.")
    assert "Backbone" not in ran.output
    assert "Traceback" not in ran.output


def test_a_thousand_classes_go_through_a_whole_training(workplace: Workplace, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {f"part {number:04}": 3 for number in range(1000)}, px=8)
    ran = workplace.run("train", "data=folder", f"data.path={tmp_path / 'images'}", *TINY, "trainer.max_epochs=1")
    assert ran.code == 0, ran.output
    tested = 1000 - int(re.findall(r"([\d,]+) x none in test|$", ran.output)[0] or 0)
    assert len([name for name in ran.result["metrics"] if name.startswith("recall/")]) == tested
    assert "images: 1,000 classes" in ran.output
    assert "1,000 classes with few images: 3 images, fewer than 10 (first: part 0000)" in " ".join(ran.output.split())
    assert len(ran.output) < 8_000, "no table and no sentence names all classes"
    assert (ran.directory / "report.html").stat().st_size < 2e6


def test_small_images_are_seen_at_a_smaller_size_which_a_resume_keeps(workplace: Workplace, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    arguments = ["data=folder", f"data.path={tmp_path / 'images'}", *TINY, "backbone.image_size=auto"]
    ran = workplace.run("train", *arguments)
    assert ran.code == 0, ran.output
    assert "images are at most 16 px wide or high: the network sees them at 96 px, not at its own 160 px" in ran.output
    config = json.loads((ran.directory / "bundle" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 96, 96]
    resumed = workplace.run("train", f"train.resume={ran.result['run_id']}", "trainer.max_epochs=3")
    assert resumed.code == 0, resumed.output
    assert "the network sees them at 96 px" in resumed.output
