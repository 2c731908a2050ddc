"""Resume: a run goes on with the configuration that it had, and with little of what is typed now."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from graftline.errors import UserError
from pipeline.cli.hydra_conf import compose_config
from pipeline.cli.mistakes import collect
from pipeline.cli.parse import first_job, line, parse
from pipeline.cli.resolve import resolve
from pipeline.cli.validate import ValidatedOverrides, validate

# What may differ from the run that is resumed. Everything else is in the checkpoint, or would make what follows a
# different training under the old one's name.
CHANGEABLE = ("train.resume", "train.workers", "trainer.max_epochs", "trainer.devices", "evaluation", "tracking")


def resumed_directory(stage: str, texts: Sequence[str]) -> Path | None:
    """Return the output directory of the run that ``train.resume`` names, or None if it names none.

    Raises:
        UserError: there is no such run, or its directory is not on this machine.
    """
    if not any("resume=" in text for text in texts):
        return None
    overrides, _ = collect(parse, texts)
    overrides, _ = collect(partial(resolve, compose_config(stage, [])), overrides)
    where = [line(override) for override in overrides if override.key_or_group.startswith(("train.resume", "tracking"))]
    config = validate(stage, where).config
    run_id = OmegaConf.select(config, "train.resume")
    return None if run_id is None else instantiate(config.tracking).find_output_directory(run_id)


def resume(stage: str, texts: Sequence[str], directory: Path) -> tuple[DictConfig, list[str]]:
    """Return configuration and overrides of the run in ``directory``, with the changes that were typed.

    Raises:
        UserError: the changes would make it another run, or there is nothing left to do.
    """
    stored = OmegaConf.load(directory / ".hydra" / "config.yaml")
    lines: list[str] = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    assert isinstance(stored, DictConfig)
    checked = validate(stage, texts, base=stored)
    if len(checked.jobs) > 1:
        raise UserError("One run can be resumed at a time: give each key one value.")
    config = _changed(stored, checked, compose_config(stage, first_job(checked.groups)), lines)
    result, max_epochs = directory / "result.json", config.trainer.max_epochs
    done = json.loads(result.read_text(encoding="utf-8"))["epochs"] if result.exists() else 0
    if done > 0 and (max_epochs is None or done >= max_epochs):
        raise UserError(f"The run is finished after {done} epochs: give it more with trainer.max_epochs={2 * done}.")
    return config, list({text.partition("=")[0].lstrip("+"): text for text in (*lines, *checked.overrides)}.values())


def _changed(stored: DictConfig, checked: ValidatedOverrides, today: DictConfig, lines: Sequence[str]) -> DictConfig:
    """Return the stored configuration with what was typed, where that may change.

    Args:
        stored: configuration of the run.
        checked: what was typed.
        today: the configuration whose groups are those typed.
        lines: overrides of the run.
    """
    given: list[tuple[Override, Any]] = [(group, today.get(group.key_or_group)) for group in checked.groups]
    given += [(override, override.value()) for override in checked.values]
    config, others = stored.copy(), []
    for override, value in given:
        key = override.key_or_group
        if any(f"{key}.".startswith(f"{changeable}.") for changeable in CHANGEABLE) and not override.is_delete():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        elif line(override) not in lines and (override.is_delete() or not _is_same(stored, key, value)):
            others.append(line(override).lstrip("+"))
    if others:
        raise UserError(
            f"A resumed run keeps its own settings, but {', '.join(others)} would change them: "
            f"leave that out, or start a new run (only {', '.join(CHANGEABLE[1:])} may change)."
        )
    return config


def _is_same(stored: DictConfig, key: str, value: Any) -> bool:
    nothing = object()
    return bool(OmegaConf.select(stored, key, default=nothing) == value)
