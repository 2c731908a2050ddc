"""Images that are large together do not make a server large, nor do they hold up small ones."""

import asyncio
import io
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from http_server import FORM, HttpServer, form, photo
from PIL import Image

from graftline.data.decode import FORMATS, count_pixels
from graftline.serving.batching import Answer, Batcher
from graftline.serving.limits import Limits
from graftline.serving.pixels import AT_ONCE, LARGE, Pixels, Turns

NONE = Answer(np.zeros(1), None, None)


def blank(width: int, height: int, mode: str = "L", kind: str = "PNG") -> bytes:
    """An image of one color, which is small as a file."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


LARGE_FILE = blank(math.isqrt(LARGE) + 1, math.isqrt(LARGE) + 1, "1")


def test_the_header_tells_the_size() -> None:
    for kind in FORMATS:
        assert count_pixels(blank(30, 20, "RGB", kind)) == 600, kind
    for content in (b"", b"hello", blank(30, 20)[:20], bytes(128) + b"DICM" + bytes(99)):
        assert count_pixels(content) is None


def test_who_comes_first_is_let_in_first() -> None:
    order: list[str] = []

    async def hold(pixels: Pixels, name: str, count: int) -> None:
        async with pixels.hold(count):
            order.append(name)
            await asyncio.sleep(0)

    async def ask() -> None:
        pixels = Pixels()
        async with pixels.hold(AT_ONCE - 10):
            given_up = asyncio.create_task(hold(pixels, "given up", 20))
            others = [asyncio.create_task(hold(pixels, str(count), count)) for count in (11, 2 * AT_ONCE, 5)]
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.sleep(0)
            assert order == [], "5 would fit, but came later"
        await asyncio.gather(*others)
        async with asyncio.timeout(5), pixels.hold(AT_ONCE):
            pass

    asyncio.run(ask())
    assert order == ["11", str(2 * AT_ONCE), "5"]


def test_large_images_take_turns_over_all_models_and_small_ones_do_not_wait() -> None:
    small, at_work, most, done = photo(1), 0, 0, threading.Event()
    lock = threading.Lock()

    def predict(images: Sequence[bytes]) -> list[Answer]:
        nonlocal at_work, most
        if LARGE_FILE in images:
            with lock:
                at_work += images.count(LARGE_FILE)
                most = max(most, at_work)
            assert done.wait(10)
            with lock:
                at_work -= images.count(LARGE_FILE)
        return [NONE] * len(images)

    async def ask() -> None:
        large = Pixels()
        batchers = [Batcher(predict, Limits(), Turns(large), lambda _: None) for _ in range(2)]
        slow = [asyncio.create_task(one.answer([LARGE_FILE] * 8)) for one in batchers]
        await asyncio.sleep(0.2)
        for one in batchers:
            async with asyncio.timeout(5):
                assert len(await one.answer([small] * 3)) == 3
        assert not any(task.done() for task in slow)
        assert sum(one.num_waiting for one in batchers) == 16 - AT_ONCE // LARGE
        done.set()
        assert [len(found) for found in await asyncio.gather(*slow)] == [8, 8]
        for one in batchers:
            await one.close()

    asyncio.run(ask())
    assert most == AT_ONCE // LARGE


def test_what_is_given_up_is_not_computed() -> None:
    seen: list[bytes] = []
    done = threading.Event()

    def predict(images: Sequence[bytes]) -> list[Answer]:
        seen.extend(images)
        assert done.wait(10)
        return [NONE] * len(images)

    async def ask() -> None:
        batcher = Batcher(predict, Limits(batch=1), Turns(Pixels()), lambda _: None)
        given_up = asyncio.create_task(batcher.answer([photo(seed) for seed in range(9)]))
        await asyncio.sleep(0.1)
        given_up.cancel()
        kept = asyncio.create_task(batcher.answer([photo(9), LARGE_FILE, LARGE_FILE, LARGE_FILE, LARGE_FILE]))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(batcher.close())
        done.set()
        assert len(await kept) == 5, "closing answers what waits, for its turn too"
        with suppress(asyncio.CancelledError):
            await given_up
        await closing
        assert batcher.num_waiting == 0

    asyncio.run(ask())
    assert set(seen) == {photo(0), photo(1), photo(9), LARGE_FILE}, "two were being computed"


@pytest.mark.long
def test_memory_stays_where_images_are_large(bundle: Path, tmp_path: Path) -> None:
    large = form(*[blank(7071, 7071, "RGBA")] * 2)  # of 200 kB each
    with HttpServer(tmp_path, f"model={bundle}") as server, ThreadPoolExecutor(1) as pool:
        server.ask("/predict", photo(1))
        before = most = server.memory
        asked = pool.submit(server.ask, "/predict", large, FORM)
        num_answered = 0
        while not asked.done():
            num_answered += server.ask("/predict", photo(1)).status == 200
            most = max(most, server.memory)
            time.sleep(0.02)
        assert asked.result().status == 200
        assert num_answered >= 2
        assert most < before + 700, "one at a time"


@pytest.mark.parametrize("path", ["/explain", "/replay"])
def test_who_asks_why_waits_for_a_turn_too(bundle: Path, tmp_path: Path, path: str) -> None:
    with HttpServer(tmp_path, f"model={bundle}") as server, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: server.ask(path, LARGE_FILE, "image/png"), range(12)))
    refused = [answer for answer in found if answer.status == 503]
    assert {answer.status for answer in found} == {200, 503}
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
