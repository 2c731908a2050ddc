"""Hydra on conf/ and a user's folders: a session that composes configurations, and leaves Hydra as it found it."""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import hydra
from hydra import version
from hydra._internal.hydra import Hydra  # its public initialize_config_dir() takes one folder
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from graftline.console import warn
from graftline.pipeline.cli.by_class import read_all_by_class
from graftline.pipeline.cli.conf_files import CONF as CONF
from graftline.pipeline.cli.conf_files import directories, find_stage, options, shadowed
from graftline.pipeline.cli.mistakes import refusal

HOME = re.compile(r"^(sqlite:///|file://)?~(?=/|$)")

# what a session has composed: the check of what was typed, the run and its directory ask for the same
_composed: WeakKeyDictionary[Hydra, dict[tuple[str, ...], DictConfig]] = WeakKeyDictionary()


@contextmanager
def session(stage: str, config_dir: Path | None = None) -> Iterator[None]:
    """Open Hydra on conf/ and on a user's folders for a stage; what Hydra does not take is a UserError of one line."""
    folders = directories(config_dir)
    find_stage(folders, stage)
    for file in shadowed(folders):
        warn(f"{file} is not read: graftline has its own of that name.")
    overlays = [file for folder in folders for file in folder.glob("*/*.yaml")]  # they may choose one of timm's names
    for group, name in re.findall(
        r"override /(backbone|optim): *([\w.]+)", "".join(file.read_text("utf-8") for file in overlays)
    ):
        register(group, name, folders)
    around = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = create_config_search_path(str(CONF))
    for folder in folders[1:]:
        search_path.prepend("user", f"file://{folder}", anchor="schema")  # which Hydra wants last
    try:
        Hydra.create_main_hydra2(task_name=stage, config_search_path=search_path)
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise refusal([" ".join(str(error).split())]) from error
    finally:
        GlobalHydra.instance().hydra = around


def compose_config(stage: str, lines: Sequence[str]) -> DictConfig:
    """Compose the configuration of a stage, with the home folder where ``~`` is written; within a session."""
    config = copy.deepcopy(_compose(stage, lines))
    with open_dict(config):
        del config["hydra"]
    read_all_by_class(config)
    expand_home(config)
    return config


def _compose(stage: str, lines: Sequence[str]) -> DictConfig:
    """Compose it, once in a session, with the node of Hydra's own keys."""
    session = GlobalHydra.instance().hydra
    assert session is not None
    known = _composed.setdefault(session, {})
    if (stage, *lines) not in known:
        known[stage, *lines] = hydra.compose(stage, list(lines), return_hydra_config=True)
    return known[stage, *lines]


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


def stage_groups(stage: str) -> list[str]:
    """Return the groups that a stage has by itself; within a session."""
    return list(_compose(stage, []).hydra.runtime.choices)


def output_directory(stage: str, lines: Sequence[str], *, of_several: bool) -> Path:
    """Return where a run writes, or the directory that several runs have theirs in; within a session."""
    node = _compose(stage, lines).hydra
    return Path(node.sweep.dir if of_several else node.run.dir).expanduser().absolute()


def config_loader() -> ConfigLoader:
    """Return what knows the groups of conf/ and their options; within a session."""
    return GlobalHydra.instance().config_loader()


def register(group: str, name: str, folders: Sequence[Path] = (CONF,)) -> None:
    """Make one of timm's names an option of ``backbone`` or ``optim``; Hydra copies all options often, so never all."""
    if name in options(folders, group):
        return
    node: dict[str, Any] = {"_target_": "graftline.backbones.backbone.Backbone", "name": name}
    if group == "optim":
        from graftline.training import optimizers  # with timm and torch, which a mistyped key must not wait for

        if name not in optimizers.names() or optimizers.refusal(name) is not None:
            return
        target, arguments = optimizers.find(name)
        node = {"_target_": target, "_partial_": True, "lr": None, **arguments}
    ConfigStore.instance().store(group=group, name=name, node=node)
