"""Work that takes longer than a request: done once, in a thread of its own, with its progress to be seen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, Literal, TypeVar

from autoencode.errors import AutoencodeError

Result = TypeVar("Result")
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
