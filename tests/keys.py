"""The keys that the command line knows, of any stage and any choice."""

from functools import cache

from omegaconf import DictConfig

from graftline.pipeline.cli.hydra_conf import CONF, compose_config, session
from graftline.pipeline.cli.parameters import takes
from graftline.pipeline.cli.resolve import DIRECTORIES, parent

STAGES = sorted(file.stem for file in CONF.glob("*.yaml"))


@cache
def contexts() -> dict[str, list[DictConfig]]:
    """Return each stage's configuration, and that with choices that have keys of their own."""
    own = [*CONF.glob("data/*.yaml"), *CONF.glob("freeze/*.yaml"), *CONF.glob("decision/*.yaml")]
    own += [CONF / "backbone/efficientnet.yaml", CONF / "cluster/ray.yaml"]
    choices = [f"{file.parent.name}={file.stem}" for file in own if file.stem != "base"]
    found: dict[str, list[DictConfig]] = {}
    for stage in STAGES:
        with session(stage):
            found[stage] = [compose_config(stage, [])]
            found[stage] += [compose_config(stage, [choice]) for choice in choices if stage == "train"]
    return found


def exists(key: str) -> bool:
    """Tell whether a dotted key is one of a stage, with any choice, or a group."""
    return (CONF / key).is_dir() or any(is_key(config, key) for configs in contexts().values() for config in configs)


def is_key(config: DictConfig, key: str) -> bool:
    """Tell whether a dotted key is one of a configuration."""
    return key in DIRECTORIES or takes(*parent(config, key))
