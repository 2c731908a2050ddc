"""Validate: overrides against the configuration of a stage, before anything heavy starts: all mistakes at once."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from graftline.backbones import catalog
from graftline.pipeline.cli.hydra_conf import CONF, compose_config, config_loader, register, stage_groups
from graftline.pipeline.cli.mistakes import MistakeError, collect, did_you_mean, nearest, refusal
from graftline.pipeline.cli.parameters import parameters, takes, wanted_type
from graftline.pipeline.cli.parse import expand, line, parse, values
from graftline.pipeline.cli.resolve import FREE, parent, resolve
from graftline.pipeline.program import ADDRESSES, program
from graftline.tracking.uri import without_password


@dataclass(frozen=True)
class ValidatedOverrides:
    """Overrides without mistakes, as Hydra wants them, and the configuration of the first job."""

    groups: list[Override]
    values: list[Override]
    config: DictConfig

    @property
    def overrides(self) -> list[Override]:
        """All of them, those of groups first."""
        return [*self.groups, *self.values]

    @property
    def jobs(self) -> list[list[str]]:
        """The overrides of each job: several jobs where several values were given for a key."""
        return expand(self.overrides)


def validate(stage: str, texts: Sequence[str], base: DictConfig | None = None) -> ValidatedOverrides:
    """Check overrides against the configuration of a stage; within a session of Hydra.

    Args:
        stage: name of a file at the root of conf/.
        texts: as typed, in Hydra's grammar; a comma outside of brackets and quotes asks for several runs.
        base: check values against this configuration, whatever groups are chosen.

    Raises:
        UserError: lists every mistake, each with its key and the nearest right name.
    """
    if stage == "verify":  # graftline verify http://127.0.0.1:5001
        texts = [f"bundle={text}" if text.startswith(ADDRESSES) else text for text in texts]
    open_texts, secrets = collect(_require_no_password, texts)
    parsed, mistakes = collect(parse, open_texts)
    mistakes += secrets
    known = set(config_loader().list_groups(""))
    typed = [override for override in parsed if override.key_or_group not in known]
    groups, wrong_groups = collect(partial(_check_group, stage), (o for o in parsed if o.key_or_group in known))
    config = base if base is not None else compose_config(stage, expand(groups)[0])
    swept = {override.key_or_group for override in groups if override.is_sweep_override()}
    checked, wrong_values = collect(lambda override: _check_value(config, resolve(config, override, swept)), typed)
    mistakes += [*wrong_groups, *wrong_values, *_missing_in_other_choices(stage, groups, checked)]
    if base is None and not mistakes:
        config = compose_config(stage, expand([*groups, *checked])[0])
    OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # an interpolation of nothing fails here
    missing = OmegaConf.missing_keys(config) - {override.key_or_group for override in typed}
    mistakes += [f"{key}: needed; {program()} {stage} {key}=..." for key in sorted(missing)]
    if mistakes:
        raise refusal(mistakes)
    return ValidatedOverrides(groups, checked, config)


def _require_no_password(text: str) -> str:
    """Return what was typed if it is no address of a tracking server with a password, which files would keep."""
    if re.match(r"\+*(tracking\b|uri=)", text) and without_password(text) != text:
        raise MistakeError(
            f"{text.partition('=')[0].lstrip('+')}: a password in an address is kept in files and shown in lists of "
            "processes; leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD of "
            "a PostgreSQL"
        )
    return text


def _check_group(stage: str, override: Override) -> Override:
    """Return the override of a group if it has all choices that are named; timm's names become choices.

    A group that the stage does not have by itself, as one in a user's folder, is added to it.
    """
    group = override.key_or_group
    options = config_loader().get_group_options(group)
    unknown = [str(choice) for choice in values(override) if choice is not None and str(choice) not in options]
    unknown = _register_timms(group, unknown)
    if unknown:
        raise MistakeError(*(f"{group}={name}: no such {group}{_suggestion(group, name, options)}" for name in unknown))
    is_as_hydra_wants = override.is_add() or override.is_force_add() or override.is_delete()
    if is_as_hydra_wants or (CONF / group).is_dir() or group in stage_groups(stage):
        return override
    return parse(f"+{line(override)}")


def _suggestion(group: str, wrong: str, options: list[str]) -> str:
    near = nearest(wrong, options)
    if group == "data" and Path(wrong).expanduser().exists():
        near = [f"data={data_option(Path(wrong).expanduser())} data.path={wrong}"]
    elif group == "backbone":
        timms = set(catalog.names())  # of which there are too many to come before those that have a file
        own = [name for name in options if name not in timms or (CONF / group / f"{name}.yaml").exists()]
        near = list(dict.fromkeys([*difflib.get_close_matches(wrong, own, cutoff=0.8), *catalog.suggest(wrong)]))[:3]
    elif group == "optim":
        from graftline.training import optimizers  # as above

        near = nearest(wrong.lower(), {*options, *optimizers.names()})
    return did_you_mean(near)


def _register_timms(group: str, names: list[str]) -> list[str]:
    """Make those of some names that are timm's options of ``backbone`` or ``optim``, and return the others.

    Raises:
        MistakeError: timm has such an optimizer, but a fit cannot have it.
    """
    if not names or group not in ("backbone", "optim"):
        return names
    if group == "backbone":
        known = set(names) & set(catalog.names())
    else:
        from graftline.training import optimizers  # with timm and torch, which a mistyped key must not wait for

        known = set(names) & set(optimizers.names())
        if refused := [f"optim={name}: {reason}" for name in sorted(known) if (reason := optimizers.refusal(name))]:
            raise MistakeError(*refused)
    for name in known:
        register(group, name)
    return [name for name in names if name not in known]


def data_option(path: Path) -> str:
    """Return the option of ``data`` that reads what lies at a path: folder, table or archive."""
    from graftline.data.sources.source import TABLE_SUFFIXES  # with pandas, which a mistyped key must not wait for

    if path.suffix.lower() in TABLE_SUFFIXES:
        return "table"
    return "archive" if path.is_file() else "folder"


def _check_value(config: DictConfig, override: Override) -> Override:
    """Return the override of a value if it is of the type that the target's parameter has."""
    key = override.key_or_group
    node, name = parent(config, key)
    hint = None if override.is_delete() else parameters(node).get(name)
    wanted = [(value, wanted_type(hint, value)) for value in values(override)]
    if wrong := [f"{key}={value}: must be {words}" for value, words in wanted if words is not None]:
        raise MistakeError(*wrong)
    return override


def _missing_in_other_choices(stage: str, groups: list[Override], checked: list[Override]) -> Iterator[str]:
    """Yield the mistakes of keys of a group of several choices that not all of these have."""
    for group in (override for override in groups if override.is_sweep_override()):
        keys = [override.key_or_group for override in checked if not override.key_or_group.startswith(FREE)]
        keys = [key for key in keys if key.startswith(f"{group.key_or_group}.")]
        for choice in group.sweep_string_iterator() if keys else ():
            config = compose_config(stage, [*expand(groups)[0], f"{group.key_or_group}={choice}"])
            yield from (f"{key}: {choice} has no such key" for key in keys if not takes(*parent(config, key)))
