"""Parse: each text that was typed becomes an override, and overrides of several values become several jobs."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from graftline.pipeline.cli.by_class import is_by_class, read_by_class
from graftline.pipeline.cli.hydra_conf import config_loader
from graftline.pipeline.cli.mistakes import MistakeError


def parse(text: str) -> Override:
    """Parse an override in Hydra's grammar; a value that the grammar does not take is text.

    Raises:
        MistakeError: it is no override.
    """
    parser = OverridesParser.create(config_loader=config_loader())
    key, equals, value = text.partition("=")
    for attempt in (text, quoted(key, value) if equals else text):
        try:
            return parser.parse_overrides([attempt])[0]
        except HydraException:
            continue
    raise MistakeError(f"{text}: not of the form key=value, a list [a,b] or a mapping {{a:1,b:2}}")


def quoted(key: str, value: str) -> str:
    """Return an override whose value is text: Hydra's grammar wants quotes around a tilde, an umlaut, a bracket.

    A list, a mapping and what has quotes already stay as they are; but one by classes is text until it is read.

    >>> quoted("data.path", "~/photos"), quoted("freeze.names", "[a"), quoted("recalls", "{Löß:0.9}")
    ("data.path='~/photos'", 'freeze.names=[a', "recalls='{Löß:0.9}'")
    """
    if value.startswith("{") and is_by_class(key):
        return f"{key}={in_quotes(value)}"
    return f"{key}={value}" if not value or value[0] in "[{'\"" else f"{key}={in_quotes(value)}"


def in_quotes(value: str) -> str:
    r"""Return text as a quoted value of Hydra's grammar, which unescapes quotes, and backslashes before a quote.

    >>> print(in_quotes("it's"), in_quotes("C:\\photos\\"))
    'it\'s' 'C:\photos\\'
    """
    escaped = re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def as_text(override: Override) -> Override:
    """Return the override of a key that takes text with the text that was typed, which Hydra may take for a number.

    What is quoted, null or refers to another key stays as it is. Of several values, each is taken so.
    """
    key, _, typed = line(override).partition("=")
    if any(character in typed for character in "'\"$") or (override.is_sweep_override() and "(" in typed):
        return override
    found = values(override)
    if all(value is None or isinstance(value, str) for value in found):
        return override
    parts = typed.split(",") if override.is_sweep_override() else [typed]
    return parse(f"{key}={','.join(part if part.strip() == 'null' else in_quotes(part.strip()) for part in parts)}")


def as_sentence(override: Override) -> Override:
    """Return the override of a key that takes a sentence with what was typed: a comma asks for no several runs."""
    key, _, typed = line(override).partition("=")
    return parse(f"{key}={in_quotes(typed)}") if override.is_sweep_override() else override


def as_by_class(override: Override) -> Override:
    """Return the override of a mapping by classes with the text that was typed, where Hydra takes a name for no text.

    Such as ``true``, ``1e3`` or ``null``. Several mappings stay as they are.
    """
    if override.is_sweep_override() or _has_text_names(override.value()):
        return override
    key, _, typed = line(override).partition("=")
    return parse(f"{key}={in_quotes(typed)}")


def _has_text_names(value: Any) -> bool:
    """Tell whether all names of a mapping, and of those in it, are text."""
    if not isinstance(value, dict):
        return True
    return all(isinstance(name, str) and _has_text_names(one) for name, one in value.items())


def as_list(override: Override, *, of_text: bool) -> Override:
    """Return the override of a key that takes a list with one: several values are its elements, not several runs.

    What is a list, null or refers to another key stays as it is; several lists are several runs.
    """
    key, _, typed = line(override).partition("=")
    if "$" in typed or (override.is_sweep_override() and "(" in typed):
        return override
    if not all(isinstance(one, str | int | float) for one in values(override)):
        return override
    typed = typed if override.is_sweep_override() else str(override.value())
    parts = [part.strip().strip("'\"") for part in typed.split(",")]
    return parse(f"{key}=[{','.join(in_quotes(part) if of_text else part for part in parts if part)}]")


def line(override: Override) -> str:
    """Return the override as text."""
    return str(override.input_line)


def values(override: Override) -> list[Any]:
    """Return the values that an override gives, one for each job.

    Raises:
        MistakeError: there are none, it is an interval, or a mapping by classes cannot be read.
    """
    found: list[Any]
    if override.is_interval_sweep():
        raise MistakeError(f"{line(override)}: an interval is no list of values; name some, with commas between")
    if override.is_sweep_override():
        found = [item.text if isinstance(item, QuotedString) else item for item in override.sweep_iterator()]
    else:
        found = [override.value()]
    if not found:
        raise MistakeError(f"{line(override)}: stands for no value")
    if is_by_class(override.key_or_group):
        return [read_by_class(one) if isinstance(one, str) and one.startswith("{") else one for one in found]
    return found


def expand(overrides: Iterable[Override]) -> list[list[str]]:
    """Return the overrides of each job: every combination of the values given; of the same key twice, the last."""
    last = {override.get_key_element(): override for override in overrides}
    return [list(job) for job in itertools.product(*map(_alternatives, last.values()))]


def _alternatives(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [line(override)]
    key = line(override).partition("=")[0]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
