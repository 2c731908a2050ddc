"""Small real inputs that more than one room uses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftline.console import show_log

COLORS = {"blue": (40, 60, 200), "green": (60, 180, 70), "red": (210, 50, 40)}


def paint(color: tuple[int, int, int], seed: int, size: int = 40) -> Image.Image:
    """Return a noisy square of one color."""
    noise = np.random.default_rng(seed).normal(0, 40, (size, size, 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes with 20 images each, which any network learns at once."""
    root = tmp_path_factory.mktemp("colors")
    for number, (name, color) in enumerate(COLORS.items()):
        (root / name).mkdir()
        for index in range(20):
            paint(color, 100 * number + index).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(autouse=True)
def _no_make_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run under `make test`; what they start must not take its variables for its own."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _log_in_terminal() -> None:
    """Tests read what a user would see."""
    show_log()
