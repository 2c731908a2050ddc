"""Installed packages against those that graftline requires and those of the lock, and packages that clash."""

import importlib
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distributions, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import graftline
from graftline.errors import first_line
from graftline.pipeline.health.finding import Finding, broken, install, new_environment, ok, warning
from graftline.ray_connection import tell_lightning

LOCK = Path(graftline.__file__).resolve().parents[2] / "requirements.lock"  # of a clone; an installed package has none
SHOWN = ("torch", "torchvision", "timm", "pytorch-lightning", "mlflow", "onnxruntime")  # a line each
MALWARE = dict.fromkeys(("pytorch-lightning", "lightning"), ("2.6.2", "2.6.3"))
AT_MOST = 4  # packages that a line names

# packages that bring the same modules: the one that was installed last has overwritten the other, and removing either
# removes files of both
_SAME_MODULES = {
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
}


def installed_versions() -> dict[str, str]:
    """Return the versions of all installed packages; of one that is there twice, the version that is imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        found.setdefault(canonicalize_name(distribution.metadata["Name"]), distribution.version)
    return found


def own_requirements() -> list[Requirement]:
    """Return what graftline requires without extras; empty where it is on the path without being installed."""
    try:
        return _that_count(requires("graftline") or [])
    except PackageNotFoundError:
        return []


def read_lock(file: Path = LOCK) -> dict[str, str]:
    """Return the versions that the lock has for this machine; empty where there is no lock."""
    if not file.is_file():
        return {}
    lines = [line.rstrip(" \\") for line in file.read_text(encoding="utf-8").splitlines() if line[:1].isalnum()]
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in _that_count(lines)}


def _that_count(lines: Sequence[str]) -> list[Requirement]:
    """Return the requirements that apply to this Python and system."""
    found = [Requirement(line) for line in lines]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def check_versions(
    installed: Mapping[str, str], required: Sequence[Requirement], lock: Mapping[str, str]
) -> Iterator[Finding]:
    """Compare versions: a line for each of `SHOWN` and for malware, one for all others.

    Args:
        installed: name → version.
        required: what graftline requires.
        lock: name → version; empty if unknown.
    """
    bounds: dict[str, SpecifierSet] = {canonicalize_name(one.name): one.specifier for one in required}
    shown = dict.fromkeys((*SHOWN, *(name for name, bad in MALWARE.items() if installed.get(name) in bad)))

    bound_of = dict[str, SpecifierSet]()  # by the name of what is installed

    def judged(name: str) -> Finding:
        found = _stand_in(name, installed)
        pin = lock.get(name) if found == name else None
        bound_of[found] = bounds.get(name, SpecifierSet())
        return _judge(found, installed.get(found), bound_of[found], pin)

    yield from map(judged, shown)
    rest = [judged(name) for name in sorted((bounds.keys() | (lock.keys() & installed.keys())) - shown.keys())]
    bad, odd = ([one for one in rest if one.state == state] for state in ("broken", "warning"))
    if bad:
        wanted = " ".join(_quoted(one.name, bound_of[one.name]) for one in bad)
        yield broken("other packages", f"{_listed(bad)}: {install(wanted)}")
    elif odd:
        wanted = " ".join(f"{one.name}=={lock[one.name]}" for one in odd)
        yield warning("other packages", f"{_listed(odd)}: {install(wanted)} brings those of the lock")
    elif rest:
        yield ok("other packages", f"{len(rest)} as {'the lock has' if lock else 'graftline requires'} them")


def _stand_in(name: str, installed: Mapping[str, str]) -> str:
    """Return the name of a package, or where it is not installed of one that is and brings the same modules."""
    same = next((packages for packages in _SAME_MODULES.values() if name in packages), ())
    return next((one for one in (name, *same) if one in installed), name)


def _judge(name: str, version: str | None, bound: SpecifierSet, pin: str | None) -> Finding:
    if version is None:
        return broken(name, f"is not installed: {install(_quoted(name, bound))}")
    if version in MALWARE.get(name, ()):
        return broken(
            name,
            f"{version} is malware: take this machine off the network, change its passwords and keys, then leave this "
            f"environment: {new_environment()}",
        )
    if not bound.contains(Version(version).public, prereleases=True):
        return broken(name, f"{version} does not fit graftline, which needs {bound}: {install(_quoted(name, bound))}")
    if pin is not None and Version(version).public != Version(pin).public:
        return warning(name, f"{version}, the lock has {pin}: {install(f'{name}=={pin}')} brings it")
    return ok(name, version)


def _quoted(name: str, bound: SpecifierSet) -> str:
    """Return a requirement as a shell takes it."""
    return shlex.quote(f"{name}{bound}")


def _listed(findings: Sequence[Finding]) -> str:
    """Return some findings in a few words."""
    named = [f"{one.name} {one.text.partition(':')[0]}" for one in findings[:AT_MOST]]
    more = len(findings) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def check_python(version: str = platform.python_version()) -> Iterator[Finding]:
    """Compare Python's version with what graftline runs on."""
    try:
        needed = metadata("graftline")["Requires-Python"]
    except PackageNotFoundError:
        needed = ""
    if SpecifierSet(needed).contains(version, prereleases=True):
        yield ok("Python", version)
    else:
        yield broken("Python", f"{version}, graftline needs {needed}: {new_environment('python3.12')}")


def check_clashes(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Look for packages that overwrite each other, or of which another takes the wrong one."""
    clashes = []
    if {"lightning", "pytorch-lightning"} <= installed.keys():
        clashes.append(broken("lightning", tell_lightning(installed["lightning"])))
    for module, packages in _SAME_MODULES.items():
        both = [name for name in packages if name in installed]
        if len(both) > 1:
            clashes.append(
                broken(
                    module,
                    f"{' and '.join(both)} overwrite each other's files: pip uninstall {' '.join(both)}, then "
                    f"pip install {both[0]}=={installed[both[0]]}",
                )
            )
    yield from clashes or [ok("clashes", "none: no package overwrites or hides another")]


def check_imports() -> Iterator[Finding]:
    """Import what everything stands on, and see whether torchvision was built for this torch."""
    for name in ("torch", "torchvision", "onnxruntime", "timm"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a library that is missing, a symbol, anything
            yield broken("imports", f"{name} cannot be imported ({first_line(error)}): {new_environment()}")
            return
    yield from check_pair(installed_versions(), requires("torchvision") or [])


def check_pair(installed: Mapping[str, str], wanted: Sequence[str]) -> Iterator[Finding]:
    """See whether torchvision is the one that was built for the torch that is here.

    Args:
        installed: name → version.
        wanted: torchvision's requirements.
    """
    torch = next((one for one in map(Requirement, wanted) if one.name == "torch"), Requirement("torch"))
    here = Version(installed["torch"]).public
    if torch.specifier.contains(here, prereleases=True):
        yield ok("imports", f"torch and torchvision {installed['torchvision']} fit, and load")
    else:
        yield broken(
            "imports",
            f"torchvision {installed['torchvision']} was built for torch{torch.specifier}, here is {here}: "
            f"{new_environment()}",
        )
