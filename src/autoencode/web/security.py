"""Check who may use the page and what a browser may do with it. Every request passes here first.

rule                                         reply to a request that breaks it, or means
-------------------------------------------  --------------------------------------------------------------
Host names this machine                      400; keeps out a foreign name that resolves to it (DNS rebinding)
the token of this launch, as a cookie or as  401, for reads and writes, static files included
a bearer
Origin of a write is this page               403; the cookie proves nothing, as browsers attach it anyway
a body has a stated length, within its limit 411, 413
uploads keep to a rate, and few at once      429, see `Allowance` and `Uploads`
a body comes in its time                     as if its sender had left
the head of a request comes in its time      the connection ends, see `Connection`
pictures and data stay with this page        Content-Security-Policy, nosniff, no-referrer, same-origin
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from types import FrameType
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn import Server as UvicornServer
from uvicorn.protocols.http.h11_impl import H11Protocol

JSON_BYTES = 1024**2  # one bit per image: eight million images fit

# A person who drops a folder of photographs stays below the first; an upload takes 24 ms, so that the second
# leaves nine tenths of a core to other work.
UPLOADS_AT_ONCE, UPLOADS_PER_SECOND = 60, 4.0

# Bodies that are being received or decoded: their bytes are in memory. The longest queue for the decoder is
# so many times its limit for a file.
UPLOADS_IN_WORK = 16
BODY_SECONDS, BODY_BYTES_PER_SECOND = 10.0, 128 * 1024
HEAD_SECONDS = 10.0
# A browser opens six. Each is an open file, of 1,024 that a process commonly may have.
MOST_CONNECTIONS = 512

COOKIE = "autoencode-"  # begins the name of the cookie of each start
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_READS = frozenset({"GET", "HEAD"})
# A label or file name that slipped into the page as markup could neither run a script nor send a picture
# elsewhere.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",  # frames of a morph are drawn from memory
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",  # a page that framed this one could lead clicks to "Drop"
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    # A list of file names, which others chose, is never taken for a script.
    "X-Content-Type-Options": "nosniff",
    # The first address holds the token.
    "Referrer-Policy": "no-referrer",
    # A page that opened this one gets no handle to its window.
    "Cross-Origin-Opener-Policy": "same-origin",
    # Another program on a port of this machine is the same site, so that SameSite lets its pages send the
    # cookie along with an <img>.
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_NO_TOKEN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>autoencode</title>
<h1>This page needs its token</h1>
<p>Open the whole address that <code>autoencode app</code> printed when it started, including the part after
<code>?token=</code>. Each start has a new token.</p></html>"""


@dataclass(frozen=True)
class Trust:
    """The credentials of one launch of the page.

    Attributes:
        is_remote: whether other machines may connect; Host may then be any IP address or this machine's name.
        token: the secret of this launch.
    """

    is_remote: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """Name of the cookie."""
        # Browsers share cookies among the ports of a host: with one name, a second page would sign out the
        # first.
        return f"{COOKIE}{hashlib.sha256(self.token.encode()).hexdigest()[:8]}"

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        # Any address will do for a remote page: only a name can be rebound to another machine.
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        if name in _LOOPBACK_NAMES:
            return True
        return self.is_remote and (_is_address(name) or name == socket.gethostname().lower())

    def has_token(self, given: str | None) -> bool:
        """Whether this is the token."""
        # In constant time: `==` takes longer the more characters are right, which gives the token away.
        return given is not None and secrets.compare_digest(given.encode(), self.token.encode())


class Allowance:
    """A number of requests at once, and a rate after that (a token bucket).

    Args:
        most: requests at once.
        per_second: further requests per second.
    """

    def __init__(self, most: int = UPLOADS_AT_ONCE, per_second: float = UPLOADS_PER_SECOND) -> None:
        self.most, self.per_second = most, per_second
        # Monotonic: a clock that is set back would grant nothing until it has caught up.
        self._left, self._at = float(most), time.monotonic()

    def take(self) -> float:
        """Take one request; return 0, or the seconds to wait if none is left."""
        now = time.monotonic()
        self._left = min(self.most, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.per_second
        self._left -= 1
        return 0.0


class Uploads:
    """Files that are being received or decoded.

    Args:
        most: files at once.

    Attributes:
        turn: held while a file is decoded. Several that are slow to decode would take all the threads and
            processes that pictures need.
    """

    def __init__(self, most: int = UPLOADS_IN_WORK) -> None:
        self.allowance, self.turn = Allowance(), asyncio.Lock()
        self._most, self._count = most, 0

    def wait(self) -> float:
        """Take one of the allowance; return 0, or the seconds until another may come."""
        return BODY_SECONDS if self._count >= self._most else self.allowance.take()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Count a file, from its first byte until it is decoded."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Guard:
    """The application behind the rules.

    Args:
        app: answers the requests that keep to the rules.
        trust: who may use it.
        upload_bytes: the largest file to take.
    """

    def __init__(self, app: ASGIApp, trust: Trust, upload_bytes: int) -> None:
        self.app, self.trust, self.upload_bytes = app, trust, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # start and end of the server; it has no web sockets
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        entering = scope["path"] == "/" and self.trust.has_token(_query_token(scope))
        answer = self._rejection(scope, headers, entering) or self.app

        has_begun = False

        async def protected(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                out = MutableHeaders(scope=message)
                out.update(HEADERS)  # here, so that errors and rejections have them, too
                out.setdefault("Cache-Control", "no-store")  # a browser's cache outlives the page
                if entering:
                    value = f"{self.trust.cookie}={self.trust.token}; Path=/; HttpOnly; SameSite=Strict"
                    out.append("Set-Cookie", value)
            await send(message)

        try:
            await answer(scope, _in_time(receive, headers), protected)
        except asyncio.CancelledError:
            # The page ends while this is in work: uvicorn would print the whole way to here.
            if not has_begun:
                await _error(503, "The page was closed.")(scope, receive, protected)

    def _rejection(self, scope: Scope, headers: Headers, entering: bool) -> Response | None:
        host = headers.get("host", "")
        # One only: a proxy may check the first of two and the server use the second.
        if len(headers.getlist("host")) != 1 or not self.trust.knows_host(host):
            return _error(400, "The Host of the request is not the name of this machine.")
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        is_bearer = self.trust.has_token(bearer)
        if not (entering or is_bearer or self.trust.has_token(self._cookie(headers))):
            if scope["path"] == "/":
                return HTMLResponse(_NO_TOKEN, 401)
            # The cookie of an earlier start has another name; one who never opened the page has none.
            is_old = any(name.startswith(COOKIE) for name in _cookies(headers))
            why = (
                "The page was started again since this window was opened"
                if is_old
                else "The token is missing"
            )
            return _error(401, f"{why}. Open the address that autoencode app printed.")
        if scope["method"] in _READS:
            return None
        # Without an Origin only a bearer will do: no browser attaches that by itself, as it does the cookie.
        origin = headers.get("origin")
        if origin != f"{scope['scheme']}://{host}" and not (origin is None and is_bearer):
            return _error(403, "Only this page may change anything.")
        length = headers.get("content-length", "")
        # A body in chunks has no end that is known before, whatever length is stated beside.
        if not length.isdecimal() or "transfer-encoding" in headers:
            return _error(411, "The request states no Content-Length, or is sent in chunks.")
        limit = self.upload_bytes if scope["path"] == "/api/uploads" else JSON_BYTES
        if int(length) > limit:
            return _error(413, f"The request is larger than the limit of {limit / 1024**2:.0f} MB.")
        return None

    def _cookie(self, headers: Headers) -> str | None:
        found = _cookies(headers).get(self.trust.cookie)
        return None if found is None else found.value


def _cookies(headers: Headers) -> SimpleCookie:
    try:
        return SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return SimpleCookie()


def _in_time(receive: Receive, headers: Headers) -> Receive:
    """Return `receive` with a limit on the time for a body; who exceeds it is taken for gone."""
    length = headers.get("content-length", "")
    seconds = BODY_SECONDS + (int(length) if length.isdecimal() else 0) / BODY_BYTES_PER_SECOND
    deadline = asyncio.get_running_loop().time() + seconds
    is_whole = False

    async def timely() -> Message:
        nonlocal is_whole
        if is_whole:  # what is waited for now is that the sender leaves
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        is_whole = not message.get("more_body", False)
        return message

    return timely


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


def _query_token(scope: Scope) -> str | None:
    # Latin-1 decodes any bytes; a token is ASCII.
    values = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    return values[0] if values else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Connection(H11Protocol):
    """A connection of uvicorn, by h11, with a limit on the time for the head of each request.

    uvicorn itself waits without limit for the rest of a head. The limit of a body is a rule of `Guard`.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head, or end the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        # While an answer is under way, its request has been read, or the body has a limit of its own.
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(UvicornServer):
    """A server that ends in order, however often Ctrl-C is pressed."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a second signal does not cut short the second that answers under way have."""
        # uvicorn would cancel what it is doing, also its own end, and print where each was.
        if not self.should_exit:
            super().handle_exit(sig, frame)
