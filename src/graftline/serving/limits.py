"""What a server takes in, and how it says no: a status and one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graftline.errors import UserError

MEGABYTE = 1_000_000
MARKS_PER_IMAGE = 16  # brackets, commas or ends of lines that a table of images may have for each that it may hold


@dataclass(frozen=True)
class Limits:
    """What a server takes in, so that no request and no number of them makes it large or slow (Hydra target).

    Attributes:
        request_mb: megabytes of one request.
        images: of one request.
        megapixels: of one image; a bundle may allow less.
        waiting_images: that wait for the network; what comes beyond is answered 503 with Retry-After.
        waiting_mb: megabytes of all requests that are read and wait; likewise.
        request_seconds: until a request must have arrived, and its header likewise.
        batch: images that the network is given at once, at most.
        batch_ms: milliseconds that a batch waits for further images, while several are asked for at a time.
    """

    request_mb: int = 32
    images: int = 128
    megapixels: int = 50
    waiting_images: int = 512
    waiting_mb: int = 128
    request_seconds: float = 30.0
    batch: int = 16
    batch_ms: float = 2.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1 and not (name == "batch_ms" and value >= 0):
                raise UserError(f"Limits.{name} is {value}, it must be at least {0 if name == 'batch_ms' else 1}.")
        for small, large in (("images", "waiting_images"), ("request_mb", "waiting_mb")):
            if getattr(self, small) > getattr(self, large):
                raise UserError(
                    f"Limits.{small} is {getattr(self, small)}, more than Limits.{large}, {getattr(self, large)}, so "
                    "that such a request would never be taken: raise the second."
                )


class RefusedRequest(Exception):  # noqa: N818 - it is an answer
    """A request that is not answered as asked.

    Attributes:
        status: of HTTP.
        sentence: what is wrong and the way out.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Room:
    """The bytes that requests may take together.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._free = size

    def take(self, count: int) -> None:
        """Take bytes.

        Raises:
            RefusedRequest: there are not as many left.
        """
        if count > self._free:
            raise overloaded(1)
        self._free -= count

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """Yield what a request takes its bytes from; at the end of the block they are free again."""
        share = Share(self)
        try:
            yield share
        finally:
            self._free += share.taken


class Share:
    """What one request takes of a room.

    Args:
        room: what it is taken of.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self.taken = 0

    def take(self, count: int) -> None:
        """Take bytes.

        Raises:
            RefusedRequest: there are not as many left.
        """
        self._room.take(count)
        self.taken += count


def overloaded(seconds: int) -> RefusedRequest:
    """Return the answer to a request that comes while too many others wait."""
    return RefusedRequest(
        503, f"The server has as much to do as it takes: ask again in {seconds} s.", Retry_After=str(seconds)
    )
