"""Write a folder of which Docker builds a slim server: the bundle, the code that it needs, a Dockerfile; no torch."""

import re
import shutil
import sys
from collections import deque
from collections.abc import Sequence
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from graftline.data.decode import Decoding
from graftline.data.readers import EXTRAS
from graftline.files import atomic_directory, write_text
from graftline.serving.modules import ROOT, copy_imported_modules, imported_packages

IMAGE = Path(__file__).with_name("image")
SCRIPT = IMAGE / "serve.py"
_SITE = Path("serving", "site")  # pages of the server, which no import statement names


def write_image_folder(bundle: Path, name: str, decoding: Decoding, folder: Path, lock: Path | None = None) -> Path:
    """Write what the image of a server is built of.

    Args:
        bundle: the bundle's directory.
        name: of the model in the server's addresses.
        decoding: of the bundle: it may need further packages.
        folder: what is written; one that is there is replaced.
        lock: requirements with hashes, which are those of the image where the versions are the same; None: it has none.

    Returns:
        ``folder``, with ``Dockerfile``, ``.dockerignore``, ``serve.py``, ``requirements.txt``, ``graftline`` and
        ``models``.
    """
    with atomic_directory(folder) as target:
        dockerfile = (IMAGE / "Dockerfile").read_text(encoding="utf-8")
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        write_text(target / "Dockerfile", dockerfile.replace("ARG PYTHON=3.11", f"ARG PYTHON={python}"))
        shutil.copyfile(IMAGE / "dockerignore", target / ".dockerignore")
        shutil.copyfile(SCRIPT, target / SCRIPT.name)
        package = copy_imported_modules(SCRIPT, target)
        shutil.copytree(ROOT / _SITE, package / _SITE)
        shutil.copytree(bundle, target / "models" / name)
        write_text(target / "requirements.txt", with_hashes(_requirements(decoding), lock))
        for path in target.rglob("*"):  # the image's user is another one than who builds it
            path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _requirements(decoding: Decoding) -> list[str]:
    """Return the packages of a server, and all that these need, in the versions that are installed here."""
    distributions = packages_distributions()
    unread = deque(distributions[package][0] for package in imported_packages(SCRIPT))
    unread += [package for extra in decoding.extras for package in EXTRAS[extra].values()]
    found: dict[str, str] = {}
    while unread:
        name = canonicalize_name(unread.popleft())
        if name in found:
            continue
        installed = distribution(name)
        found[name] = installed.version
        needed = map(Requirement, installed.requires or ())
        unread += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def with_hashes(requirements: Sequence[str], lock: Path | None) -> str:
    """Return requirements as pip reads them: with hashes, other than which it installs nothing, if all have some.

    Args:
        requirements: pins of versions.
        lock: has hashes of pins; None, or one that is not there: nothing has.
    """
    text = "" if lock is None or not lock.is_file() else lock.read_text(encoding="utf-8")
    entries = {entry.split(maxsplit=1)[0]: entry.strip() for entry in re.split(r"\n(?=\S)", text) if "--hash=" in entry}
    if others := [line for line in requirements if line not in entries]:
        why = f"it does not have {others[0]}" if entries else "there is none here"
        head = f"# Without hashes, which are those of graftline's requirements.lock: {why}.\n"
        return head + "".join(f"{line}\n" for line in requirements)
    return "".join(f"{entries[line]}\n" for line in requirements)
