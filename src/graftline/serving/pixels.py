"""How many pixels are decoded at once, so that images that are large together do not make the server large."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from graftline.data.decode import count_pixels

LARGE = 16_000_000  # pixels; what has more takes turns, so that photographs of phones (12 million) never wait for it
AT_ONCE = 50_000_000  # pixels of images that are decoded at once; each takes about 7 bytes meanwhile


class Pixels:
    """The pixels that images may have together while they are decoded; what comes first is let in first."""

    def __init__(self) -> None:
        self._free = AT_ONCE
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Wait until there is room for so many, and keep it until the end of the block."""
        count = min(count, AT_ONCE)
        await self._take(count)
        try:
            yield
        finally:
            self._give(count)

    async def _take(self, count: int) -> None:
        if not self._waiting and count <= self._free:
            self._free -= count
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was let in at the same moment
                self._give(count)
            raise

    def _give(self, count: int) -> None:
        self._free += count
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            count, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= count
                turn.set_result(None)


class Turns:
    """The turns in which the images that a model is sent are decoded.

    Args:
        large: of the large images of all models.
    """

    def __init__(self, large: Pixels) -> None:
        self._large = large
        self._others = Pixels()

    @asynccontextmanager
    async def of(self, count: int) -> AsyncIterator[None]:
        """Wait for the turn of an image of so many pixels, which ends with the block."""
        async with (self._large if count > LARGE else self._others).hold(count):
            yield


async def count_all(images: Sequence[bytes]) -> list[int]:
    """Return the number of pixels of each image file, as its header tells it; that of the largest where it does not.

    A header may be long, so that a thread reads it.
    """
    found = await asyncio.to_thread(lambda: list(map(count_pixels, images)))
    return [AT_ONCE if count is None else count for count in found]
