"""Collect the images of many requests into batches, in a queue that cannot grow beyond its size.

Letters: K classes.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from graftline.serving.limits import Limits, overloaded
from graftline.serving.pixels import Turns, count_all

WORKERS = 2  # batches at a time: while one is in the network, the images of the other are decoded
_LONGEST_WAIT = 60  # seconds that Retry-After names, at most


@dataclass(frozen=True)
class Answer:
    """What a predictor gave for an image.

    Attributes:
        probabilities: (K,); NaN if it cannot be read.
        refused: whether it is none of the classes; None where the model does not tell.
        flaw: why it cannot be read; None if it can.
    """

    probabilities: np.ndarray
    refused: bool | None
    flaw: str | None


Predict = Callable[[Sequence[bytes]], list[Answer]]


class Batcher:
    """Runs a predictor on what waits, in threads; a batch takes all that has come while the others were computed.

    Args:
        predict: answers image files; called in threads, `WORKERS` at a time.
        limits: size of a batch and of the queue.
        turns: in which images are decoded; before its turn an image is in no batch.
        on_batch: is given the number of images of each batch.
    """

    def __init__(self, predict: Predict, limits: Limits, turns: Turns, on_batch: Callable[[int], None]) -> None:
        self._predict = predict
        self._limits = limits
        self._turns = turns
        self._on_batch = on_batch
        self._waiting: set[asyncio.Future[Answer]] = set()  # of images that are in no batch yet
        self._ready: OrderedDict[asyncio.Future[Answer], bytes] = OrderedDict()  # those whose turn it is
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()  # of the worker that collects
        self._pool = ThreadPoolExecutor(WORKERS, "batch")
        self._seconds_per_image = 0.0  # lately
        self._last_size = 0
        self._closing = False
        self._workers = [asyncio.create_task(self._work()) for _ in range(WORKERS)]

    @property
    def num_waiting(self) -> int:
        """How many images wait."""
        return len(self._waiting)

    def check_room(self, count: int = 1) -> None:
        """Make sure that so many images can wait.

        Raises:
            RefusedRequest: they cannot.
        """
        if len(self._waiting) + count > self._limits.waiting_images:
            seconds = math.ceil(self._seconds_per_image * len(self._waiting))
            raise overloaded(min(max(1, seconds), _LONGEST_WAIT))

    async def answer(self, images: Sequence[bytes]) -> list[Answer]:
        """Return the answers to the images of one request; when that is given up, those that wait are forgotten.

        Raises:
            RefusedRequest: too many wait.
        """
        self.check_room(len(images))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in images]
        self._waiting.update(futures)
        try:
            counts = await count_all(images)
            return await asyncio.gather(*map(self._answer, images, counts, futures))
        finally:
            self._waiting.difference_update(futures)
            self._arrived.set()  # a worker may wait for the last ones to close

    async def _answer(self, image: bytes, count: int, future: "asyncio.Future[Answer]") -> Answer:
        async with self._turns.of(count):
            self._ready[future] = image
            self._arrived.set()
            try:
                return await asyncio.shield(future)
            finally:
                is_in_a_batch = self._ready.pop(future, None) is None
                if is_in_a_batch and not future.done():  # given up: it is decoded all the same
                    await asyncio.wait([future])

    async def close(self) -> None:
        """Answer what waits, and stop."""
        self._closing = True
        self._arrived.set()
        await asyncio.gather(*self._workers)
        self._pool.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._collect():
            start = time.perf_counter()
            futures, images = zip(*batch, strict=True)
            try:
                answers = await loop.run_in_executor(self._pool, self._predict, images)
            except Exception as error:  # each request of the batch answers with it
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            seconds = (time.perf_counter() - start) / len(batch) / WORKERS
            self._seconds_per_image += (seconds - self._seconds_per_image) / 8
            self._on_batch(len(batch))
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _collect(self) -> list[tuple["asyncio.Future[Answer]", bytes]]:
        """Return the next batch; an empty one if nothing comes any more."""
        async with self._turn:
            while True:
                while not self._ready:
                    if self._closing and not self._waiting:
                        return []
                    self._arrived.clear()
                    await self._arrived.wait()
                # one client that waits for each answer has nothing to gain from waiting
                if self._last_size > 1 and len(self._ready) < self._limits.batch and not self._closing:
                    await asyncio.sleep(self._limits.batch_ms / 1000)
                batch = [self._ready.popitem(last=False) for _ in range(min(self._limits.batch, len(self._ready)))]
                if batch:  # none, if the request was given up meanwhile
                    self._waiting.difference_update(future for future, _ in batch)
                    self._last_size = len(batch)
                    return batch
