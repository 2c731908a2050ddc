"""Mappings whose names are those of classes, which are any text: Hydra's grammar knows no quoted name, and no umlaut.

One that the grammar does not take as it is meant is an override with the mapping as quoted text, which becomes a
mapping once the configuration is composed.
"""

import re
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from graftline.pipeline.cli.mistakes import MistakeError

BY_CLASS = ("decision.recalls", "decision.costs")  # mappings whose names are any text, as those of classes are
_COLONS = re.compile(r"""([{,]\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'))|:""")  # outside of quoted names, which are the group


def is_by_class(key: str) -> bool:
    """Tell whether a key, which may be a bare one, takes a mapping whose names are those of classes."""
    return key.lstrip("+") in (*BY_CLASS, *(full.rpartition(".")[2] for full in BY_CLASS))


def read_by_class(text: str) -> dict[str, Any]:
    """Read a mapping by classes: YAML, in which a name is always text and needs no space behind its colon.

    Raises:
        MistakeError: it is none.

    >>> read_by_class('{Löß:0.9,true:0.8,1e3:0.7,"a, b":0.6}')
    {'Löß': 0.9, 'true': 0.8, '1e3': 0.7, 'a, b': 0.6}
    """
    try:
        found = yaml.BaseLoader(_COLONS.sub(lambda match: match[1] or ": ", text)).get_single_data()
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise MistakeError(f'{text}: no mapping such as {{a:0.9,"b, c":0.8}}: put quotes around a name with signs')
    return {name: _numbers(value) for name, value in found.items()}


def _numbers(value: Any) -> Any:
    """Return a value of such a mapping, or those of one in it, as numbers; what is none stays text."""
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def read_all_by_class(config: DictConfig) -> None:
    """Put mappings in the place of their texts into a composed configuration."""
    with open_dict(config):
        for key in BY_CLASS:
            text = OmegaConf.select(config, key)
            if isinstance(text, str) and text.startswith("{"):
                OmegaConf.update(config, key, read_by_class(text), merge=False)
