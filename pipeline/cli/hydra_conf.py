"""Hydra on conf/: a session in which configurations are composed, and which leaves Hydra as it found it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from pipeline.cli.mistakes import refusal

CONF = Path(__file__).resolve().parents[2] / "conf"


@contextmanager
def session(stage: str) -> Iterator[None]:
    """Open Hydra on conf/ for a stage; what Hydra does not take is a mistake of one line.

    Raises:
        UserError: Hydra refused something.
    """
    _register_overlays_backbones()
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name=stage, version_base="1.3"):
            yield
    except (HydraException, OmegaConfBaseException) as error:
        raise refusal([" ".join(str(error).split())]) from error
    finally:
        GlobalHydra.instance().hydra = around


def compose_config(stage: str, lines: Sequence[str]) -> DictConfig:
    """Compose the configuration of a stage; within a session."""
    return hydra.compose(stage, list(lines))


@dataclass(frozen=True)
class Job:
    """One of the runs that were asked for.

    Attributes:
        overrides: what it differs from the stage's defaults by.
        config: of the stage.
        directory: where it writes if it is the only one.
        group_directory: what it writes into, below its number, if it is one of several.
    """

    overrides: list[str]
    config: DictConfig
    directory: Path
    group_directory: Path


def compose_job(stage: str, lines: Sequence[str]) -> Job:
    """Compose the configuration of one run; within a session."""
    config = hydra.compose(stage, list(lines), return_hydra_config=True)
    directory, group_directory = Path(config.hydra.run.dir), Path(config.hydra.sweep.dir)
    with open_dict(config):
        del config["hydra"]
    return Job(list(lines), config, directory.absolute(), group_directory.absolute())


def config_loader() -> ConfigLoader:
    """Return what knows the groups of conf/ and their options; within a session."""
    return GlobalHydra.instance().config_loader()


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
