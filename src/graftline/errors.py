"""The exception for a user's mistake, and what other exceptions say, for its message."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# what libraries say that give no error number: torch, safetensors, and SQLite behind MLflow
_OF_A_DATABASE = re.compile("database or disk is full|disk I/O error", re.IGNORECASE)
_OF_A_FILE = re.compile("|".join(map(os.strerror, sorted(_NO_ROOM))), re.IGNORECASE)


class UserError(ValueError):
    """A mistake in what the user asked for or gave.

    The message is one clear sentence that names what is wrong and the way out, with arguments named as
    ``Class.argument``. The command line prints it in the words of its keys, without a traceback.
    """


class UnreachableError(UserError):
    """A storage or MLflow does not answer, or we cannot ask it or keep the answer: what is there, nobody knows."""


class DivergenceError(UserError):
    """The loss of a training is no number, or has grown beyond use.

    Attributes:
        what: has happened; the message is that and, after a colon, the way out.
    """

    def __init__(self, what: str, way_out: str = "") -> None:
        super().__init__(f"{what}: {way_out}" if way_out else what)
        self.what = what


class TooLittleTimeError(UserError):
    """The least that a training does takes longer than the time that it has."""


class TooLittleMemoryError(UserError):
    """A training takes more memory than the GPU has."""

    def __init__(self) -> None:
        super().__init__(
            "The training does not fit the GPU's memory: choose a smaller Recipe.batch_size or Backbone.image_size, or "
            "freeze more."
        )


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message without its full stop, or the error's name if it has none.

    >>> first_line(OSError("No such file.\nTry another.")), first_line(KeyError())
    ('No such file', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def find_cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the error of a kind behind an error, itself included: libraries wrap what is raised inside of them."""
    return next((one for one in _with_causes(error) if isinstance(one, kind)), None)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then what is behind it, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def no_room(error: BaseException | None) -> str | None:
    """Return a sentence if a disk that is full, a quota or a limit on file sizes is behind an error, else None.

    >>> no_room(ValueError("x")), no_room(OSError(errno.ENOSPC, "full", "a.ckpt"))[:51]
    (None, 'a.ckpt cannot be written (No space left on device):')
    """
    for one in _with_causes(error):
        if (reason := _reason(one)) is not None:
            file = "The tracking database" if _OF_A_DATABASE.search(reason) else "A file"
            return (
                f"{getattr(one, 'filename', None) or file} cannot be written ({reason}): make room on the disk, or "
                "raise the quota or the limit on the size of files, then run the same command again."
            )
    return None


def no_access(error: BaseException | None) -> str | None:
    """Return a sentence if a file or folder that may not be read or written is behind an error, else None.

    >>> no_access(ValueError("x")), no_access(PermissionError(errno.EACCES, "denied", "data/pets"))[:39]
    (None, 'There is no access to data/pets (Permis')
    """
    for one in _with_causes(error):
        if isinstance(one, OSError) and one.errno in _NO_ACCESS and one.filename is not None:
            reason = os.strerror(one.errno)
            return f"There is no access to {one.filename} ({reason}): allow it, or choose another directory."
    return None


@contextmanager
def writing(file: object) -> Iterator[None]:
    """Let an error of a full disk during the block name the file: one of writing, unlike one of opening, names none."""
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None) is None and _reason(error) is not None:
            error.filename = str(file)  # type: ignore[attr-defined]  # as OSError has it
        raise


def _reason(error: BaseException) -> str | None:
    """Return why an error is one of a full disk; None if it is another."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return os.strerror(error.errno)
    words = _OF_A_FILE.search(str(error)) or _OF_A_DATABASE.search(str(error))
    return None if words is None or isinstance(error, UserError) else words[0]
