"""Requests that come at the same time are computed together."""

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from http_server import photo

from graftline.serving.batching import Answer, Batcher
from graftline.serving.limits import Limits
from graftline.serving.pixels import Pixels, Turns


def test_requests_are_put_together_up_to_the_limit() -> None:
    sizes: list[int] = []

    def predict(images: Sequence[bytes]) -> list[Answer]:
        time.sleep(0.1)
        return [Answer(np.array([len(image)]), None, None) for image in images]

    async def ask() -> list[list[Answer]]:
        batcher = Batcher(predict, Limits(batch=3), Turns(Pixels()), sizes.append)
        answers = await asyncio.gather(*(batcher.answer([photo]) for photo in photos))
        await batcher.close()
        return answers

    photos = [photo(seed) for seed in range(8)]
    found = [one.probabilities[0] for (one,) in asyncio.run(ask())]
    assert found == [len(one) for one in photos], "each request gets its own answer"
    assert sum(sizes) == 8
    assert 1 < max(sizes) <= 3
