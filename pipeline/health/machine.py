"""What of the machine a run needs: GPU and driver, shared memory, disk, locale, time zone."""

import locale
import os
import shutil
import sys
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from graftline.features.store import format_bytes
from graftline.pipeline.health.finding import Finding, broken, new_environment, ok, warning
from graftline.pipeline.program import program
from graftline.scheduling.local_time import local_timezone
from graftline.training.recipe import MAX_WORKERS

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where loader processes hand over batches

# Each of the loader processes holds 2 batches of 64 images ready (torch's prefetch_factor), at 224 px in float32, and
# those of training and validation are there at a time.
NEEDED_SHARED_BYTES = MAX_WORKERS * 2 * 2 * 64 * 3 * 224 * 224 * 4
MIN_BYTES, FEW_BYTES = 10**9, 20 * 10**9  # a run's checkpoints and bundle; what the activation cache may grow to
NVIDIA = "0x10de"  # vendor of a PCI device


@dataclass(frozen=True)
class Gpus:
    """What is known of GPUs here.

    Attributes:
        built_for: what torch was built for, such as ``CUDA 13.0``; None: the CPU.
        names: of the GPUs that torch can use.
        on_board: whether an NVIDIA GPU is in the machine.
        driver_cuda: the newest CUDA that the driver runs, such as (12, 4); None: no driver.
    """

    built_for: str | None
    names: Sequence[str]
    on_board: bool
    driver_cuda: tuple[int, int] | None


def find_gpus() -> Gpus:
    """Ask torch, the driver and the PCI bus."""
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Gpus(
        built_for if torch.version.cuda or torch.version.hip else None, names, _is_on_board(), driver_cuda_version()
    )


def _is_on_board() -> bool:
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith("0x03"):  # a display controller
            return True
    return False


def driver_cuda_version(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """Return the newest CUDA that the NVIDIA driver runs, (major, minor); None without a driver."""
    import ctypes

    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    number = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10  # 12040: 12.4


def check_gpu(gpus: Gpus) -> Iterator[Finding]:
    """Say on what runs run, and what keeps them from a GPU that is here.

    A driver runs what was built for its CUDA's major version and for older ones (NVIDIA, CUDA Compatibility, "Minor
    Version Compatibility").
    """
    if gpus.names:
        yield ok("GPU", f"{len(gpus.names)} x {gpus.names[0]}, torch is built for {gpus.built_for}")
    elif gpus.built_for is None:
        if gpus.on_board or gpus.driver_cuda is not None:
            without = " without SYSTEM_TORCH" if program() == "make" else ""
            found = "an NVIDIA GPU is here, but this torch is built for the CPU"
            yield warning("GPU", f"{found}: {new_environment()}{without}")
        else:
            yield ok("GPU", "none; torch is built for the CPU")
    elif gpus.driver_cuda is None:
        if gpus.on_board:
            yield broken(
                "GPU", f"torch is built for {gpus.built_for}, but there is no driver: install NVIDIA's, then restart"
            )
        else:
            yield ok("GPU", f"none here; torch, built for {gpus.built_for}, runs on the CPU")
    elif gpus.built_for.startswith("CUDA") and gpus.driver_cuda[0] < int(gpus.built_for.split()[1].split(".")[0]):
        yield broken(
            "GPU",
            f"torch is built for {gpus.built_for}, the driver runs {_dotted(gpus.driver_cuda)} at most: install a "
            f"newer driver, or a torch built for an older CUDA{' and SYSTEM_TORCH=1' if program() == 'make' else ''}",
        )
    else:
        yield warning(
            "GPU",
            "there is a driver, but torch sees no GPU: nvidia-smi says why; in a container, start it with --gpus all",
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def check_shared_memory(folder: Path = SHARED_MEMORY, needed: int = NEEDED_SHARED_BYTES) -> Iterator[Finding]:
    """Compare the room in /dev/shm with what loader processes put there."""
    if not folder.is_dir():
        yield ok("shared memory", "not used on this system")
        return
    room = shutil.disk_usage(folder)
    if room.free < needed:
        yield warning(
            "shared memory",
            f"{format_bytes(room.free)} of {format_bytes(room.total)} free in {folder}, loader processes take up to "
            f"{format_bytes(needed)}: docker run --shm-size 1g, or train.workers=0",
        )
    else:
        yield ok("shared memory", f"{format_bytes(room.free)} free in {folder}")


def check_disk(folders: Sequence[str]) -> Iterator[Finding]:
    """See whether runs may write into their folders and have room there; folders of one disk and state share a line."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name in folders:
        place = Path(name).expanduser().absolute()
        while not os.path.lexists(place):  # `Path.exists` fails in a folder that may not be looked into
            place = place.parent
        lines.setdefault(_judge_folder(place), []).append(name)
    for (state, text), names in lines.items():
        make = {"ok": ok, "warning": warning, "broken": broken}[state]
        yield make("disk", f"{', '.join(names)}: {text}")


def _judge_folder(place: Path) -> tuple[str, str]:
    if place.is_symlink() and not os.path.isdir(place):  # noqa: PTH112 - as above
        return "broken", f"{place} leads to {place.readlink()}, where no folder is; mount that, or remove the link"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return "broken", f"{place} may not be written to; change its owner or rights, or work in another directory"
    free = shutil.disk_usage(place).free
    if free < MIN_BYTES:
        text = f"{format_bytes(free)} free, too little for a run"
        return "broken", f"{text}; {program()} prune and {program()} cache clear=unused free more"
    if free < FEW_BYTES:
        text = f"{format_bytes(free)} free, less than the activation cache may take; {program()} prune frees some, and "
        return "warning", f"{text}features.max_gb=5 lets it take less"
    return "ok", f"{format_bytes(free)} free"


def check_locale() -> Iterator[Finding]:
    """See whether names of files and what is printed may hold any letter."""
    files, terminal = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "utf-8"
    odd = next((one for one in (files, terminal) if one.lower().replace("-", "") != "utf8"), None)
    named = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "C"
    if odd is None:
        yield ok("locale", f"UTF-8 ({named})")
    else:
        yield warning(
            "locale",
            f"{named} means {odd} ({locale.getpreferredencoding(False)}), and names of other letters fail: set "
            "PYTHONUTF8=1, or LC_ALL=C.UTF-8",
        )


def check_time_zone() -> Iterator[Finding]:
    """See whether the time zone that schedules use is one that this machine knows."""
    name = local_timezone()
    try:
        if not name.startswith("/") and not name[-1:].isdigit():  # a POSIX rule such as CET-1 names no file
            zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        yield warning("time zone", f"TZ={name} is unknown here, and UTC is used: correct it, or install tzdata")
        return
    yield ok("time zone", f"{name}, now {time.strftime('%H:%M %Z')}")
