"""Who may talk to the page, and what a browser may do with it. Every request passes here first.

rule                                         answer to what breaks it
-------------------------------------------  --------------------------------------------------------------
Host names this machine                      400: a foreign name that resolves to it (DNS rebinding) is out
the token of this launch, as a cookie or as  401, for reads and writes, static files included
a bearer
Origin of a write is this page               403; a cookie alone proves nothing, as browsers send it along
a body has a stated length, within its cap   411, 413
pictures and data stay with this page        Content-Security-Policy, nosniff, no-referrer, same-origin
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 1024**2  # a bit for each of eight million images fits

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_READS = frozenset({"GET", "HEAD"})
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_NO_TOKEN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>autoencode</title>
<h1>This page needs its key</h1>
<p>Open the whole address that <code>autoencode app</code> printed when it started, with what follows
<code>?token=</code>. Each start has a new one.</p></html>"""


@dataclass(frozen=True)
class Trust:
    """What one launch holds to.

    Attributes:
        is_remote: whether other machines may connect; Host may then be any IP address or this machine's name.
        upload_bytes: the largest file to take.
        token: the secret of this launch.
    """

    is_remote: bool = False
    upload_bytes: int = 32 * 1024**2
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """Name of the cookie; browsers share cookies among ports, and each launch has its own."""
        return f"autoencode-{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this machine.

        An address cannot be rebound to another machine, as a name can.
        """
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in _LOOPBACK_NAMES:
            return True
        return self.is_remote and (_is_address(name) or name == socket.gethostname().lower())

    def has_token(self, given: str | None) -> bool:
        """Whether this is the token, in time that does not depend on how near it is."""
        return given is not None and secrets.compare_digest(given.encode(), self.token.encode())

    def body_limit(self, path: str) -> int:
        """Bytes that a request to a path may carry."""
        return self.upload_bytes if path == "/api/uploads" else JSON_BYTES


class Guard:
    """The application behind the rules.

    Args:
        app: what answers a request that keeps to them.
        trust: what they are.
    """

    def __init__(self, app: ASGIApp, trust: Trust) -> None:
        self.app, self.trust = app, trust

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # the life of the server; there are no web sockets
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        entering = scope["path"] == "/" and self.trust.has_token(_query_token(scope))
        answer = self._rejection(scope, headers, entering) or self.app

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out.update(HEADERS)
                out.setdefault("Cache-Control", "no-store")
                if entering:
                    value = f"{self.trust.cookie}={self.trust.token}; Path=/; HttpOnly; SameSite=Strict"
                    out.append("Set-Cookie", value)
            await send(message)

        await answer(scope, receive, protected)

    def _rejection(self, scope: Scope, headers: Headers, entering: bool) -> Response | None:
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self.trust.knows_host(host):
            return _error(400, "This page answers under the name of its own machine alone.")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        is_bearer = self.trust.has_token(bearer)
        if not (entering or is_bearer or self.trust.has_token(self._cookie(headers))):
            if scope["path"] == "/":
                return HTMLResponse(_NO_TOKEN, 401)
            return _error(401, "The key of this page is missing. Open the address printed at its start.")
        if scope["method"] in _READS:
            return None
        origin = headers.get("origin")
        if origin != f"{scope['scheme']}://{host}" and not (origin is None and is_bearer):
            return _error(403, "Only this page itself may change anything.")
        length = headers.get("content-length", "")
        # A body in chunks is as long as it likes, whatever length is stated beside.
        if not length.isdecimal() or "transfer-encoding" in headers:
            return _error(411, "The length of what is sent must be stated.")
        limit = self.trust.body_limit(scope["path"])
        if int(length) > limit:
            return _error(413, f"That is larger than the limit of {limit / 1024**2:.0f} MB.")
        return None

    def _cookie(self, headers: Headers) -> str | None:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.trust.cookie)
        except CookieError:
            return None
        return None if found is None else found.value


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _query_token(scope: Scope) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return values[0] if values else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
