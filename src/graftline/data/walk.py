"""Walk through folders of images: links are followed, loops are walked once, and what systems leave is passed over."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from graftline.errors import UserError

# What file managers, network storage and recycle bins put beside files, in small letters; hidden ones start with a dot.
_LEFTOVERS = re.compile(
    r"@(eadir|tmp|recycle|recently-snapshot|sharebin|syno.*|__thumb)|#(recycle|snapshot)|~snapshot|synofile_thumb.*"
    r"|\$recycle\.bin|recycler|system volume information|found\.\d{3}|lost\.dir"
    r"|thumbs\.db(:.*)?|ehthumbs(_vista)?\.db|desktop\.ini|~\$.*"
    r"|__macosx|icon\r|network trash folder|temporary items"
    r"|lost\+found|__pycache__"
)


def is_leftover(name: str) -> bool:
    """Tell whether a file or folder is none of the user's: hidden, or what a system or a tool has left there."""
    return name.startswith(".") or _LEFTOVERS.fullmatch(name.lower()) is not None


def list_folders(root: Path) -> list[Path]:
    """Return the folders in ``root``, sorted, without leftovers; also links to folders, but to none that holds it.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        with os.scandir(root) as entries:
            folders = [Path(entry) for entry in entries if entry.is_dir() and not is_leftover(entry.name)]
    except OSError as error:
        raise _unreadable(error) from error
    above = _identify_above(root / "any")
    return sorted(folder for folder in folders if not folder.is_symlink() or _identify(folder) not in above)


def walk_files(root: Path, leftovers: Counter[str] | None = None, *, deep: bool = True) -> Iterator[str]:
    """Yield the paths of the files below ``root``, ordered within each folder, also of links that lead nowhere.

    A folder that several links lead to is walked once, and one that holds ``root`` is not walked.

    Args:
        root: a folder.
        leftovers: counts what was passed over, by name.
        deep: whether to look into the folders in it, too.

    Raises:
        UserError: a folder cannot be read.
    """
    seen = _identify_above(root)
    leftovers = Counter() if leftovers is None else leftovers
    for folder, inner, names in os.walk(root, followlinks=True, onerror=_refuse):
        identity = _identify(folder)
        if identity in seen:
            inner.clear()
            continue
        seen.add(identity)
        kept = _without_leftovers(inner, leftovers)
        inner[:] = kept if deep else []
        for name in _without_leftovers(names, leftovers):
            yield os.path.join(folder, name)  # noqa: PTH118 (speed)


def _without_leftovers(names: Iterable[str], leftovers: Counter[str]) -> list[str]:
    """Return the other names, sorted; those of leftovers are counted, and all companions of macOS as one."""
    kept = []
    for name in names:
        if is_leftover(name):
            leftovers["._*" if name.startswith("._") else name.rstrip("\r")] += 1
        else:
            kept.append(name)
    return sorted(kept)


def _identify_above(path: Path) -> set[tuple[int, int]]:
    """Identify the folders above a path, as it is given and where links lead."""
    return {_identify(folder) for real in (path.absolute(), path.resolve()) for folder in real.parents}


def _identify(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 (speed)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> None:
    raise _unreadable(error) from error


def _unreadable(error: OSError) -> UserError:
    return UserError(f"The folder {error.filename} cannot be read ({error.strerror}): allow it, or move it away.")
