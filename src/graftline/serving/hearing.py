"""Hear a request out before it is refused."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from graftline.serving.limits import MEGABYTE, Limits

_HEARD_OUT = 4  # times the limit of a request


class HeardOut:
    """Takes the rest of a request before it is answered early, where the connection ends with the answer (ASGI).

    A client that sends all first and reads then, as Python's urllib, would get a broken connection in place of a
    refusal. On a connection that stays, the rest is passed over after the answer.

    Args:
        app: what answers.
        limits: of what is taken in.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        headers = dict(scope["headers"])
        ends = scope.get("http_version") == "1.0" or b"close" in headers.get(b"connection", b"").lower()
        if not ends or b"expect" in headers:  # that client waits for a word before it sends
            await self._app(scope, receive, send)
            return
        is_whole = False

        async def receiving() -> Message:
            nonlocal is_whole
            message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] != 408:  # it has had its time
                left = _HEARD_OUT * self._limits.request_mb * MEGABYTE
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.request_seconds):
                        while not is_whole and left > 0:
                            left -= len((await receiving()).get("body", b""))
            await send(message)

        await self._app(scope, receiving, sending)
