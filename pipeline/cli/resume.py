"""Resume: a run goes on with the configuration that it had, and with little of what is typed now."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from graftline.errors import UserError
from graftline.pipeline.cli.hydra_conf import compose_config, expand_home
from graftline.pipeline.cli.mistakes import collect
from graftline.pipeline.cli.parse import expand, line, parse, values
from graftline.pipeline.cli.resolve import resolve
from graftline.pipeline.cli.validate import validate
from graftline.pipeline.cli.wording import worded
from graftline.pipeline.runs.directory import RunDirectory

# What may differ from the run that is resumed. Everything else is in the checkpoint, or would make what follows a
# different training under the old one's name. The decision is chosen when all is trained; activations are the same in
# another directory, and whether a training is on cached ones does not change with the room for them.
CHANGEABLE = (
    "train.resume",
    "train.workers",
    "trainer.max_epochs",
    "trainer.devices",
    "cluster",
    "features.max_gb",
    "features.directory",
    "evaluation",
    "decision",
    "tracking",
)
ABSENT = object()


def resumed_directory(stage: str, texts: Sequence[str]) -> Path | None:
    """Return the output directory of the run that ``train.resume`` names, or None if it names none.

    Raises:
        UserError: there is no such run, its directory is not on this machine, or another run has written there since.
    """
    if not any("resume=" in text for text in texts):
        return None
    overrides, _ = collect(parse, texts)
    overrides, _ = collect(partial(resolve, compose_config(stage, [])), overrides)
    where = [line(override) for override in overrides if override.key_or_group.startswith(("train.resume", "tracking"))]
    config = validate(stage, where).config
    run_id = OmegaConf.select(config, "train.resume")
    with worded(config):
        if run_id is None:
            return None
        directory: Path = instantiate(config.tracking).find_output_directory(run_id)
        RunDirectory(directory).check_is_of(run_id)
    return directory


def resume(stage: str, texts: Sequence[str], directory: Path) -> tuple[DictConfig, list[str]]:
    """Return configuration and overrides of the run in ``directory``, with the changes that were typed.

    Raises:
        UserError: the changes would make it another run, or there is nothing left to do.
    """
    files = RunDirectory(directory)
    config = OmegaConf.load(files.config)
    lines: list[str] = yaml.safe_load(files.overrides.read_text(encoding="utf-8"))
    assert isinstance(config, DictConfig)
    _start_by_ray(stage, config, [text for text in lines if text.startswith(("trainer", "cluster"))], texts)
    if typed := [text for text in texts if text in ("cluster=ray", "cluster=none")]:  # whose keys may follow
        config.cluster = compose_config(stage, typed).cluster
    checked = validate(stage, texts, base=config)
    if len(checked.jobs) > 1:
        raise UserError("One run can be resumed at a time: give each key one value.")
    today = compose_config(stage, expand(checked.groups)[0])
    given = [(override, today.get(override.key_or_group)) for override in checked.groups]
    given += [(override, expand_home(values(override)[0])) for override in checked.values]
    is_ensemble = "members" in config  # some of which may be finished, and get no more epochs
    changeable = [key for key in CHANGEABLE if key != "trainer.max_epochs" or not is_ensemble]
    changes = [(override, value) for override, value in given if _is_changeable(override, changeable)]
    others = [(override, value) for override, value in given if not _is_changeable(override, changeable)]
    if new := [line(override).lstrip("+") for override, value in others if _is_new(config, lines, override, value)]:
        raise UserError(
            f"A resumed run keeps its own settings, but {', '.join(new)} would change them: "
            f"leave that out, or start a new run (only {', '.join(changeable[1:])} may change)."
        )
    for override, value in changes:
        OmegaConf.update(config, override.key_or_group, value, merge=False, force_add=True)
    _check_unfinished(files, config.trainer.max_epochs, is_ensemble=is_ensemble)
    # the command that does the same again begins a new run
    lines += [line(override) for override in checked.overrides if override.key_or_group != "train.resume"]
    return config, list({text.partition("=")[0].lstrip("+"): text for text in lines}.values())


def _start_by_ray(stage: str, config: DictConfig, lines: Sequence[str], texts: Sequence[str]) -> None:
    """Let Ray start the processes, where it did and that is typed again: the configuration is that of one of them.

    Args:
        stage: as of `resume`.
        config: of the run, which is changed.
        lines: the run's overrides of the trainer and the cluster.
        texts: what is typed now.
    """
    from graftline.pipeline.cli.ray_training import STRATEGY  # which imports what imports this

    if not any(text in lines for text in texts if text.startswith("trainer=")):
        return
    begun = compose_config(stage, list(lines))
    if begun.trainer.get("strategy") == STRATEGY:
        for key in ("trainer.strategy", "trainer.devices", "cluster"):
            OmegaConf.update(config, key, OmegaConf.select(begun, key), merge=False, force_add=True)


def _check_unfinished(files: RunDirectory, max_epochs: int | None, *, is_ensemble: bool) -> None:
    """Raise a UserError where there is nothing left to do for the run in a directory."""
    if not (result := files.read_result()):
        return
    if is_ensemble:
        members = ",".join(str(member) for member in sorted(files.path.glob("members/*")))
        raise UserError(
            "The ensemble is finished: start a new one, which may average the same models"
            f"{f', runs={members}' if members else ''}."
        )
    done = result["epochs"]
    if max_epochs is None or done >= max_epochs:
        raise UserError(f"The run is finished after {done} epochs: give it more with trainer.max_epochs={2 * done}.")


def _is_changeable(override: Override, changeable: Sequence[str]) -> bool:
    is_told = any(f"{override.key_or_group}.".startswith(f"{key}.") for key in changeable)
    return is_told and not override.is_delete()


def _is_new(config: DictConfig, lines: Sequence[str], override: Override, value: Any) -> bool:
    """Tell whether an override would change what must stay: it is none of the run's own, and gives another value."""
    if line(override) in lines:
        return False
    return override.is_delete() or OmegaConf.select(config, override.key_or_group, default=ABSENT) != value
