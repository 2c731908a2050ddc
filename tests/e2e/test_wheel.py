"""What is built and installed: all of graftline, nothing else, and a command that runs without a clone around it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(source: Path, target: Path, *kinds: str) -> Path:
    """Build ``source`` into the folder ``target``, which is returned."""
    options = [option for kind in kinds for option in ("--target", kind)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target), *options]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("built"), "sdist", "wheel")


def wheel_files(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def ours() -> set[str]:
    """Return the files of the package as they lie here, with what its links lead to."""
    files = [file for folder in ("src/graftline", "pipeline", "conf") for file in (ROOT / folder).rglob("*")]
    names = [str(file.relative_to(ROOT)).removeprefix("src/graftline/") for file in files if file.is_file()]
    return {f"graftline/{name}" for name in names if "__pycache__" not in name}


def test_the_wheel_is_graftline_and_nothing_else(built: Path) -> None:
    files = wheel_files(built)
    assert {name for name in files if not name.startswith("graftline-")} == ours()
    assert {"graftline/conf/train.yaml", "graftline/pipeline/train.py", "graftline/report/templates/page.css"} <= files


def test_the_sdist_builds_the_same_wheel_without_links(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    top = {path.name for path in source.iterdir()}
    assert top == {
        ".gitignore",
        "LICENSE",
        "NOTICE",
        "PKG-INFO",
        "README.md",
        "conf",
        "pipeline",
        "pyproject.toml",
        "src",
    }
    assert wheel_files(build(source, tmp_path / "again", "wheel")) == wheel_files(built)


def test_the_command_trains_in_an_empty_folder(built: Path, color_folder: Path, tmp_path: Path) -> None:
    """With the real dependencies, and of graftline what the wheel holds; loader processes start from it too."""
    (wheel,) = built.glob("*.whl")
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*install, str(wheel)], check=True)
    assert {path.name for path in installed.iterdir()} == {"bin", "graftline", "graftline-0.1.0.dist-info"}
    empty.mkdir()
    typed = ["debug=fast", "data=folder", f"data.path={color_folder}", "backbone=lenet5", "freeze=none", "augment=none"]
    typed += ["train.workers=1", "evaluation.resamples=100"]
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [installed / "bin" / "graftline", "train", *typed],
        cwd=empty,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "graftline train train.resume=" in done.stdout
    assert (Path(done.stdout.strip().splitlines()[-1]) / "bundle" / "model.onnx").exists()
    assert {path.name for path in empty.iterdir()} >= {"data", "mlflow.db", "outputs"}
    assert str(ROOT) not in done.stdout, "nothing comes from the clone"
