"""Several backbones for one job, where a stage compares them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.cli.hydra_conf import Job, compose_config, compose_job
from pipeline.cli.parse import expand, line
from pipeline.cli.validate import ValidatedOverrides, validate

GROUP, LIST = "backbone", "backbones"


def compares_backbones(config: DictConfig) -> bool:
    """Tell whether the stage of a configuration takes several backbones at once."""
    return LIST in config


def gather(stage: str, texts: Sequence[str], checked: ValidatedOverrides) -> Iterator[Job]:
    """Yield the jobs of a stage that compares backbones: each has all that were named, or those of the stage's file.

    Of several values for several keys of the backbone, every combination is a backbone; one that comes twice is taken
    once.

    Args:
        stage: name of a file at the root of conf/, with the group ``backbone`` and the key ``backbones``.
        texts: overrides as typed.
        checked: the same without mistakes.
    """
    are_named = any(override.key_or_group == GROUP for override in checked.groups)
    sizes = {} if are_named else _size_by_name(checked.config[LIST])
    if not are_named:
        checked = validate(stage, [*texts, f"{GROUP}={','.join(sizes)}"])
    overrides = [*checked.groups, *checked.values]
    own = [override for override in overrides if override.key_or_group.split(".")[0] == GROUP]
    for others in expand(override for override in overrides if override not in own):
        configs = [compose_config(stage, [*others, *choice]) for choice in expand(own)]
        nodes = [OmegaConf.to_container(config[GROUP], resolve=True) for config in configs]
        for node in nodes:
            assert isinstance(node, dict)
            if (size := sizes.get(node["name"])) is not None:
                node.setdefault("image_size", size)
        job = compose_job(stage, others)
        with open_dict(job.config):
            del job.config[GROUP]
            job.config[LIST] = [node for number, node in enumerate(nodes) if node not in nodes[:number]]
            if are_named:
                job.config.setdefault("by_stage", True)
        yield replace(job, overrides=[*others, *(line(override) for override in own if are_named)])


def _size_by_name(entries: Sequence[str]) -> dict[str, int | None]:
    """Take the image sizes out of a stage's own list of backbones.

    >>> _size_by_name(["resnet50", "efficientnet_b4@380"])
    {'resnet50': None, 'efficientnet_b4': 380}
    """
    parts = (entry.partition("@") for entry in entries)
    return {name: int(size) if size.isdecimal() else None for name, _, size in parts}
