"""Who is let in to the server, and what a request may be, before anything of it is read.

Whoever may reach the server from another machine needs a token, and a page of another server may not ask in the name of
a visitor. No path of the server can be asked for: pictures are known by the number of their verdict.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anomalib_lite.serving.history import History
from anomalib_lite.serving.line import Line

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LARGEST_WORDS = 1 << 16  # bytes of a request that brings no picture
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_ENCODED = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
# What the page is made of: it holds nothing of anybody's, and asks for the token itself.
PAGE = {
    "/": ("serving/page.html", "text/html"),
    "/page.css": ("serving/page.css", "text/css"),
    "/zoom.css": ("report/zoom.css", "text/css"),
    "/page.js": ("serving/page.js", "text/javascript"),
    "/page.charts.js": ("serving/page.charts.js", "text/javascript"),
    "/zoom.js": ("report/zoom.js", "text/javascript"),
}
_OPEN = (*PAGE, "/healthz", "/readyz")  # to everybody


class UnknownError(LookupError):
    """A part type or a verdict that is not there; the message is for the client."""


@dataclass
class Settings:
    """What a server allows.

    Attributes
    ----------
    tokens : names by token; without any, everybody may do everything, and only on loopback
    hosts : names that the server may be called by, where there are no tokens (a page of a stranger may lead a browser
        here under a name of its own)
    largest_body : bytes of a request
    patience : seconds for a body to come in, and for a verdict
    """

    tokens: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]", "testserver")
    largest_body: int = 64 << 20
    patience: float = 30.0


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def unwelcome(request: Request, settings: Settings) -> tuple[int, str, str] | None:
    """Status, detail and a word for why a request is not answered, or None."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.split("://")[-1] != host:
        return 403, "pages of other servers may not ask this one", "origin"
    takes_pictures = request.url.path.endswith("/score")
    length = request.headers.get("content-length")
    if length is None and not takes_pictures and "transfer-encoding" in request.headers:
        return 411, "tell the length of the body", "size"
    most = settings.largest_body if takes_pictures else _LARGEST_WORDS
    if length is not None and (not length.isdigit() or int(length) > most):
        return 413, f"the body is larger than {most} bytes", "size"
    if not settings.tokens:
        if host.rsplit(":", 1)[0] not in settings.hosts and host not in settings.hosts:
            return 403, "this server is called by another name", "host"
        return None
    path = request.url.path
    if path in _OPEN:
        return None
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if any(hmac.compare_digest(given, token.encode()) for token in settings.tokens):
        return None
    return 401, "a token is needed: Authorization: Bearer TOKEN", "token"


class Guard:
    """Stands before the application, as ASGI: refuses who is unwelcome, and says what answers may be used for."""

    def __init__(self, app: ASGIApp, settings: Settings, refused: Callable[[str], None]):
        self.app, self.settings, self.refused = app, settings, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_ENCODED]
            await send(message)

        problem = unwelcome(Request(scope), self.settings)
        if problem is None:
            await self.app(scope, receive, send_with_headers)
            return
        status, detail, word = problem
        self.refused(word)
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse({"detail": detail}, status, headers)(scope, receive, send_with_headers)


def known_line(lines: Mapping[str, Line], part: str) -> Line:
    """The part type that is asked for.

    Raises
    ------
    UnknownError
        If there is none of that name.
    """
    if part not in lines:
        raise UnknownError(f"there is no part type {part!r}")
    return lines[part]


def known_entry(lines: Mapping[str, Line], history: History, identity: int) -> dict[str, Any]:
    """The verdict that is asked for.

    Raises
    ------
    UnknownError
        If there is none of that number.
    """
    entry = history.entry(identity) if 0 < identity < 2**62 else None
    if entry is None or entry["part"] not in lines:
        raise UnknownError(f"there is no verdict {identity}")
    return entry
