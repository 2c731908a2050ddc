"""A window of images beside what a model was judged on, as a user asks for it."""

from collections.abc import Callable

import pytest
from drifting import blur, make_model, paint_all
from workplace import Workplace


@pytest.fixture(scope="module")
def place(make_workplace: Callable[[str], Workplace]) -> Workplace:
    """With a model, images like those that judged it, and blurred ones."""
    place = make_workplace("drift")
    make_model(place.root)
    blur(paint_all(place.root / "same", range(1000, 1100)), place.root / "blurred")
    return place


def test_images_like_those_of_the_training_are_no_drift(place: Workplace) -> None:
    ran = place.run("drift", "model=./bundle", "images=same")
    assert ran.code == 0, ran.output
    assert ran.result["outcome"] == "no drift", ran.output


def test_blurred_images_are(place: Workplace) -> None:
    ran = place.run("drift", "model=./bundle", "images=blurred")
    assert ran.code == 0, ran.output
    assert ran.result["outcome"] == "drift"
