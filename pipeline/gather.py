"""Several backbones for one run, where a stage compares them: Hydra itself would make a run of each."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

GROUP, LIST = "backbone", "backbones"


def chooses_backbone(texts: Sequence[str]) -> bool:
    """Tell whether the overrides name a backbone."""
    return any(text.startswith(f"{GROUP}=") for text in texts)


def size_by_name(entries: Sequence[str]) -> dict[str, int | None]:
    """Take the image sizes out of a stage's own list of backbones.

    >>> size_by_name(["resnet50", "efficientnet_b4@380"])
    {'resnet50': None, 'efficientnet_b4': 380}
    """
    parts = (entry.partition("@") for entry in entries)
    return {name: int(size) if size.isdecimal() else None for name, _, size in parts}


def gather(stage: str, lines: Sequence[str], sizes: Mapping[str, int | None] | None = None) -> list[str]:
    """Turn ``backbone=a,b backbone.image_size=224`` into ``~backbone backbones=[{...},{...}]``, one run's overrides.

    Args:
        stage: name of a file at the root of conf/, with the group ``backbone`` and the key ``backbones``.
        lines: checked overrides. Of several values for several keys of the backbone, every combination is a backbone;
            one that comes twice is taken once.
        sizes: image sizes in px by backbone, of those whose file or override says none.
    """
    overrides = OverridesParser.create().parse_overrides(list(lines))
    own = [override for override in overrides if override.key_or_group.split(".")[0] == GROUP]
    others = [
        str(override.input_line) for override in overrides if override not in own and override.key_or_group != LIST
    ]
    nodes: list[Any] = [
        OmegaConf.to_container(compose(stage, list(choice))[GROUP], resolve=True)
        for choice in itertools.product(*map(_choices, own))
    ]
    for node in nodes:
        if (size := (sizes or {}).get(node["name"])) is not None:
            node.setdefault("image_size", size)
    unique = list(dict.fromkeys(map(_literal, nodes)))
    return [*others, f"~{GROUP}", f"{LIST}=[{','.join(unique)}]"]


def _choices(override: Override) -> list[str]:
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    key = line.partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _literal(value: Any) -> str:
    r"""Write a value in Hydra's grammar.

    >>> _literal([{"name": "it's", "size": 224, "file": None, "fast": True}])
    "[{name:'it\\'s',size:224,file:null,fast:true}]"
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
