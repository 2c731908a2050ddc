"""The tracking server: is it there, which version, does it let us in, and does its clock agree with ours."""

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from graftline.errors import UserError
from graftline.files import check_folder
from graftline.pipeline.health.finding import Finding, ok, warning
from graftline.tracking.tracking import Tracking
from graftline.tracking.uri import absolute_uri, sqlite_file, store_name

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

MAX_SECONDS_APART = 5  # the Date header has whole seconds, and an answer takes some
_REQUEST_SECONDS = 4
_QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"  # needs a login where there is one; changes nothing
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def check_tracking(tracking: Tracking) -> Iterator[Finding]:
    """Look at the database or server that runs are tracked by."""
    uri = absolute_uri(tracking.uri)
    if urlsplit(uri).scheme in ("http", "https"):
        yield from _check_server(uri, tracking)
        return
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        check_folder(file.parent, "Tracking.uri")
        yield ok("tracking", f"{store_name(uri)}, which the first run makes")
        return
    tracking.check()
    yield ok("tracking", f"{store_name(uri)} answers")


def _check_server(uri: str, tracking: Tracking) -> Iterator[Finding]:
    import mlflow

    before = time.time()
    answer = _ask(uri, "/version", with_login=True)
    apart = _seconds_apart(answer, (before + time.time()) / 2)
    login = _ask(uri, _QUESTION, with_login=False).status_code in (401, 403)
    version = answer.text.strip() if answer.ok and len(answer.text) < 40 else "unknown"
    tracking.check()  # as a run asks, with its login
    if version.split(".")[:2] == mlflow.__version__.split(".")[:2]:
        yield ok("tracking", f"{store_name(uri)} answers, MLflow {version}")
    else:
        yield warning(
            "tracking",
            f"{store_name(uri)} has MLflow {version}, here is {mlflow.__version__}: bring the older one up to date",
        )
    yield _judge_login(uri, login)
    yield _judge_clock(apart)


def _ask(uri: str, path: str, *, with_login: bool) -> "Response":
    import requests
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    from graftline.tracking.client import request_limit
    from graftline.tracking.mlflow_errors import no_answer

    try:
        host = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        if not with_login:
            tls = host.verify, host.client_cert_path
            return requests.get(uri + path, timeout=_REQUEST_SECONDS, auth=_anonymous, verify=tls[0], cert=tls[1])
        with request_limit(_REQUEST_SECONDS):
            answer: Response = http_request(host, path, "GET")  # type: ignore[no-untyped-call]
            return answer
    except Exception as error:  # MLflow and requests have a dozen kinds for "not there"
        raise UserError(no_answer(uri, error)) from error


def _anonymous(request: "PreparedRequest") -> "PreparedRequest":
    """Keep requests from taking a login from ~/.netrc."""
    return request


def _judge_login(uri: str, has_login: bool) -> Finding:
    parts = urlsplit(uri)
    is_near = parts.hostname in _LOOPBACK
    if has_login and parts.scheme == "http" and not is_near:
        return warning(
            "login", "the server lets us in, but the password goes to it unencrypted: let it have TLS (https)"
        )
    if has_login:
        return ok("login", "the server wants one, and takes ours")
    if is_near:
        return ok("login", "the server wants none; it is on this machine")
    return warning(
        "login", "the server wants none: whoever reaches it can change every run and model: docs/docker.md sets one up"
    )


def _seconds_apart(answer: "Response", now: float) -> float | None:
    try:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp() + 0.5 - now
    except (KeyError, ValueError, TypeError):
        return None


def _judge_clock(apart: float | None) -> Finding:
    if apart is None:
        return ok("clock", "the server does not tell its time")
    if abs(apart) <= MAX_SECONDS_APART:
        return ok("clock", "agrees with the server's")
    order = "behind" if apart > 0 else "ahead of"
    return warning(
        "clock",
        f"is {abs(apart):,.0f} s {order} the server's, which puts runs and schedules out of order: let both follow NTP",
    )
