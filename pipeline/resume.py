"""Resume: what a run goes on with, and what would make it another run."""

import json
from pathlib import Path

import yaml

from graftline.errors import UserError
from pipeline.overrides import ValidatedOverrides

# What may differ from the run that is resumed. Everything else is in the checkpoint, or would make what follows a
# different training under the old one's name.
CHANGEABLE = ("train.resume", "train.workers", "trainer.max_epochs", "trainer.devices", "evaluation", "tracking")


def resumed_overrides(directory: Path, typed: list[str]) -> list[str]:
    """Return the overrides of the run in ``directory``, with those typed now in place of the same keys.

    Raises:
        UserError: a key was typed that a resumed run cannot change.
    """
    fixed = [line for line in typed if not _key(line).startswith(CHANGEABLE)]
    stored: list[str] = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"))
    if new := [line for line in fixed if line not in stored]:
        raise UserError(
            f"A resumed run keeps its own settings, but {', '.join(new)} would change them: "
            f"leave that out, or start a new run (only {', '.join(CHANGEABLE[1:])} may change)."
        )
    return list({_key(line): line for line in (*stored, *typed)}.values())


def check_resumable(directory: Path, checked: ValidatedOverrides) -> None:
    """Make sure that there is somewhere to go.

    Raises:
        UserError: several runs at once, or all epochs were done.
    """
    if checked.multirun:
        raise UserError("One run can be resumed at a time: give each key one value.")
    result, max_epochs = directory / "result.json", checked.config.trainer.max_epochs
    done = json.loads(result.read_text(encoding="utf-8"))["epochs"] if result.exists() else 0
    if done > 0 and (max_epochs is None or done >= max_epochs):
        raise UserError(f"The run is finished after {done} epochs: give it more with trainer.max_epochs={2 * done}.")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
