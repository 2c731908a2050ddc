"""From checked overrides to a run, or to several: Hydra composes, makes the output directory and calls us back."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.syntax import Syntax

from graftline.console import console, say
from pipeline.group import RunGroup
from pipeline.overrides import CONF, check, quoted
from pipeline.resume import check_resumable, resumed_overrides
from pipeline.stage import EXIT_DONE, EXIT_INTERRUPTED, EXIT_MISTAKE, Stage, guarded

OVERLAYS = ("experiment", "debug")  # groups that change others and leave nothing of their own
SHARED = ("weights",)  # nodes whose values others refer to


def show_config(typed: list[str]) -> int:
    """Print the composed configuration of a training."""
    config = check("train", typed).config
    text = OmegaConf.to_yaml(config)
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    else:
        say(text)
    return EXIT_DONE


def launch(stage: str, typed: list[str]) -> int:
    """Run a stage once, or once for each combination of values; returns the highest exit code."""
    checked = check(stage, typed)
    lines = checked.overrides
    if run_id := OmegaConf.select(checked.config, "train.resume"):
        directory = instantiate(checked.config.tracking).find_output_directory(run_id)
        checked = check(stage, resumed_overrides(directory, lines))
        check_resumable(directory, checked)
        lines = [*checked.overrides, quoted("hydra.run.dir", str(directory))]
    if checked.multirun:
        grouped = ", grouped under one parent run" if "tracking" in checked.config else ""
        say(f"Several values for a key: one run each{grouped}.")
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
        group.close(codes)
    return max(codes, default=EXIT_MISTAKE)


def build(config: DictConfig) -> Stage:
    """Instantiate the stage that a configuration describes.

    Raises:
        UserError: values that do not go together.
    """
    nodes = OmegaConf.to_container(config, resolve=True)
    assert isinstance(nodes, dict)
    for key in (*OVERLAYS, *SHARED):
        nodes.pop(key, None)
    stage: Stage = instantiate(nodes, _convert_="all")
    return stage
