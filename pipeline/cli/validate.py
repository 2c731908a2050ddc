"""Validate: overrides against the configuration of a stage, before anything heavy starts: all mistakes at once."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from pipeline.cli.hydra_conf import CONF, compose_config, config_loader, register_backbone
from pipeline.cli.mistakes import MistakeError, collect, did_you_mean, nearest, refusal
from pipeline.cli.parameters import has_key, parameters, wanted_type
from pipeline.cli.parse import expand, first_job, line, parse, values
from pipeline.cli.resolve import FREE, parent, resolve


@dataclass(frozen=True)
class ValidatedOverrides:
    """Overrides without mistakes, with full keys, those of groups first, and the configuration of the first job."""

    groups: list[Override]
    values: list[Override]
    config: DictConfig

    @property
    def overrides(self) -> list[str]:
        """All of them, as Hydra wants them."""
        return [line(override) for override in (*self.groups, *self.values)]

    @property
    def jobs(self) -> list[list[str]]:
        """The overrides of each job; several jobs where several values were given for a key."""
        return expand([*self.groups, *self.values])


def validate(stage: str, texts: Sequence[str], base: DictConfig | None = None) -> ValidatedOverrides:
    """Check overrides against the configuration of a stage; within a session of Hydra.

    Args:
        stage: name of a file at the root of conf/.
        texts: as typed, in Hydra's grammar; a comma outside of brackets and quotes asks for several runs.
        base: check the keys of values against this configuration, whatever groups are chosen.

    Raises:
        UserError: lists every mistake, each with its key and the nearest right name.
    """
    parsed, mistakes = collect(parse, texts)
    known = set(config_loader().list_groups(""))
    groups, wrong = collect(_check_group, (override for override in parsed if override.key_or_group in known))
    mistakes += wrong
    config = compose_config(stage, first_job(groups)) if base is None else base
    swept = {override.key_or_group for override in groups if override.is_sweep_override()}
    typed = [override for override in parsed if override.key_or_group not in known]
    resolved, wrong = collect(lambda override: _check_value(config, resolve(config, override, swept)), typed)
    mistakes += wrong
    mistakes += _missing_in_other_choices(stage, groups, resolved)
    if base is None and not mistakes:
        config = compose_config(stage, first_job([*groups, *resolved]))
    OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # an interpolation of nothing fails here
    given = {override.key_or_group for override in typed}
    mistakes += [f"{key}: needed; make {stage} {key}=..." for key in sorted(OmegaConf.missing_keys(config) - given)]
    if mistakes:
        raise refusal(mistakes)
    return ValidatedOverrides(groups, resolved, config)


def _check_group(override: Override) -> Override:
    """Return the override of a group if it has all choices that are named; timm's names become backbones."""
    group = override.key_or_group
    options = config_loader().get_group_options(group)
    unknown = [str(choice) for choice in values(override) if choice is not None and str(choice) not in options]
    if unknown and group == "backbone":
        from graftline.backbones import catalog  # timm takes seconds

        timm_names = set(unknown) & set(catalog.names())
        for name in timm_names:
            register_backbone(name)
        unknown = [name for name in unknown if name not in timm_names]
    if unknown:
        raise MistakeError(*(f"{group}={name}: no such {group}{_suggestion(group, name, options)}" for name in unknown))
    return override


def _suggestion(group: str, wrong: str, options: list[str]) -> str:
    if group == "data" and Path(wrong).expanduser().exists():
        return did_you_mean([f"data=folder data.path={wrong}"])
    if group != "backbone":
        return did_you_mean(nearest(wrong, options))
    from graftline.backbones import catalog

    own = [file.stem for file in (CONF / "backbone").glob("*.yaml")]
    return did_you_mean(
        list(dict.fromkeys([*difflib.get_close_matches(wrong, own, cutoff=0.8), *catalog.suggest(wrong)]))[:3]
    )


def _check_value(config: DictConfig, override: Override) -> Override:
    """Return the override of a value if it is of the type that the target's parameter has."""
    key = override.key_or_group
    if override.is_delete():
        return override
    hint = parameters(parent(config, key)).get(key.rpartition(".")[2])
    wanted = [(value, wanted_type(hint, value)) for value in values(override)]
    if wrong := [f"{key}={value}: must be {words}" for value, words in wanted if words is not None]:
        raise MistakeError(*wrong)
    return override


def _missing_in_other_choices(stage: str, groups: list[Override], resolved: list[Override]) -> list[str]:
    """Return the mistakes of keys of a group of several choices that not all of these have."""
    mistakes = []
    for group in (override.key_or_group for override in groups if override.is_sweep_override()):
        keys = [override.key_or_group for override in resolved if override.key_or_group.startswith(f"{group}.")]
        keys = [key for key in keys if not key.startswith(FREE)]
        sweep = next(override for override in groups if override.key_or_group == group)
        for choice in sweep.sweep_string_iterator() if keys else ():
            config = compose_config(stage, [*first_job(groups), f"{group}={choice}"])
            for key in keys:
                node, name = parent(config, key), key.rpartition(".")[2]
                if name not in parameters(node) and not has_key(node, name):
                    mistakes.append(f"{key}: {choice} has no such key")
    return mistakes
