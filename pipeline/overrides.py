"""What the user typed, checked against the configuration before anything heavy starts: all mistakes at once."""

import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from graftline.backbones import catalog
from graftline.errors import UserError
from pipeline.gather import LIST, chooses_backbone, gather, size_by_name

CONF = Path(__file__).resolve().parent.parent / "conf"
FREE = "backbone.options."  # what stands below is the network's own; Backbone.check() knows which keys there are
NEAR = 0.6  # similarity, 0 to 1, from which on a name is worth suggesting


def from_makeflags(makeflags: str) -> list[str]:
    r"""Return the ``KEY=VALUE`` of make's command line, in the order typed; those in capitals are make's own.

    make hands them on in the environment variable MAKEFLAGS, behind a double dash, the last one first, with blanks and
    backslashes escaped and dollars doubled.

    >>> from_makeflags(r"s -- c=a\ b freeze.names=[x,y] PYTHON=python3.12 backbone=resnet18")
    ['backbone=resnet18', 'freeze.names=[x,y]', 'c=a b']
    """
    _, _, variables = f" {makeflags}".partition(" -- ")
    words, word, escaped = [], "", False
    for character in variables + " ":
        if escaped or character not in "\\ ":
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif word:
            words.append(word.replace("$$", "$"))
            word = ""
    return [word for word in reversed(words) if not word.partition("=")[0].isupper()]


def register_backbone(name: str) -> None:
    """Make one of timm's names an option of the group ``backbone``; Hydra copies all options often, so never all."""
    node = {"_target_": "graftline.backbones.backbone.Backbone", "name": name}
    ConfigStore.instance().store(group="backbone", name=name, node=node)


def _register_overlays_backbones() -> None:
    """Register the timm names that the files in conf/experiment and conf/debug override the backbone with."""
    for file in (*(CONF / "experiment").glob("*.yaml"), *(CONF / "debug").glob("*.yaml")):
        for name in re.findall(r"override /backbone: *([\w.]+)", file.read_text(encoding="utf-8")):
            if not (CONF / "backbone" / f"{name}.yaml").exists():
                register_backbone(name)


@dataclass(frozen=True)
class ValidatedOverrides:
    """Overrides without mistakes, as Hydra wants them, and whether they ask for several runs."""

    overrides: list[str]
    multirun: bool
    config: DictConfig  # of the first run


def check(stage: str, overrides: list[str]) -> ValidatedOverrides:
    """Check overrides against the configuration of a stage.

    Args:
        stage: name of a file at the root of conf/.
        overrides: as typed, in Hydra's grammar; a comma outside of brackets and quotes asks for several runs.

    Raises:
        UserError: lists every mistake, each with its key and the nearest right name.
    """
    _register_overlays_backbones()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            checked = _Check(stage).run(overrides)
            return checked if LIST not in checked.config else _in_one_run(stage, overrides, checked)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(_list_mistakes([_one_line(error)])) from error


def _in_one_run(stage: str, overrides: list[str], checked: ValidatedOverrides) -> ValidatedOverrides:
    """Give a stage that compares backbones all that were chosen, or those of its file, as one list."""
    if chooses_backbone(overrides):
        lines = [*gather(stage, checked.overrides), "++by_stage=true"]
    else:
        sizes = size_by_name(checked.config[LIST])
        checked = _Check(stage).run([*overrides, f"backbone={','.join(sizes)}"])
        lines = gather(stage, checked.overrides, sizes)
    parsed = OverridesParser.create().parse_overrides(lines)
    config = compose(stage, [_first_choice(override) for override in parsed])
    return ValidatedOverrides(lines, any(override.is_sweep_override() for override in parsed), config)


class _Check:
    """One check of the overrides of one stage; gathers mistakes on its way."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.mistakes: list[str] = []
        self.swept: set[str] = set()  # groups of which there are several choices
        self.loader = GlobalHydra.instance().config_loader()
        self.groups = set(self.loader.list_groups(""))

    def run(self, texts: list[str]) -> ValidatedOverrides:
        overrides = list(self._parse(texts))
        groups = [override for override in overrides if self._is_group(override)]
        good_groups = [override for override in groups if self._check_group(override)]
        config = compose(self.stage, [_first_choice(override) for override in good_groups])
        self.swept = {override.key_or_group for override in good_groups if override.is_sweep_override()}
        values = [full for override in overrides if override not in groups for full in self._in_full(config, override)]
        good_values = [line for override in values if (line := self._check_value(config, override)) is not None]
        good = [_line(override) for override in good_groups] + [line for _, line in good_values]
        self._check_other_choices(good_groups, values)
        if not self.mistakes:
            firsts = [_first_choice(override) for override in good_groups] + [first for first, _ in good_values]
            config = compose(self.stage, firsts)
        OmegaConf.to_container(config, resolve=True, throw_on_missing=False)  # an interpolation of nothing fails here
        self._check_nothing_missing(config, {override.key_or_group for override in values})
        if self.mistakes:
            raise UserError(_list_mistakes(self.mistakes))
        return ValidatedOverrides(good, any(override.is_sweep_override() for override in overrides), config)

    def _parse(self, texts: list[str]) -> Iterator[Override]:
        parser = OverridesParser.create(config_loader=self.loader)
        for text in texts:
            try:
                yield parser.parse_override(text)
            except HydraException:
                key, equals, value = text.partition("=")
                retried = quoted(key, value) if equals else text
                try:
                    yield parser.parse_override(retried)
                except HydraException:
                    self.mistakes.append(f"{text}: not of the form key=value, a list [a,b] or a mapping {{a:1,b:2}}")

    def _is_group(self, override: Override) -> bool:
        return override.key_or_group in self.groups

    def _check_group(self, override: Override) -> bool:
        group = override.key_or_group
        options = self.loader.get_group_options(group)
        unknown = [str(choice) for choice in _choices(override) if choice is not None and str(choice) not in options]
        if group == "backbone":
            timm_names = set(unknown) & set(catalog.names())
            for name in timm_names:
                register_backbone(name)
            unknown = [name for name in unknown if name not in timm_names]
        for name in unknown:
            near = _nearest(name, options) if group != "backbone" else _nearest_backbone(name)
            if group == "data" and Path(name).expanduser().exists():
                near = [f"data=folder data.path={name}"]
            self.mistakes.append(f"{group}={name}: no such {group}{_did_you_mean(near)}")
        return not unknown

    def _in_full(self, config: DictConfig, override: Override) -> Iterator[Override]:
        """Yield the override with the dotted key that a bare one stands for: ``phi`` for ``backbone.phi``.

        Yields nothing after noting that a bare key may stand for several.
        """
        key = override.key_or_group
        is_plain = not (override.is_add() or override.is_force_add() or override.is_delete())
        meant = []
        if is_plain and "." not in key and not _has(config, key) and key not in _parameters(config):
            meant = [dotted for dotted in _all_keys(config) if dotted.rpartition(".")[2] == key]
        if len(meant) > 1:
            self.mistakes.append(f"{_line(override)}: may be {' or '.join(meant)}; write the one that is meant")
        elif meant:
            yield from self._parse([f"{meant[0]}={_line(override).partition('=')[2]}"])
        else:
            yield override

    def _check_value(self, config: DictConfig, override: Override) -> tuple[str, str] | None:
        """Return the override for the first run and for Hydra, or None after noting a mistake."""
        key = override.key_or_group
        first, line = _first_choice(override), _line(override)
        if key.split(".")[0] == "hydra" or override.is_delete():
            return first, line
        parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
        name = key.rpartition(".")[2]
        parameters = _parameters(parent)
        if _becomes_text(parameters.get(name), override.value()):  # a data set called 2024
            first = line = quoted(key, str(override.value()))
        is_everywhere = _has(parent, name) and key.split(".")[0] not in self.swept
        if not override.is_add() and not override.is_force_add() and not is_everywhere:
            if name not in parameters and not _has(parent, name) and not key.startswith(FREE):
                self.mistakes.append(f"{_line(override)}: no such key{_did_you_mean(_nearest(key, _all_keys(config)))}")
                return None
            # an argument of the target (or the network) that the file, or another choice's, leaves at its default
            first, line = f"++{first}", f"++{line}"
        wrong = [text for choice in _choices(override) if (text := _type_mistake(parameters.get(name), choice))]
        self.mistakes += [f"{key}={text}" for text in wrong]
        return None if wrong else (first, line)

    def _check_other_choices(self, groups: list[Override], values: list[Override]) -> None:
        """Note the keys of a group of several choices that not all of them have."""
        firsts = [_first_choice(override) for override in groups]
        for override in (override for override in groups if override.is_sweep_override()):
            group = override.key_or_group
            keys = [value.key_or_group for value in values if value.key_or_group.startswith(f"{group}.")]
            keys = [key for key in keys if not key.startswith(FREE)]
            for choice in override.sweep_string_iterator() if keys else ():
                config = compose(self.stage, [*firsts, f"{group}={choice}"])
                for parent, name in (key.rpartition(".")[::2] for key in keys):
                    node = OmegaConf.select(config, parent)
                    if name not in _parameters(node) and not _has(node, name):
                        self.mistakes.append(f"{parent}.{name}: {choice} has no such key")

    def _check_nothing_missing(self, config: DictConfig, given: set[str]) -> None:
        for key in sorted(OmegaConf.missing_keys(config) - given):
            self.mistakes.append(f"{key}: needed; make {self.stage} {key}=...")


def _list_mistakes(mistakes: list[str]) -> str:
    count = "A mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    return "\n".join([f"{count} in the configuration; nothing was started:", *(f"  {mistake}" for mistake in mistakes)])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _choices(override: Override) -> list[Any]:
    """Return the values an override gives, one per run; those of a range or an interval are not listed."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [item.text if isinstance(item, QuotedString) else item for item in value.list]
    return [] if isinstance(value, Sweep) else [value]


def _line(override: Override) -> str:
    line = override.input_line
    assert line is not None
    return line


def _first_choice(override: Override) -> str:
    """Return the override as the first of several runs has it."""
    if not override.is_sweep_override():
        return _line(override)
    key = _line(override).partition("=")[0]
    return f"{key}={next(iter(override.sweep_string_iterator()))}"


def quoted(key: str, value: str) -> str:
    """Return an override whose value is text: Hydra's grammar wants quotes around a tilde, an umlaut, a bracket.

    A list, a mapping and what has quotes already stay as they are.

    >>> quoted("data.path", "~/photos"), quoted("freeze.names", "[a")
    ("data.path='~/photos'", 'freeze.names=[a')
    """
    if not value or value[0] in "[{'\"":
        return f"{key}={value}"
    return "{}='{}'".format(key, value.replace("'", "\\'"))


def _becomes_text(hint: Any, value: Any) -> bool:
    """Tell whether a number was typed where text is wanted."""
    return isinstance(value, int | float) and not isinstance(value, bool) and hint in (str, str | None)


def _has(node: Any, name: str) -> bool:
    if isinstance(node, DictConfig):
        return name in node or OmegaConf.is_missing(node, name)
    return name.isdigit() and OmegaConf.is_list(node) and int(name) < len(node)


def _parameters(node: Any) -> dict[str, Any]:
    """Return the parameters, name to type, of what the node's ``_target_`` names; empty where it names nothing."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return {}
    return dict(_signature(node["_target_"]))


@functools.cache
def _signature(path: str) -> dict[str, Any]:
    target = get_object(path)
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # types that exist for a type checker only
        hints = {}
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def _type_mistake(hint: Any, value: Any) -> str | None:
    """Say how ``value`` is not of the type ``hint``, or return None."""
    if hint is None or (isinstance(value, str) and "${" in value):
        return None
    try:
        is_right = _is_same_kind(value, _adapter(hint).validate_python(value))
    except (ValidationError, SchemaError):  # SchemaError: a protocol, which no plain value fulfils
        is_right = isinstance(value, dict)
    return None if is_right else f"{value}: must be {_type_name(hint)}"


def _adapter(hint: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True))
    except PydanticUserError:  # it has a configuration of its own: a dataclass or typed dict
        return TypeAdapter(hint)


def _is_same_kind(value: Any, validated: Any) -> bool:
    """Tell whether pydantic took the value for what it is: it would also take "no" for false and 16.0 for 16."""
    if isinstance(value, bool) or isinstance(validated, bool):
        return type(value) is type(validated)
    if isinstance(validated, float):
        return isinstance(value, int | float)
    if isinstance(validated, int):
        return isinstance(value, int)
    return True


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(str(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_name(item) for item in arguments))
    if arguments:
        return str(hint).replace("typing.", "").replace("collections.abc.", "")
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _all_keys(config: DictConfig) -> list[str]:
    """Return the dotted keys of a configuration, those included that its targets know but its files leave out."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        names = dict.fromkeys([*(str(name) for name in node), *_parameters(node)])
        for name in names:
            if name.startswith("_"):
                continue
            yield prefix + name
            child = None if OmegaConf.is_missing(node, name) else node.get(name)
            if isinstance(child, DictConfig):
                yield from walk(child, f"{prefix}{name}.")

    return list(walk(config, ""))


def _nearest(wrong: str, right: list[str]) -> list[str]:
    """Return the right names that are nearly as near as the nearest, at most three; none where none is near."""
    nearness = sorted(((_nearness(wrong, name), name) for name in right), key=lambda item: (-item[0], item[1]))
    best = nearness[0][0] if nearness else 0.0
    return [name for score, name in nearness[:3] if score >= max(NEAR, best - 0.05)]


def _nearness(wrong: str, right: str) -> float:
    """Return 0 to 1; the right name in the wrong group counts as very near."""
    whole = difflib.SequenceMatcher(None, wrong, right).ratio()
    last = difflib.SequenceMatcher(None, wrong.rpartition(".")[2], right.rpartition(".")[2]).ratio()
    return max(whole, last - 0.05)


def _nearest_backbone(wrong: str) -> list[str]:
    own = [file.stem for file in (CONF / "backbone").glob("*.yaml")]
    return list(dict.fromkeys([*difflib.get_close_matches(wrong, own, cutoff=0.8), *catalog.suggest(wrong)]))[:3]


def _did_you_mean(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""
