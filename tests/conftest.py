"""Small real inputs that more than one room uses."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import unsynced  # noqa: F401 - nothing waits for the disk
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobRuntime
from mlflow_server import Server
from PIL import Image
from warm_process import start_warming_up
from workplace import Workplace

from graftline.console import show_log
from graftline.tracking.client import connect

COLORS = {"blue": (40, 60, 200), "green": (60, 180, 70), "red": (210, 50, 40)}


def paint(color: tuple[int, int, int], seed: int, size: int = 40) -> Image.Image:
    """Return a noisy square of one color."""
    noise = np.random.default_rng(seed).normal(0, 40, (size, size, 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def paint_mislabeled(folder: Path) -> Path:
    """Paint 60 squares of each color, every fifth of which lies in the folder of another one."""
    for number, (name, color) in enumerate(COLORS.items()):
        (folder / name).mkdir(parents=True)
        for index in range(60):
            other = list(COLORS.values())[(number + 1) % 3] if index % 5 == 0 else color
            paint(other, 100 * number + index, size=16).save(folder / name / f"{index:02}.png")
    return folder


# Folders and files of tests that are whole stories, of several runs, processes and servers that may be killed, or go
# through all networks: `make test` leaves them to `make test-long`, so that it stays within 12 minutes on 2 cores.
LONG = (
    "docker",
    "docs",
    "e2e",
    "features/test_cut.py",
    "freezing/test_measured.py",
    "integration",
    "pipeline/test_dagster.py",
    "pipeline/test_interrupts.py",
    "pipeline/test_promote_faults.py",
    "pipeline/test_ray_environment.py",
    "pipeline/test_ray_interrupts.py",
    "pipeline/test_ray_members.py",
    "pipeline/test_ray_sweep.py",
    "pipeline/test_ray_training.py",
    "pipeline/test_schedule.py",
    "pipeline/test_search.py",
    "security/test_offline.py",
    "tracking/test_server_away.py",
)

# Those that start processes, train, or build large networks: `make test-fast` leaves them out, too.
SLOW = (
    *LONG,
    "backbones/test_families.py",
    "backbones/test_hub.py",
    "backbones/test_scaling.py",
    "backbones/test_sizes.py",
    "backbones/zoo/test_alexnet.py",
    "backbones/zoo/test_contract.py",
    "bundle/test_batch.py",
    "bundle/test_remote_answers.py",
    "bundle/test_export.py",
    "bundle/test_save.py",
    "data/test_loaders.py",
    "data/test_worker_processes.py",
    "features/test_remote_gpus.py",
    "features/test_remote_pass.py",
    "features/test_sharing.py",
    "pipeline/test_audit.py",
    "pipeline/test_beyond_scores.py",
    "pipeline/test_compare.py",
    "pipeline/test_compose.py",
    "pipeline/test_decode.py",
    "pipeline/test_depth_seed.py",
    "pipeline/test_doctor.py",
    "pipeline/test_drift.py",
    "pipeline/test_ensemble.py",
    "pipeline/test_evaluate.py",
    "pipeline/test_evaluate_grid.py",
    "pipeline/test_explain.py",
    "pipeline/test_full_disk.py",
    "pipeline/test_learning_curve.py",
    "pipeline/test_nodes.py",
    "pipeline/test_promote.py",
    "pipeline/test_promote_bundles.py",
    "pipeline/test_ray_jobs.py",
    "pipeline/test_resume.py",
    "pipeline/test_retraining_told.py",
    "pipeline/test_scoring_ahead.py",
    "pipeline/test_shard.py",
    "pipeline/test_situation.py",
    "pipeline/test_soup.py",
    "pipeline/test_train.py",
    "report/test_page_in_browser.py",
    "security/test_files.py",
    "serving",
    "tracking",
    "test_ray_cluster.py",
    "training/test_compiling.py",
    "training/test_depth_decision.py",
    "training/test_lost_process.py",
    "training/test_memory_format.py",
)


def pytest_sessionstart() -> None:
    """Warm up at once where the whole suite is likely to be run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        start_warming_up()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and what is long."""
    here = Path(__file__).parent
    for names, mark in ((SLOW, pytest.mark.slow), (LONG, pytest.mark.long)):
        for item in items:
            if any(item.path.is_relative_to(here / name) for name in names):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def color_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 3 classes with 20 images each, which any network learns at once."""
    root = tmp_path_factory.mktemp("colors")
    for number, (name, color) in enumerate(COLORS.items()):
        (root / name).mkdir()
        for index in range(20):
            paint(color, 100 * number + index).save(root / name / f"{index:02}.png")
    return root


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A served model that a test loads puts the modules that it ships before ours, for spawned processes too."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(autouse=True)
def _no_make_around_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run under `make test`; what they start must not take its variables for its own."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _log_in_terminal() -> None:
    """Tests read what a user would see."""
    show_log()


@pytest.fixture(scope="module")
def one_hydra() -> Iterator[None]:
    """Let the sessions of a stage have one Hydra, with what it has composed; for tests that change no file of conf/."""
    create = Hydra.create_main_hydra2
    made: dict[tuple[str, ...], Hydra] = {}

    def find(task_name: str, config_search_path: ConfigSearchPath) -> Hydra:
        key = (task_name, *(str(one.path) for one in config_search_path.get_path()))
        if key not in made:
            made[key] = create(task_name, config_search_path)
        else:
            GlobalHydra.instance().initialize(made[key])
            JobRuntime().set("name", task_name)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "create_main_hydra2", find)
        yield


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once since that takes seconds."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def make_workplace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Callable[[str], Workplace]:
    """Makes folders for stages to run in, each with a tracking database that is ready."""

    def make(name: str) -> Workplace:
        root = tmp_path_factory.mktemp(name)
        shutil.copyfile(empty_database, root / "mlflow.db")
        return Workplace(root)

    return make


@pytest.fixture
def workplace(tmp_path: Path, empty_database: Path) -> Workplace:
    """A folder for stages to run in, with a tracking database that is ready."""
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is up; a test that kills it starts it again."""
    server = Server(tmp_path_factory.mktemp("server"), empty_database)
    server.start()
    yield server
    server.kill()
