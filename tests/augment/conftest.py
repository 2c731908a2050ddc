from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from skimage import data

from graftline.augment.policy import Policy

CONF = Path(__file__).parents[2] / "conf"

LoadPolicy = Callable[..., Policy]


@pytest.fixture(scope="session")
def load_policy() -> LoadPolicy:
    """Return a function that composes and instantiates a policy of conf/augment as a stage does."""

    def load(name: str, *overrides: str) -> Policy:
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(f"augment/{name}", overrides=list(overrides))
        policy = instantiate(config.augment, _convert_="all")
        assert isinstance(policy, Policy)
        return policy

    return load


@pytest.fixture(scope="session")
def cat() -> np.ndarray:
    """Return a photograph, (300, 451, 3) uint8."""
    return np.array(data.chelsea())
