"""Processes that a training needs and that are gone: a sentence instead of what the libraries report."""

from collections.abc import Iterator
from contextlib import contextmanager

from graftline.errors import UserError, first_line

LOST = (  # what follows on the name of a process that has ended
    ", for the reason that it gave above; if it gave none, it was killed, most likely since there was not enough "
    "memory."
)


class LostProcessError(UserError):
    """A process that trains along has ended."""


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Say which process is gone where torch reports that during the block.

    Raises:
        UserError: a loader's process is gone.
        LostProcessError: a process that trains along is gone.
    """
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text:
            raise UserError(
                f"A loader process has ended ({first_line(error)}), most likely since there was not enough memory: "
                "lower Recipe.workers or Recipe.batch_size."
            ) from error
        if any(sign in text for sign in ("gloo", "NCCL", "onnection closed by peer", "onnection reset by peer")):
            raise LostProcessError(f"Another process of this training has ended{LOST}") from error
        raise


def leave_group(*, is_complete: bool) -> None:
    """Leave torch's group of processes, if there is one.

    Args:
        is_complete: whether the others leave it too. If not, what is under way is dropped, as NCCL would wait for them.
    """
    import torch  # loaded long since by whoever has trained; a mistyped key must not wait for it

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if "nccl" in torch.distributed.get_backend() and not is_complete:
        torch.distributed.distributed_c10d._abort_process_group()
    else:
        torch.distributed.destroy_process_group()
