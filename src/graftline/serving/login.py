"""Let only those ask who know the server's password (HTTP Basic, RFC 7617; any user name), or call it by its name."""

import base64
import binascii
import hmac
import ipaddress
import os
import re
from collections.abc import Sequence

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from graftline.errors import UserError

PASSWORD = "GRAFTLINE_SERVE_PASSWORD"  # noqa: S105 - the variable that holds it: others could read a command line
MIN_LENGTH = 12  # characters: whoever reaches the server may try as many as they like
OPEN = ("/ping",)  # says that the server lives, for health checks, and no more
CHALLENGE = {"WWW-Authenticate": 'Basic realm="graftline", charset="UTF-8"'}


def is_loopback(host: str) -> bool:
    """Return whether an address to listen on is reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_password(host: str) -> str | None:
    """Return the password that the environment holds for a server; None where it needs none.

    Raises:
        UserError: others may reach ``host`` and there is no password, or it is short.
    """
    password = os.environ.get(PASSWORD)
    if password is None and not is_loopback(host):
        raise UserError(
            f"Serve.host is {host}, which others may reach, and there is no password: set {PASSWORD}, or listen on "
            "127.0.0.1 and let a proxy with a login stand before it."
        )
    if password is not None and len(password) < MIN_LENGTH:
        raise UserError(
            f"{PASSWORD} has {len(password)} characters, it must have {MIN_LENGTH}: python3 -c 'import secrets; "
            "print(secrets.token_hex(16))' makes one; unset it where none is wanted."
        )
    return password


class Login:
    """Answers 401 to requests without the password (ASGI middleware).

    Args:
        app: what answers the others.
        password: that is asked for.
    """

    def __init__(self, app: ASGIApp, password: str) -> None:
        self._app = app
        self._password = password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._is_known(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        sentence = "This server wants its password: send it by HTTP Basic, with any user name."
        await JSONResponse({"error_code": "UNAUTHENTICATED", "message": sentence}, 401, CHALLENGE)(scope, receive, send)

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, encoded = headers.get(b"authorization", b"").partition(b" ")
        try:
            _, _, password = base64.b64decode(encoded, validate=True).partition(b":")
        except binascii.Error:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(password, self._password)


def host_name(header: bytes) -> str:
    """Return whom a request is for, by its header Host, without the port.

    >>> host_name(b"LocalHost:5001"), host_name(b"[::1]:5001"), host_name(b"example.org")
    ('localhost', '::1', 'example.org')
    """
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^:]+))(?::\d*)?", header.decode("latin-1").lower())
    return "" if found is None else found[1] or found[2]


class OwnNames:
    """Answers 403 to requests for another host (ASGI middleware).

    Where there is no password, its address alone keeps a browser on this machine from showing its answers to pages of
    others; but whoever owns a name may let it lead to 127.0.0.1 (DNS rebinding).

    Args:
        app: what answers the others.
        names: by which the server may be called, beside those of this machine itself.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names}
        or_password = "" if names else " or a password"  # with one, a list of names holds all the same
        told = "This server has another name: ask localhost, or start it with allowed_hosts=[NAME]"
        self._sentence = f"{told}{or_password}."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._is_own(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        content = {"error_code": "PERMISSION_DENIED", "message": self._sentence}
        await JSONResponse(content, 403)(scope, receive, send)

    def _is_own(self, headers: dict[bytes, bytes]) -> bool:
        name = host_name(headers.get(b"host", b""))
        return is_loopback(name) or name in self._names
