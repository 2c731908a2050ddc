"""From overrides to a stage that can be run, in this process, once or as often as one likes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from graftline.console import console, logged, print_facts, say
from graftline.errors import UserError, first_line
from graftline.files import write_json
from pipeline.cli.gather import compares_backbones, gather
from pipeline.cli.hydra_conf import compose_job, session
from pipeline.cli.resume import resume, resumed_directory
from pipeline.cli.validate import validate
from pipeline.cli.wording import worded
from pipeline.stage import Stage, StageResult

OVERLAYS = ("experiment", "debug")  # groups that change others and leave nothing of their own
SHARED = ("weights",)  # nodes whose values others refer to


@dataclass(frozen=True)
class ComposedStage:
    """A stage with its whole configuration.

    Attributes:
        name: of the stage.
        config: its configuration.
        overrides: what that differs from the stage's defaults by.
        directory: where it writes, unless it is told otherwise.
    """

    name: str
    config: DictConfig
    overrides: list[str]
    directory: Path

    @cached_property
    def stage(self) -> Stage:
        """The stage itself, built from its configuration.

        Raises:
            UserError: values that do not go together.
        """
        with worded(self.config):
            return build(self.config)

    def with_value(self, key: str, value: Any) -> "ComposedStage":
        """Return the stage with another value for a key."""
        config = self.config.copy()
        OmegaConf.update(config, key, value, force_add=True)
        return replace(self, config=config)

    def run(self, directory: Path | None = None) -> StageResult:
        """Run the stage; its files, with configuration, log and ``result.json``, go to a directory.

        Raises:
            UserError: a mistake of the user's, in the words of the configuration.
        """
        directory = directory or self.directory
        hydra = directory / ".hydra"
        hydra.mkdir(parents=True, exist_ok=True)
        (hydra / "config.yaml").write_text(OmegaConf.to_yaml(self.config), encoding="utf-8")
        (hydra / "overrides.yaml").write_text(yaml.safe_dump(self.overrides, allow_unicode=True), encoding="utf-8")
        with logged(directory / "log.txt"), worded(self.config):
            start = time.perf_counter()
            result = self.stage.run(directory)
            seconds = round(time.perf_counter() - start, 1)
            content = {"stage": self.name, "seconds": seconds, **result.facts, "metrics": result.metrics}
            write_json(directory / "result.json", content)
            console.print()
            print_facts(f"{self.name}: done in {seconds:.0f} s", result.table)
            say(str(directory))
        return result


def build(config: DictConfig) -> Stage:
    """Instantiate the stage that a configuration describes."""
    nodes = OmegaConf.to_container(config, resolve=True)
    assert isinstance(nodes, dict)
    stage: Stage = instantiate({k: v for k, v in nodes.items() if k not in (*OVERLAYS, *SHARED)}, _convert_="all")
    return stage


def compose(stage: str, overrides: Sequence[str] = ()) -> ComposedStage:
    """Compose a stage.

    Args:
        stage: name of a file at the root of conf/.
        overrides: as on the command line, one value for each key.

    Raises:
        UserError: mistakes in the overrides, all of them; or several values for a key.
    """
    composed = compose_all(stage, overrides)
    if len(composed) > 1:
        raise UserError(f"These overrides ask for {len(composed)} runs: give each key one value.")
    return composed[0]


def compose_all(stage: str, overrides: Sequence[str]) -> list[ComposedStage]:
    """Compose a stage once for each combination of values; a training that is resumed has the configuration it had.

    Raises:
        UserError: mistakes in the overrides, all of them.
    """
    with session(stage):
        if (directory := resumed_directory(stage, overrides)) is not None:
            composed = [ComposedStage(stage, *resume(stage, overrides, directory), directory)]
        else:
            checked = validate(stage, overrides)
            if compares_backbones(checked.config):
                jobs = list(gather(stage, overrides, checked))
            else:
                jobs = [compose_job(stage, lines) for lines in checked.jobs]
            group = jobs[0].group_directory
            directories = [group / str(number) for number in range(len(jobs))] if len(jobs) > 1 else [jobs[0].directory]
            composed = [
                ComposedStage(stage, job.config, job.overrides, directory)
                for job, directory in zip(jobs, directories, strict=True)
            ]
    try:
        for one in composed:
            _ = one.stage  # values that do not go together are found now, not after the runs before it
    except InstantiationException as error:
        if directory is None:
            raise
        raise UserError(f"The run in {directory} is of another version of graftline: {first_line(error)}.") from error
    return composed
