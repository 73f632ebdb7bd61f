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


class _StoppedError(Exception):
    """The page is closing."""


class Job(Generic[Result]):
    """One piece of work, started when its result is first asked for.

    Args:
        work: what to do; called with what takes (stage, done, total).
        threads: where it runs; jobs in one wait for each other.
    """

    def __init__(self, work: Callable[[Report], Result], threads: ThreadPoolExecutor) -> None:
        self._work, self._threads = work, threads
        self._lock = threading.Lock()
        self._is_started = self._is_stopped = False
        self.state: State = "waiting"
        self.error = ""
        self._at = ("waiting for other work", 0, 0)
        self._result: Result | None = None

    def result(self) -> Result | None:
        """Return the result, or None while there is none; starts the work where nobody has."""
        with self._lock:
            if not self._is_started:
                self._is_started = True
                self._threads.submit(self._run)
        return self._result

    def progress(self) -> dict[str, Any]:
        """Return how far it is, as JSON can hold it."""
        stage, done, total = self._at
        return {"state": self.state, "stage": stage, "done": done, "total": total, "error": self.error}

    def stop(self) -> None:
        """End the work at the next step it tells of, so that it holds up nobody who leaves."""
        self._is_stopped = True

    def _run(self) -> None:
        self.state = "running"
        try:
            self._result = self._work(self._report)
            self.state = "done"
        except _StoppedError:
            self.error, self.state = "The page is closing.", "failed"
        except AutoencodeError as err:
            self.error, self.state = str(err), "failed"
        except Exception as err:
            logging.getLogger(__name__).exception("a job failed")
            self.error, self.state = f"Unexpected: {type(err).__name__}: {err}", "failed"

    def _report(self, stage: str, done: int, total: int) -> None:
        if self._is_stopped:
            raise _StoppedError
        self._at = (stage, done, total)
