"""Work that takes longer than a request: jobs in threads, and functions in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from threadpoolctl import threadpool_limits

from autoencode.errors import AutoencodeError

if TYPE_CHECKING:
    from autoencode.data.pack import Progress, StageProgress

POLL_SECONDS = 0.1  # the longest that a cancelled process goes on

Asked = TypeVar("Asked")
Result = TypeVar("Result")
State = Literal["waiting", "running", "done", "failed"]

_STARTING = ("starting", 0, 0)


def one_core(name: str) -> ThreadPoolExecutor:
    """Return a thread for requests, one at a time, in which torch computes on one core.

    A request is about few pictures. Threads that wait for each other after every layer, beside all others of
    the page, took twice as long for them as one.
    """

    def limit() -> None:
        torch.get_num_threads()  # a thread takes the number of all at its first use of torch, so before
        threadpool_limits(1, "openmp")

    return ThreadPoolExecutor(1, name, limit)


class Together(Generic[Asked, Result]):
    """What several requests ask for at once, done as one batch, which takes hardly longer than one of it.

    Args:
        work: returns the result of each of a list, in its order.
        threads: where it runs.
        most: of a batch.
    """

    def __init__(
        self, work: Callable[[list[Asked]], Iterable[Result]], threads: ThreadPoolExecutor, most: int = 8
    ) -> None:
        self._work, self._threads, self._most = work, threads, most
        self._waiting = deque[tuple[Asked, Future[Result]]]()

    async def __call__(self, asked: Asked) -> Result:
        """Return the result of one."""
        future = Future[Result]()
        self._waiting.append((asked, future))
        self._threads.submit(self._run)  # one for each: that of the first takes along what waits by then
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        self._answer([one for one in batch if one[1].set_running_or_notify_cancel()])

    def _answer(self, batch: list[tuple[Asked, Future[Result]]]) -> None:
        try:
            results = list(self._work([asked for asked, _ in batch])) if batch else []
        except BaseException as err:
            if len(batch) == 1:
                batch[0][1].set_exception(err)
            else:  # an error is of one alone
                for one in batch:
                    self._answer([one])
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)


class _StoppedError(Exception):
    """The attempt was stopped."""


class Job(Generic[Result]):
    """One piece of work, started when its result is first asked for.

    Args:
        work: called with a function to report (stage, steps done, steps in all) to.
        threads: where the work runs; jobs in one executor wait for each other.
        running: returns the job that the executor is at, if it is known.
    """

    def __init__(
        self,
        work: Callable[[StageProgress], Result],
        threads: ThreadPoolExecutor,
        running: Callable[[], Job[Any] | None] = lambda: None,
    ) -> None:
        self._work, self._threads, self._running = work, threads, running
        self._lock = threading.Lock()
        # One event per attempt, not a flag: a stopped attempt goes on until its next report, and must not
        # write its progress or result over those of the attempt that replaced it.
        self._stopped: threading.Event | None = None
        self.state: State = "waiting"
        self.error = ""
        self._progress = _STARTING
        self._result: Result | None = None

    def result(self) -> Result | None:
        """Return the result, or None before it is there; the first call starts the work."""
        with self._lock:
            if self._stopped is None:
                self._stopped = threading.Event()
                self._threads.submit(self._run, self._stopped)
        return self._result

    @property
    def known(self) -> Result | None:
        """The result, or None before it is there; nothing is started."""
        return self._result

    def finish(self, result: Result) -> None:
        """End with a result that is known from elsewhere, before any work was started."""
        self._stopped, self._result, self.state = threading.Event(), result, "done"

    def progress(self) -> dict[str, Any]:
        """Return state, stage, steps done and in all, and the error, as JSON can hold them.

        A job that waits tells how far the one is that it waits for.
        """
        stage, done, total = self._progress
        if self.state == "waiting" and (other := self._running()) is not None and other is not self:
            ahead, done, total = other._progress
            stage = f"waiting for other work of the page: {ahead}"
        return {"state": self.state, "stage": stage, "done": done, "total": total, "error": self.error}

    def stop(self) -> None:
        """End the work at its next report; the next call of `result` starts it anew."""
        with self._lock:
            # A finished job keeps its result: people leave a tab and come back.
            if self._stopped is not None and self.state in ("waiting", "running"):
                self._stopped.set()
                self._stopped, self.state, self._progress = None, "waiting", _STARTING

    def _run(self, stopped: threading.Event) -> None:
        def report(stage: str, done: int, total: int) -> None:
            self._update(stopped, progress=(stage, done, total))

        try:
            self._update(stopped, state="running")
            result = self._work(report)
            self._update(stopped, result=result, state="done")
        except _StoppedError:
            return
        except AutoencodeError as err:
            self._fail(stopped, str(err))
        except Exception as err:
            # The executor would keep the exception to itself, and the page would wait for ever.
            logging.getLogger(__name__).exception("a job failed")
            self._fail(stopped, f"Unexpected: {type(err).__name__}: {err}")

    def _fail(self, stopped: threading.Event, text: str) -> None:
        if not stopped.is_set():
            self._update(stopped, error=text, state="failed")

    def _update(
        self,
        stopped: threading.Event,
        *,
        state: State | None = None,
        progress: tuple[str, int, int] | None = None,
        result: Result | None = None,
        error: str = "",
    ) -> None:
        """Publish the progress of an attempt.

        Raises:
            _StoppedError: the attempt was stopped.
        """
        with self._lock:
            if stopped.is_set():
                raise _StoppedError
            self._progress = progress or self._progress
            self._result = self._result if result is None else result
            self.error, self.state = error, state or self.state


class JobQueue:
    """Jobs by key that run one after another, in a thread of the queue.

    Args:
        name: of the thread.
        most: jobs kept; the longest unused beyond it are stopped and forgotten. None keeps all.
    """

    def __init__(self, name: str, most: int | None = None) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._most = most
        self._jobs: OrderedDict[Hashable, Job[Any]] = OrderedDict()

    def job(self, key: Hashable, work: Callable[[StageProgress], Result]) -> Job[Result]:
        """Return the job of a key; the first call for the key makes it of `work`."""
        job: Job[Result] = self._jobs.setdefault(key, Job(work, self._threads, self._at_work))
        self._jobs.move_to_end(key)
        while self._most is not None and len(self._jobs) > self._most:
            self.forget(next(iter(self._jobs)))
        return job

    def _at_work(self) -> Job[Any] | None:
        return next((job for job in list(self._jobs.values()) if job.state == "running"), None)

    def put(self, key: Hashable, result: Result) -> None:
        """Make a job that is done, with a result that is known from elsewhere, if the key has no job."""
        job: Job[Result] = Job(lambda _: result, self._threads)
        job.finish(result)
        self._jobs.setdefault(key, job)

    def known(self, key: Hashable) -> Any:  # noqa: ANN401 - what the work of the key returns
        """Return the result of the job of a key if it is there, else None; nothing is started."""
        return self._jobs[key].known if key in self._jobs else None

    def forget(self, key: Hashable) -> None:
        """Stop the job of a key, if there is one, and drop its result."""
        job = self._jobs.pop(key, None)
        if job is not None:
            job.stop()

    def close(self) -> None:
        """Stop all jobs and end the thread, without waiting for it."""
        for key in list(self._jobs):
            self.forget(key)
        self._threads.shutdown(wait=False, cancel_futures=True)


def run_apart(function: Callable[..., Result], *args: object, report: Progress) -> Result:
    """Return the result of a function that runs in a process of its own, which can be ended at any moment.

    For work that reports nothing for a while and cannot be asked to stop, such as that of a library.

    Args:
        function: picklable, as its arguments and its result; called with `args` and a function to report
            (steps done, steps in all) to.
        args: of the function.
        report: called with the same, at least ten times per second; an exception it raises ends the process.

    Raises:
        AutoencodeError: the function raised one, or its process ended before it returned.
        RuntimeError: the function raised another exception.
    """
    # Not forked: a lock that another thread holds at the fork is never released in the child.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # ours then reads an end of file when the process ends, however it does
    # Sent from another thread: the process reads only once its libraries are loaded, seconds later, and a
    # pipe takes 64 KB before it blocks. This thread has to notice a cancellation meanwhile.
    threading.Thread(target=_send, args=(ours, (function, args)), daemon=True).start()
    at = (0, 0)
    try:
        while True:
            report(*at)
            if not ours.poll(POLL_SECONDS):
                continue
            try:
                kind, value = ours.recv()
            except (EOFError, OSError):
                raise AutoencodeError(
                    "The process of this work ended unexpectedly, perhaps for lack of memory."
                ) from None
            if kind == "done":
                result: Result = value
                return result
            if kind == "failed":
                raise value
            at = value
    finally:
        process.kill()  # SIGTERM would wait for a handler of Python, which compiled code does not return to
        process.join()
        process.close()
        ours.close()


def _send(connection: Connection[Any, Any], message: object) -> None:
    with contextlib.suppress(OSError):  # the process was ended before it read the message
        connection.send(message)


def _serve(connection: Connection[Any, Any]) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the parent, too, which then ends this process
    function, args = connection.recv()
    try:
        result = function(*args, lambda done, total: connection.send(("at", (done, total))))
    except Exception as err:
        # In words: an exception whose arguments are not those of its constructor cannot be unpickled.
        failure = AutoencodeError(str(err)) if isinstance(err, AutoencodeError) else RuntimeError(repr(err))
        connection.send(("failed", failure))
        return
    connection.send(("done", result))
