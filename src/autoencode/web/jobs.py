"""A function in a process of its own: it tells how far it is, and can be ended at any moment.

For work that cannot be asked to stop, such as that of a library which says nothing for half a minute.

Work that takes longer than a request: done once, in a thread of its own, with its progress to be seen.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Generic, Literal, TypeVar

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


Report = Callable[[str, int, int], None]
State = Literal["waiting", "running", "done", "failed"]

_WAITING = ("waiting for other work", 0, 0)


class _StoppedError(Exception):
    """Nobody wants the result any more."""


class Job(Generic[Result]):
    """One piece of work, started when its result is first asked for.

    Args:
        work: what to do; called with what takes (stage, done, total).
        threads: where it runs; jobs in one wait for each other.
    """

    def __init__(self, work: Callable[[Report], Result], threads: ThreadPoolExecutor) -> None:
        self._work, self._threads = work, threads
        self._lock = threading.Lock()
        self._stopped: threading.Event | None = None  # of the attempt that counts
        self.state: State = "waiting"
        self.error = ""
        self._at = _WAITING
        self._result: Result | None = None

    def result(self) -> Result | None:
        """Return the result, or None while there is none; starts the work where nobody has."""
        with self._lock:
            if self._stopped is None:
                self._stopped = threading.Event()
                self._threads.submit(self._run, self._stopped)
        return self._result

    def progress(self) -> dict[str, Any]:
        """Return how far it is, as JSON can hold it."""
        stage, done, total = self._at
        return {"state": self.state, "stage": stage, "done": done, "total": total, "error": self.error}

    def stop(self) -> None:
        """End the work at the next step it tells of; who asks for its result then starts it anew."""
        with self._lock:
            if self._stopped is not None and self.state in ("waiting", "running"):
                self._stopped.set()
                self._stopped, self.state, self._at = None, "waiting", _WAITING

    def _run(self, stopped: threading.Event) -> None:
        def report(stage: str, done: int, total: int) -> None:
            self._tell(stopped, at=(stage, done, total))

        try:
            self._tell(stopped, state="running")
            result = self._work(report)
            self._tell(stopped, result=result, state="done")
        except _StoppedError:
            return
        except AutoencodeError as err:
            self._fail(stopped, str(err))
        except Exception as err:
            logging.getLogger(__name__).exception("a job failed")
            self._fail(stopped, f"Unexpected: {type(err).__name__}: {err}")

    def _fail(self, stopped: threading.Event, text: str) -> None:
        if not stopped.is_set():
            self._tell(stopped, error=text, state="failed")

    def _tell(
        self,
        stopped: threading.Event,
        *,
        state: State | None = None,
        at: tuple[str, int, int] | None = None,
        result: Result | None = None,
        error: str = "",
    ) -> None:
        """Let others see how far an attempt is, unless it was stopped."""
        with self._lock:
            if stopped.is_set():
                raise _StoppedError
            self._at = at or self._at
            self._result = self._result if result is None else result
            self.error, self.state = error, state or self.state
