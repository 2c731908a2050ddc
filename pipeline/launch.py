"""From checked overrides to a run, or to several: Hydra composes, makes the output directory and calls us back."""

import sys
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.syntax import Syntax

from graftline.console import console, say
from graftline.errors import UserError
from graftline.tracking.tracking import Tracking
from pipeline.group import RunGroup
from pipeline.overrides import CONF, check
from pipeline.stage import EXIT_DONE, EXIT_INTERRUPTED, Stage, guarded

OVERLAYS = ("experiment", "debug")  # groups that change others and leave nothing of their own


def show_config(typed: list[str]) -> int:
    """Print the composed configuration of a training."""
    config = check("train", typed).config
    console.print(Syntax(OmegaConf.to_yaml(config), "yaml", background_color="default"))
    return EXIT_DONE


def launch(stage: str, typed: list[str]) -> int:
    """Run a stage once, or once for each combination of values; returns the highest exit code."""
    checked = check(stage, typed)
    lines = checked.overrides
    if resumed := _resumed_run(checked.config):
        directory = _tracking(checked.config).find_output_directory(resumed)
        checked = check(stage, _merge(_stored_overrides(directory), typed))
        lines = [*checked.overrides, f"hydra.run.dir={directory}"]
    if checked.multirun:
        say("Several values for a key: one run each, grouped under one parent run.")
    codes: list[int] = []
    group = RunGroup(stage)

    def job(config: DictConfig) -> None:
        directory = Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            group.open(config, directory)
        codes.append(guarded(stage, lambda: build(config), directory))
        if codes[-1] == EXIT_INTERRUPTED:
            raise KeyboardInterrupt  # Ctrl-C means all of the runs

    sys.argv = [stage, *(["--multirun"] if checked.multirun else []), *lines, f"hydra.job.name={stage}"]
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=stage)(job)()
    finally:
        group.close(failed=any(codes))
    return max(codes, default=EXIT_DONE)


def build(config: DictConfig) -> Stage:
    """Instantiate the stage that a configuration describes.

    Raises:
        UserError: values that do not go together.
    """
    nodes = {key: node for key, node in config.items() if key not in OVERLAYS}
    stage: Stage = instantiate(nodes, _convert_="all")
    return stage


def _resumed_run(config: DictConfig) -> str | None:
    run_id: str | None = OmegaConf.select(config, "train.resume")
    return run_id


def _tracking(config: DictConfig) -> Tracking:
    tracking: Tracking = instantiate(config.tracking)
    return tracking


def _stored_overrides(directory: Path) -> list[str]:
    file = directory / ".hydra" / "overrides.yaml"
    if not file.exists():
        raise UserError(f"The run cannot be resumed: its output directory {directory} is gone.")
    overrides: list[str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return overrides


def _merge(stored: list[str], typed: list[str]) -> list[str]:
    """Return the stored overrides with those typed now in place of the same keys."""
    merged = {line.partition("=")[0].lstrip("+"): line for line in (*stored, *typed)}
    return list(merged.values())
