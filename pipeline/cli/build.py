"""Build: a composed configuration becomes the stage that it describes."""

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from graftline.pipeline.stage import Stage

NO_PARTS = ("experiment", "debug", "weights")  # nodes of no stage: overlays, and values that others refer to


def build(config: DictConfig) -> Stage:
    """Instantiate the stage that a configuration describes."""
    nodes = OmegaConf.to_container(config, resolve=True)
    assert isinstance(nodes, dict)
    stage: Stage = instantiate({key: node for key, node in nodes.items() if key not in NO_PARTS}, _convert_="all")
    return stage
