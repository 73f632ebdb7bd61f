"""A function in a process of its own: it tells how far it is, and can be ended at any moment.

For work that cannot be asked to stop, such as that of a library which says nothing for half a minute.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from autoencode.errors import AutoencodeError

LOOK_SECONDS = 0.1

Result = TypeVar("Result")


def run_apart(function: Callable[..., Result], *args: object, report: Callable[[int, int], None]) -> Result:
    """Return the result of a function.

    Args:
        function: picklable, as are its arguments and its result; called with `args` and what takes
            (steps done, steps in all).
        args: of the function.
        report: called with the same ten times a second at least; what it raises ends the process.

    Raises:
        AutoencodeError: the process ended by itself.
        Exception: whatever the function raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork of threads that hold locks can stand still
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    # Apart from this thread, as the process takes it only once it has loaded what it needs.
    threading.Thread(target=_send, args=(ours, (function, args)), daemon=True).start()
    at = (0, 0)
    try:
        while True:
            report(*at)
            if not ours.poll(LOOK_SECONDS):
                continue
            try:
                kind, value = ours.recv()
            except (EOFError, OSError):
                raise AutoencodeError("The process that did this ended by itself. Is memory short?") from None
            if kind == "done":
                result: Result = value
                return result
            if kind == "failed":
                raise value
            at = value
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _send(connection: Connection[Any, Any], message: object) -> None:
    with contextlib.suppress(OSError):  # the process was ended before it took it
        connection.send(message)


def _sendable(err: Exception) -> Exception:
    """The same in words: not every exception can be made again from what it was made of."""
    return AutoencodeError(str(err)) if isinstance(err, AutoencodeError) else RuntimeError(repr(err))


def _serve(connection: Connection[Any, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
    function, args = connection.recv()
    try:
        result = function(*args, lambda done, total: connection.send(("at", (done, total))))
    except Exception as err:
        connection.send(("failed", _sendable(err)))
        return
    connection.send(("done", result))
