"""Hydra on conf/: a session in which configurations are composed, and which leaves Hydra as it found it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from graftline.errors import UserError
from graftline.pipeline.cli.mistakes import refusal

HOME = re.compile(r"^(sqlite:///|file://)?~(?=/|$)")
CONF = Path(__file__).resolve().parents[2] / "conf"


@contextmanager
def session(stage: str) -> Iterator[None]:
    """Open Hydra on conf/ for a stage; what Hydra does not take is a UserError of one line."""
    if stage not in (stages := sorted(file.stem for file in CONF.glob("*.yaml"))):
        raise UserError(f"{stage or 'nothing'} is not a stage: take one of {', '.join(stages)}.")
    overlays = [*CONF.glob("experiment/*.yaml"), *CONF.glob("debug/*.yaml")]  # they may choose one of timm's names
    for name in re.findall(r"override /backbone: *([\w.]+)", "".join(file.read_text("utf-8") for file in overlays)):
        register_backbone(name)
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
    """Compose the configuration of a stage, with the home folder where ``~`` is written; within a session."""
    config = hydra.compose(stage, list(lines))
    expand_home(config)
    return config


def expand_home(value: Any) -> Any:
    """Return a path with the home folder in the place of its ``~``; in a configuration, do that to each path.

    No shell does it behind ``key=``, and no text but a path starts with ``~/``.
    """
    if isinstance(value, str):
        return HOME.sub(lambda match: f"{match[1] or ''}{Path.home()}", value)
    if isinstance(value, DictConfig | ListConfig) and not value._is_missing() and not value._is_none():
        for key in range(len(value)) if isinstance(value, ListConfig) else list(value):
            if not OmegaConf.is_missing(value, key) and not OmegaConf.is_interpolation(value, key):
                value[key] = expand_home(value[key])
    return value


def output_directory(stage: str, lines: Sequence[str], *, of_several: bool) -> Path:
    """Return where a run writes, or the directory that several runs have theirs in; within a session."""
    node = hydra.compose(stage, list(lines), return_hydra_config=True).hydra
    return Path(node.sweep.dir if of_several else node.run.dir).expanduser().absolute()


def config_loader() -> ConfigLoader:
    """Return what knows the groups of conf/ and their options; within a session."""
    return GlobalHydra.instance().config_loader()


def register_backbone(name: str) -> None:
    """Make one of timm's names an option of the group ``backbone``; Hydra copies all options often, so never all."""
    if not (CONF / "backbone" / f"{name}.yaml").exists():
        node = {"_target_": "graftline.backbones.backbone.Backbone", "name": name}
        ConfigStore.instance().store(group="backbone", name=name, node=node)
