"""Connections to the page that end in time, also when a request never comes to its end.

uvicorn waits without limit for the rest of a request's head, and for a body. Here a head has `HEAD_SECONDS`.
The limit of a body is one of the rules in `autoencode.web.security`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
# A browser opens six. Each is an open file, of 1,024 that a process commonly may have.
MOST_CONNECTIONS = 512


class Connection(H11Protocol):
    """A connection of uvicorn, by h11, with a limit on the time for the head of each request."""

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
