"""Resolve: which key of the configuration an override means, and how Hydra wants it written."""

from collections.abc import Container, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from graftline.pipeline.cli.by_class import BY_CLASS
from graftline.pipeline.cli.mistakes import MistakeError, did_you_mean, nearest
from graftline.pipeline.cli.parameters import all_keys, has_key, parameters, takes
from graftline.pipeline.cli.parse import as_by_class, as_list, as_sentence, as_text, line, parse

FREE = "backbone.options."  # what stands below is the network's own; Backbone.check() knows which keys there are
SENTENCES = {  # arguments that take a sentence, or a shell's command: commas are part of it
    "graftline.data.ingest.Ingest.license",
    "graftline.pipeline.promote.Promote.force",
    "graftline.pipeline.retraining.notify.Notify.command",
    "graftline.pipeline.rollback.Rollback.reason",
}
DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")  # of Hydra's own keys, those that we follow


def resolve(config: DictConfig, override: Override, swept: Container[str] = ()) -> Override:
    """Return the override of a value with its full key, and with quotes and ``++`` where Hydra wants them.

    Args:
        config: the stage's configuration with the groups that were chosen.
        override: as typed.
        swept: groups of which there are several choices.

    Raises:
        MistakeError: there is no such key, or a bare key stands for several.
    """
    if override.is_delete() or override.key_or_group in DIRECTORIES:
        return override
    is_added = override.is_add() or override.is_force_add()
    if not is_added and "." not in override.key_or_group and not takes(config, override.key_or_group):
        override = _in_full(config, override)
    key, (node, name) = override.key_or_group, parent(config, override.key_or_group)
    hint = parameters(node).get(name)
    if hint is not None and f"{node['_target_']}.{name}" in SENTENCES:
        override = as_sentence(override)
    if key in BY_CLASS:
        override = as_by_class(override)
    elif hint in (str, str | None):  # a data set called 2024_01
        override = as_text(override)
    elif (element := _element_type(hint)) is not None:
        override = as_list(override, of_text=element is str)
    if is_added or (has_key(node, name) and key.split(".")[0] not in swept):
        return override
    if not takes(node, name) and not key.startswith(FREE):
        raise MistakeError(f"{line(override)}: no such key{did_you_mean(nearest(key, all_keys(config)))}")
    # an argument of the target (or the network) that the file, or another choice's, leaves at its default
    return parse(f"++{line(override)}")


def _element_type(hint: Any) -> Any:
    """Return what a sequence of any length holds, None where a type is no such sequence, or takes one alone as well.

    >>> _element_type(Sequence[str] | None), _element_type(str), _element_type(tuple[float, float])
    (<class 'str'>, None, None)
    >>> _element_type(list[int] | str | int)  # Trainer.devices: [2] is the third, 2 is two of them
    """
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for one in choices:
        if get_origin(one) in (Sequence, list):
            element = get_args(one)[0]
            return None if element in choices else element
    return None


def parent(config: DictConfig, key: str) -> tuple[Any, str]:
    """Return the node that a dotted key is in, None where there is no such node, and the key's last part."""
    path, _, name = key.rpartition(".")
    return OmegaConf.select(config, path) if path else config, name


def _in_full(config: DictConfig, override: Override) -> Override:
    """Return the override with the dotted key that a bare one stands for: ``phi`` for ``backbone.phi``."""
    meant = [key for key in all_keys(config) if key.rpartition(".")[2] == override.key_or_group]
    if len(meant) > 1:
        raise MistakeError(f"{line(override)}: may be {' or '.join(meant)}; write the one that is meant")
    return parse(f"{meant[0]}={line(override).partition('=')[2]}") if meant else override
