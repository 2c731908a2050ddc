"""Resolve: which key of the configuration an override means, and how Hydra wants it written."""

from collections.abc import Container
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.mistakes import MistakeError, did_you_mean, nearest
from pipeline.cli.parameters import all_keys, has_key, parameters
from pipeline.cli.parse import line, parse, quoted

FREE = "backbone.options."  # what stands below is the network's own; Backbone.check() knows which keys there are
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")  # of Hydra's own keys, those that we follow


def resolve(config: DictConfig, override: Override, swept: Container[str] = ()) -> Override:
    """Return an override with its full key, quotes around text that looks like a number, and ``++`` where needed.

    Args:
        config: the stage's configuration with the groups that were chosen.
        override: of a value, not of a group.
        swept: groups of which there are several choices.

    Raises:
        MistakeError: there is no such key, or a bare key stands for several.
    """
    override = _in_full(config, override)
    key, text = override.key_or_group, line(override)
    if override.is_delete() or key in DIRECTORIES:
        return override
    node, name = parent(config, key), key.rpartition(".")[2]
    if _becomes_text(parameters(node).get(name), override.value()):  # a data set called 2024
        override = parse(quoted(*text.partition("=")[::2]))
    is_everywhere = has_key(node, name) and key.split(".")[0] not in swept
    if is_everywhere or override.is_add() or override.is_force_add():
        return override
    if name not in parameters(node) and not has_key(node, name) and not key.startswith(FREE):
        raise MistakeError(f"{text}: no such key{did_you_mean(nearest(key, all_keys(config)))}")
    # an argument of the target (or the network) that the file, or another choice's, leaves at its default
    return parse(f"++{line(override)}")


def parent(config: DictConfig, key: str) -> Any:
    """Return the node that a dotted key is in, None where there is no such node."""
    return OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config


def _in_full(config: DictConfig, override: Override) -> Override:
    """Return the override with the dotted key that a bare one stands for: ``phi`` for ``backbone.phi``."""
    key = override.key_or_group
    is_plain = not (override.is_add() or override.is_force_add() or override.is_delete())
    if not is_plain or "." in key or has_key(config, key) or key in parameters(config):
        return override
    meant = [dotted for dotted in all_keys(config) if dotted.rpartition(".")[2] == key]
    if len(meant) > 1:
        raise MistakeError(f"{line(override)}: may be {' or '.join(meant)}; write the one that is meant")
    return parse(f"{meant[0]}={line(override).partition('=')[2]}") if meant else override


def _becomes_text(hint: Any, value: Any) -> bool:
    """Tell whether a number was typed where text is wanted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and hint in (str, str | None)
