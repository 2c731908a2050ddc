"""The place of one model in a server: another version is loaded beside it and takes its place."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from graftline.bundle.answers import Watch
from graftline.bundle.ensemble import AnyPredictor
from graftline.errors import first_line
from graftline.execution import Execution
from graftline.serving.batching import Answer, Batcher
from graftline.serving.limits import Limits, RefusedRequest, overloaded
from graftline.serving.measures import Measures
from graftline.serving.origin import ModelSource, Origin
from graftline.serving.pixels import Pixels, Turns, count_all
from graftline.serving.served import ServedModel

logger = logging.getLogger(__name__)

MakeWatch = Callable[[AnyPredictor, Path], Watch | None]
MOST_EXPLAINED = 2  # images at a time, and replayed: where there is no map, one takes the network 50 times
MOST_TURNS_SKIPPED = 32  # looks at a moved alias between two tries to load what could not be loaded

T = TypeVar("T")


class Running(NamedTuple):
    """A loaded model with the queue before it."""

    model: ServedModel
    batcher: Batcher


class Slot:
    """The place of one model.

    Args:
        source: what was asked for.
        execution: where it runs.
        limits: of its queue, and of images.
        measures: what it counts.
        large: the pixels of large images that all models may decode at once.
        watch: makes what is shown each answer; None: nothing is.
    """

    def __init__(
        self,
        source: ModelSource,
        execution: Execution,
        limits: Limits,
        measures: Measures,
        large: Pixels,
        watch: MakeWatch | None = None,
    ) -> None:
        self.source = source
        self._execution = execution
        self._limits = limits
        self._measures = measures
        self._turns = Turns(large)
        self._watch = watch
        self._running: Running | None = None
        self._failed: Origin | None = None
        self._failure: str | None = None
        self._had_champion = False
        self._skip, self._next_skip = 0, 1
        self._explaining = 0
        self._explainers = ThreadPoolExecutor(MOST_EXPLAINED, "explain")  # asyncio's own threads read requests
        self.problem: str | None = None

    @property
    def model(self) -> ServedModel:
        """The model that answers now."""
        return self.running.model

    @property
    def running(self) -> Running:
        """The model that answers now, with its queue: a request takes it once, and all its images go there."""
        assert self._running is not None, "start() comes first"
        return self._running

    async def start(self) -> None:
        """Load the model.

        Raises:
            UserError: there is none, or it does not give here what it gave where it was saved.
        """
        origin = await _run_aside(self.source.find)
        self._put(await _run_aside(partial(self._load, origin)))
        self._had_champion = not origin.stands_in

    async def refresh(self) -> None:
        """Load what the name means now, if that is another model; one that cannot be loaded changes nothing.

        Nor does one that stands in for a champion: it is taken at the start only, and a champion that is gone is a
        problem.
        """
        try:
            origin = await _run_aside(self.source.find)
        except Exception as error:  # whatever a database may lead to
            self._report(f"Where '{self.source.name}' leads cannot be looked up ({first_line(error)})")
            return
        if origin.stands_in and self._had_champion:
            self._report(f"'{self.source.name}' has no champion any more")
            return
        self._had_champion = not origin.stands_in
        if origin.stands_in or origin == self.model.origin:
            self._failed, self.problem = None, None
            return
        if origin == self._failed and self._skip > 0:
            self._skip -= 1
            self.problem = self._failure  # in place of that of a look that has failed meanwhile
            return
        try:
            model = await _run_aside(partial(self._load, origin))
        except Exception as error:  # whatever a bundle may lead to: the old model goes on
            self._next_skip = min(2 * self._next_skip, MOST_TURNS_SKIPPED) if origin == self._failed else 1
            self._failed, self._skip = origin, self._next_skip
            self._report(f"{origin.uri} cannot take over ({first_line(error)})")
            self._failure = self.problem
            return
        before = self.running
        self._put(model)
        self._failed, self.problem = None, None
        logger.info(f"{origin.uri} answers now, in place of {before.model.origin.uri}.")
        await before.batcher.close()
        await asyncio.to_thread(before.model.close)

    async def answer(self, images: Sequence[bytes]) -> tuple[ServedModel, list[Answer]]:
        """Classify the images of one request, all of them with the same model.

        Raises:
            RefusedRequest: too many wait.
        """
        model, batcher = self.running
        return model, await batcher.answer(images)

    async def explain(self, image: bytes) -> tuple[ServedModel, dict[str, Any]]:
        """Say why an image is answered as it is.

        Raises:
            RefusedRequest: others are being explained or replayed, or the model is an ensemble.
            ValueError: it cannot be read.
        """
        model = self.model
        if model.explainer is None:
            raise RefusedRequest(400, "An ensemble is not explained: serve one of its members, ENSEMBLE/members/1.")
        return model, await self._explain(model.explainer.explain, image)

    async def replay(self, image: bytes) -> tuple[ServedModel, dict[str, Any] | None]:
        """Return what becomes of an image step by step; None of an ensemble.

        Raises:
            RefusedRequest: others are being explained or replayed.
            ValueError: it cannot be read.
        """
        model = self.model
        return model, await self._explain(model.steps, image)

    async def _explain(self, explain: Callable[[bytes], T], image: bytes) -> T:
        if self._explaining >= MOST_EXPLAINED:
            raise overloaded(1)
        self._explaining += 1
        try:
            (count,) = await count_all([image])
            async with self._turns.of(count):
                work = asyncio.get_running_loop().run_in_executor(self._explainers, explain, image)
                try:
                    return await asyncio.shield(work)
                finally:
                    if not work.done():  # given up: it is computed all the same
                        await asyncio.wait([work])
        finally:
            self._explaining -= 1

    async def close(self) -> None:
        """Answer what waits, and stop."""
        if self._running is not None:
            await self._running.batcher.close()
            await asyncio.to_thread(self._running.model.close)
        self._explainers.shutdown(wait=False)

    def health(self) -> dict[str, Any]:
        """Return which model answers, and what is wrong with the one that should."""
        return {**self.model.identity(), "waiting_images": self.running.batcher.num_waiting, "problem": self.problem}

    def _load(self, origin: Origin) -> ServedModel:
        bundle = self.source.fetch(origin)
        return ServedModel.load(self.source.name, origin, bundle, self._execution, self._limits.megapixels, self._watch)

    def _put(self, model: ServedModel) -> None:
        batcher = Batcher(model.predict, self._limits, self._turns, self._measures.batch)
        self._running = Running(model, batcher)

    def _report(self, what: str) -> None:
        problem = f"{what}: {self.model.origin.uri} goes on."
        if problem != self.problem:
            logger.warning(problem)
        self.problem = problem


async def _run_aside(function: Callable[[], T]) -> T:
    """Return ``function()``, run in a thread that the end of a server, unlike with asyncio's own, does not wait for."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever gives up waiting for it does not cancel it

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="model").start()
    return await asyncio.wrap_future(future)
