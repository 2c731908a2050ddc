"""Several backbones for one run, where a stage compares them."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from graftline.pipeline.cli.hydra_conf import compose_config
from graftline.pipeline.cli.parameters import parameters
from graftline.pipeline.cli.parse import expand, line
from graftline.pipeline.cli.validate import ValidatedOverrides, validate

GROUP, LIST = "backbone", "backbones"


def gather(stage: str, texts: Sequence[str], checked: ValidatedOverrides) -> list[tuple[DictConfig, list[str]]]:
    """Return configuration and overrides of each run of a stage that compares backbones.

    Each run has all backbones that were named, or those of the stage's file, which may be none. Of several values for
    several keys of the
    backbone, every combination is one; what comes twice is taken once.

    Args:
        stage: name of a file at the root of conf/, with the group ``backbone`` and the key ``backbones``.
        texts: overrides as typed.
        checked: the same without mistakes.
    """
    are_named = any(override.key_or_group == GROUP for override in checked.groups)
    if not are_named and not checked.config[LIST]:
        return [(compose_config(stage, lines), lines) for lines in checked.jobs]
    sizes = {} if are_named else _size_by_name(checked.config[LIST])
    if not are_named:
        checked = validate(stage, [*texts, f"{GROUP}={','.join(sizes)}"])
    own = [override for override in checked.overrides if override.key_or_group.split(".")[0] == GROUP]
    jobs = []
    for others in expand(override for override in checked.overrides if override not in own):
        config = compose_config(stage, others)
        nodes = [_node(compose_config(stage, [*others, *choice]), sizes) for choice in expand(own)]
        with open_dict(config):
            config[LIST] = [node for number, node in enumerate(nodes) if node not in nodes[:number]]
            if GROUP in parameters(config):  # what it does without a comparison is done with the first
                config[GROUP] = nodes[0]
            else:
                del config[GROUP]
            if are_named and "by_stage" in parameters(config):
                config.setdefault("by_stage", True)
        jobs.append((config, [*others, *(line(override) for override in own if are_named)]))
    return jobs


def _node(config: DictConfig, sizes: dict[str, int | None]) -> DictConfig:
    """Return the backbone of a configuration, with the size of its name if it has none of its own."""
    node = OmegaConf.create(OmegaConf.to_container(config[GROUP], resolve=True))
    assert isinstance(node, DictConfig)
    if (size := sizes.get(node.name)) is not None:
        node.setdefault("image_size", size)
    return node


def _size_by_name(entries: Sequence[str]) -> dict[str, int | None]:
    """Take the image sizes out of a stage's own list of backbones.

    >>> _size_by_name(["resnet50", "efficientnet_b4@380"])
    {'resnet50': None, 'efficientnet_b4': 380}
    """
    parts = (entry.partition("@") for entry in entries)
    return {name: int(size) if size.isdecimal() else None for name, _, size in parts}
