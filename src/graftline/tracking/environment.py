"""Find out what a run is made with: the code's commit and the versions of the libraries."""

import platform
import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import graftline

UNKNOWN = "unknown"

# the libraries whose version can change a result; their versions become tags that runs can be searched by
MAIN_LIBRARIES = (
    "albumentations",
    "graftline",
    "mlflow",
    "numpy",
    "onnxruntime",
    "pillow",
    "pytorch-lightning",
    "timm",
    "torch",
)


def git_state(directory: Path | None = None) -> tuple[str, str]:
    """Return the commit of the code in ``directory`` and whether it differs from that commit.

    Args:
        directory: a folder of the repository; graftline's own by default.

    Returns:
        The commit's 40 hex digits and "true" or "false"; "unknown" for both without git, or where the code is not in a
        repository (graftline may be installed below the folder of another repository).
    """
    directory = directory or Path(graftline.__file__).parent
    try:
        if not _git(directory, "ls-files"):
            return UNKNOWN, UNKNOWN
        commit = _git(directory, "rev-parse", "HEAD")
        return commit, "true" if _git(directory, "status", "--porcelain") else "false"
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN, UNKNOWN


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, of the system, and of every library that was installed when it was first asked."""
    about = [distribution.metadata for distribution in distributions()]  # each reads and parses a file
    libraries = {each["Name"].lower(): each["Version"] for each in about}
    return {"python": platform.python_version(), "platform": platform.platform(), **dict(sorted(libraries.items()))}
