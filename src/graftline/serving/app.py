"""The addresses of a server, and what each of them answers."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from graftline import __version__
from graftline.serving.batching import Answer
from graftline.serving.hearing import HeardOut
from graftline.serving.limits import MEGABYTE, Limits, RefusedRequest, Room
from graftline.serving.login import Login, OwnNames
from graftline.serving.measures import Measures
from graftline.serving.openapi import specification
from graftline.serving.requests import Parse, flawed, parse_images, parse_table, read_images
from graftline.serving.served import ServedModel
from graftline.serving.slot import Slot

logger = logging.getLogger(__name__)

SITE = {
    "": ("index.html", "text/html"),
    "docs": ("docs.html", "text/html"),
    "site/page.js": ("page.js", "text/javascript"),
    "site/docs.js": ("docs.js", "text/javascript"),
    "site/page.css": ("page.css", "text/css"),
}
_POLICY = "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; script-src 'self'; style-src 'self'"
_ERROR_CODES = {404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR", 503: "TEMPORARILY_UNAVAILABLE"}  # MLflow's names

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")
Responder = Callable[[Slot, list[bytes]], Coroutine[Any, Any, tuple[ServedModel, dict[str, Any]]]]


@dataclass(frozen=True)
class Service:
    """What answers requests.

    Attributes:
        slots: the models by name; the first one is meant where an address names none.
        limits: what is taken in.
        measures: what is counted.
        password: that requests must have; None: nobody is asked for one.
        allowed_hosts: names by which the server may be called; with a password, and without any: all names.
    """

    slots: Mapping[str, Slot]
    limits: Limits
    measures: Measures
    password: str | None = None
    allowed_hosts: Sequence[str] = ()

    def app(self) -> Starlette:
        """Return the application of these models."""
        room = Room(self.limits.waiting_mb * MEGABYTE)
        own = [_Named(name, self._routes(slot, room)) for name, slot in self.slots.items()]
        routes: list[BaseRoute] = [*self._routes(next(iter(self.slots.values())), room), *own, *self._shared_routes()]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _fault})
        app.router.redirect_slashes = False  # it would lead to http:// behind a proxy that adds TLS
        if self.password is not None:
            app.add_middleware(Login, password=self.password)
        if self.password is None or self.allowed_hosts:
            app.add_middleware(OwnNames, names=self.allowed_hosts)
        app.add_middleware(HeardOut, limits=self.limits)
        app.add_middleware(_Counting, measures=self.measures)
        return app

    def _routes(self, slot: Slot, room: Room) -> list[Route]:
        """Return the addresses of one model."""
        answers: dict[str, tuple[Responder, Parse]] = {
            "/predict": (self._predict, parse_images),
            "/invocations": (self._invocations, parse_table),
            "/explain": (self._explain, parse_images),
            "/replay": (self._replay, parse_images),
        }
        return [
            *(Route(path, self._guarded(slot, room, *of), methods=["POST"]) for path, of in answers.items()),
            Route("/model", _json_handler(lambda: slot.model.about()), methods=["GET"]),
        ]

    def _shared_routes(self) -> list[Route]:
        async def metrics(_request: Request) -> Response:
            return PlainTextResponse(self.measures.text(self._health()), media_type="text/plain; version=0.0.4")

        async def ping(_request: Request) -> Response:
            return Response("\n", media_type="application/json")

        async def version(_request: Request) -> Response:
            return Response(_mlflow_version(), media_type="application/json")

        addresses: dict[str, Handler] = {
            "/ping": ping,
            "/version": version,
            "/metrics": metrics,
            "/health": _json_handler(self._told_health),
            "/models": _json_handler(lambda: {"models": [slot.model.identity() for slot in self.slots.values()]}),
            "/openapi.json": _json_handler(self._specification),
        }
        site = [Route(f"/{path}", _file(*entry), methods=["GET"]) for path, entry in SITE.items()]
        return [*(Route(path, handler, methods=["GET"]) for path, handler in addresses.items()), *site]

    def _specification(self) -> dict[str, Any]:
        return specification(list(self.slots), self.limits, has_password=self.password is not None)

    def _health(self) -> list[dict[str, Any]]:
        return [slot.health() for slot in self.slots.values()]

    def _told_health(self) -> dict[str, Any]:
        models = self._health()
        return {"status": "degraded" if any(one["problem"] for one in models) else "ok", "models": models}

    def _guarded(self, slot: Slot, room: Room, respond: Responder, parse: Parse) -> Handler:
        """Return a handler that answers what cannot be done with its status and one sentence."""

        async def answer(request: Request) -> Response:
            try:
                slot.running.batcher.check_room()  # before megabytes are read
                with room.share() as share:
                    images = await read_images(request, self.limits, share, parse)
                    model, content = await _while_connected(request, respond(slot, images))
                    return JSONResponse(content, headers=_named(model))
            except RefusedRequest as refused:
                return _error(refused.status, refused.sentence, refused.headers)

        return answer

    async def _predict(self, slot: Slot, images: list[bytes]) -> tuple[ServedModel, dict[str, Any]]:
        model, answers = await slot.answer(images)
        return model, {**model.identity(), "predictions": self._counted(model, answers)}

    async def _invocations(self, slot: Slot, images: list[bytes]) -> tuple[ServedModel, dict[str, Any]]:
        model, answers = await slot.answer(images)
        return model, {"predictions": model.rows(self._counted(model, answers))}

    async def _explain(self, slot: Slot, images: list[bytes]) -> tuple[ServedModel, dict[str, Any]]:
        model, explained = await _of_one(slot.explain, images)
        return model, {**model.identity(), **explained}

    async def _replay(self, slot: Slot, images: list[bytes]) -> tuple[ServedModel, dict[str, Any]]:
        model, steps = await _of_one(slot.replay, images)
        return model, {**model.identity(), "steps": steps}

    def _counted(self, model: ServedModel, answers: list[Answer]) -> list[dict[str, Any]]:
        flaws = {number: answer.flaw for number, answer in enumerate(answers) if answer.flaw is not None}
        if flaws:
            raise flawed(flaws)
        predictions = model.predictions(answers)
        self.measures.predictions(model.name, predictions)
        return predictions


def _named(model: ServedModel) -> dict[str, str]:
    """Return the headers that name what answered: MLflow's table has no place for it."""
    named = {"Model-Version": model.origin.version, "Model-Digest": model.predictor.digest}
    return {name: str(value) for name, value in named.items() if value is not None}


class _Named(Mount):
    """The addresses of a model below its name, in which a brace is a brace: in Starlette's paths it is a wildcard."""

    def __init__(self, name: str, routes: Sequence[BaseRoute]) -> None:
        super().__init__("/models", app=Router(routes, redirect_slashes=False))
        self.path_regex = re.compile(f"^{re.escape(f'/models/{name}')}/(?P<path>.*)$")


class _Counting:
    """Counts requests by address and status, as ASGI calls it."""

    def __init__(self, app: Any, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # an address that is none of ours would give a line of its own to each one that somebody tries
            path = "other" if status in (307, 401, 403, 404, 405) else scope["path"]
            self._measures.request(path, status, time.perf_counter() - start)


async def _of_one(respond: Callable[[bytes], Awaitable[T]], images: list[bytes]) -> T:
    (image, *others) = images
    if others:
        raise RefusedRequest(400, "This address takes one image.")
    try:
        return await respond(image)
    except ValueError as error:
        raise flawed({0: str(error)}) from error


async def _while_connected(request: Request, pending: Coroutine[Any, Any, T]) -> T:
    """Return an answer, or give it up once nobody waits for it: after a request there comes the connection's end alone.

    Raises:
        RefusedRequest: it was given up.
    """
    answer, end = asyncio.ensure_future(pending), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, end), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done() and end.result()["type"] == "http.disconnect":
            raise RefusedRequest(400, "The connection was broken before the answer was there.")
        return await answer
    finally:
        answer.cancel()
        end.cancel()


def _json_handler(content: Callable[[], Mapping[str, Any]]) -> Handler:
    """Return a handler that answers with content as JSON, whatever the request."""

    async def answer(_request: Request) -> Response:
        return JSONResponse(content())

    return answer


def _file(name: str, media_type: str) -> Handler:
    content = files("graftline.serving").joinpath("site", name).read_bytes()
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return answer


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as MLflow's clients read it."""
    content = {"error_code": _ERROR_CODES.get(status, "BAD_REQUEST"), "message": sentence}
    return JSONResponse(content, status, dict(headers or {}))


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer an address or a method that there is not."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return _error(405, f"{request.url.path} takes {allowed}, not {request.method}.", error.headers)
    if error.status_code == 404:
        return _error(404, "There is no such address: /docs lists them.")
    return _error(error.status_code, str(error.detail), error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """Answer what we did not think of; the log has the rest."""
    logger.error(f"{request.url.path} failed: {type(error).__name__}: {error}")
    return _error(500, "The server has failed at this request: its log says more.")


def _mlflow_version() -> str:
    """Return the version of MLflow here, which its clients ask for; of graftline where there is none."""
    try:
        return version_of("mlflow")
    except PackageNotFoundError:
        return __version__
