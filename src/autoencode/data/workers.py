"""Run a function over many items in other processes: a hang or crash loses only that item.

Each worker is a fresh interpreter that speaks over a socket. Unlike those of `multiprocessing` it does not
import the caller's main script, so packing works from a script without a `__main__` guard, and it outlives
its parent by no more than the items it has. The time limits are kernel timers whose signals kill the worker:
nothing inside the worker can delay them. Processor time is limited, so that a busy machine loses no item; a
limit by the clock, six times as long, ends an item that waits for ever.

Windows has neither such timers nor sockets that a process inherits. There items are processed in this
process, one after the other, and a warning says so.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from autoencode.errors import AutoencodeError

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_co = TypeVar("Item_co", covariant=True)

_MAX_CHUNK = 32  # items sent at once; after a crash, the items of a chunk are tried again one by one
_CLOCK_PER_PROCESSOR = 6  # for a slow disk, or a machine that is busy with other work
# Memory of a worker beyond its libraries: four fifths of what is free, divided among workers, in these
# limits: 200 million pixels with alpha are 0.8 GB, of which the slowest decoders hold four copies.
_LEAST_BYTES, _MOST_BYTES = 1024**3, 4 * 1024**3
_HAS_WORKERS = hasattr(signal, "setitimer") and os.name == "posix"
_NO_WORKERS = (
    "This system cannot end a decoder alone: files are decoded in this process, one after the other, and one "
    "that hangs or crashes takes the process with it."
)
_serving = False  # whether this process is a worker


class Items(Protocol[Item_co]):
    """A list, or a sequence that makes each item on demand."""

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: int, /) -> Item_co:
        """Return an item."""


@dataclass(frozen=True)
class Lost:
    """Takes the place of a result that never came.

    Attributes:
        reason: why there is no result, for instance "took longer than 5 s".
    """

    reason: str


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_share(workers: int) -> int:
    """Return the bytes of memory that each of so many workers may take beyond its libraries."""
    return int(min(max(0.8 * free_bytes() / max(1, workers), _LEAST_BYTES), _MOST_BYTES))


def free_bytes() -> float:
    """Return the memory that is free on this machine, and in its container; infinity if it is not known."""
    free = math.inf
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError, StopIteration):
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, limit - used)
    return free


def _address_space() -> int:
    """Return the bytes of address space of this process; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def run(
    function: Callable[[Item], Result], items: Items[Item], *, seconds: float, workers: int
) -> Generator[tuple[int, Result | Lost]]:
    """Yield (index of the item, result) as results come, in no particular order.

    Args:
        function: picklable, importable by name; sent to each worker once. An exception it raises ends the
            run and is raised here.
        items: picklable.
        seconds: most processor time per item; by the clock it may take six times as long.
        workers: most processes at once.

    Raises:
        AutoencodeError: no worker could be started.
    """
    if not _HAS_WORKERS:
        warnings.warn(_NO_WORKERS, stacklevel=2)
        yield from ((index, function(items[index])) for index in range(len(items)))
        return
    # At least four chunks per worker, so that the others do not wait long for the last.
    size = max(1, min(_MAX_CHUNK, len(items) // (4 * workers)))
    todo = deque(range(start, min(start + size, len(items))) for start in range(0, len(items), size))
    pool: dict[Connection, _Worker[Item, Result]] = {}
    share = memory_share(workers)
    try:
        while todo or pool:
            # Only as many as there is work for: a small folder must not start a process per core.
            while todo and len(pool) < workers and len(pool) < len(todo) + _busy(pool):
                worker = _Worker[Item, Result](function, seconds, share)
                pool[worker.connection] = worker
            for ready in wait(list(pool)):
                assert isinstance(ready, Connection)
                worker = pool[ready]
                chunk, worker.chunk = worker.chunk, range(0)
                results = worker.receive()
                if results is None:
                    del pool[ready]
                    reason = worker.cause_of_death()
                    if len(chunk) == 1:
                        yield chunk[0], Lost(reason)
                    # The item at fault is unknown if there were several: each is tried again on its own.
                    todo.extend(range(index, index + 1) for index in chunk if len(chunk) > 1)
                    continue
                yield from zip(chunk, results, strict=True)
                if todo:
                    worker.chunk = todo.popleft()
                    worker.send([items[index] for index in worker.chunk])
                else:
                    del pool[ready]
                    worker.stop()
    finally:
        for worker in pool.values():
            worker.stop()


def _busy(pool: dict[Connection, _Worker[Any, Any]]) -> int:
    return sum(bool(worker.chunk) for worker in pool.values())


class PersistentWorker(Generic[Item, Result]):
    """One worker that stays ready for items that come one at a time. Any thread may call it.

    Args:
        function, seconds: as for `run`.
        memory_bytes: of the worker beyond its libraries; by default as for one worker of `run`.
    """

    def __init__(
        self, function: Callable[[Item], Result], *, seconds: float, memory_bytes: int | None = None
    ) -> None:
        self._function, self._seconds, self._memory_bytes = function, seconds, memory_bytes
        self._worker: _Worker[Item, Result] | None = None
        self._lock = threading.Lock()

    def call(self, item: Item) -> Result | Lost:
        """Return the result of one item, or `Lost` if the item ended the worker.

        Raises:
            AutoencodeError: no worker could be started.
            Exception: raised by the function.
        """
        with self._lock:
            if not _HAS_WORKERS:
                return self._function(item)
            worker = self._worker or self._started()
            worker.send([item])
            results = worker.receive()
            if results is None:
                self._worker = None
                return Lost(worker.cause_of_death())
            return results[0]

    def close(self) -> None:
        """End the worker; the next call starts another."""
        with self._lock:
            worker, self._worker = self._worker, None
            if worker is not None:
                worker.stop()

    def _started(self) -> _Worker[Item, Result]:
        worker = _Worker(self._function, self._seconds, self._memory_bytes or memory_share(1))
        if worker.receive() is None:
            worker.cause_of_death()
        self._worker = worker
        return worker


@dataclass
class _Worker(Generic[Item, Result]):
    """A process, our end of its socket, and the items it has."""

    function: Callable[[Item], Result]
    seconds: float
    memory_bytes: int
    chunk: range = field(default=range(0), init=False)
    is_ready: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.connection, theirs = Pipe()
        paths = (path or os.getcwd() for path in sys.path)  # noqa: PTH109 - sys.path has strings
        # Each worker has a core to itself; libraries that start a thread per core would fight for it.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        command = "import sys; from autoencode.data.workers import serve; serve(int(sys.argv[1]))"
        with theirs:
            # -P: a module in the user's folder must not be imported in place of one of the same name.
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)},
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C is for the parent, which then ends its workers
                )
            except OSError as err:
                raise AutoencodeError(f"Could not start a worker process: {err}.") from err
        self.send((self.function, self.seconds, self.memory_bytes))

    def send(self, message: object) -> None:
        """Send a message; that a worker is dead shows only when its answer is read."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> list[Result] | None:
        """Return the results of the chunk, an empty list once the worker is ready, or None if it is dead.

        Raises:
            Exception: raised by the function.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, BaseException):
            raise answer
        self.is_ready = True
        results: list[Result] = answer
        return results

    def cause_of_death(self) -> str:
        """Return why the worker ended by itself.

        Raises:
            AutoencodeError: the worker ended before it was ready, as every other would.
        """
        self.connection.close()
        _, complaint = self.process.communicate()
        code = self.process.returncode
        if not self.is_ready:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {code}"
            raise AutoencodeError(f"Could not start a worker process: {last}.")
        if code == -signal.SIGPROF:
            return f"took longer than {self.seconds:g} s"
        if code == -signal.SIGALRM:
            return f"took longer than {self.seconds * _CLOCK_PER_PROCESSOR:g} s"
        if code == -signal.SIGKILL:
            return "the decoder was killed, as the system does when memory runs out"
        return f"the decoder crashed ({signal.strsignal(-code) if code < 0 else f'exit code {code}'})"

    def stop(self) -> None:
        """End the worker at once."""
        self.process.kill()
        self.process.communicate()
        self.connection.close()


def serve(descriptor: int) -> None:
    """Answer requests on a socket until its other end closes: the main function of a worker process."""
    global _serving
    _serving = True
    # A child inherits signals that its parent ignores.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError), Connection(descriptor) as connection:
        function, seconds, memory_bytes = connection.recv()
        if used := _address_space():
            limit_memory(used + memory_bytes)
        connection.send([])
        # Nobody reads stderr any more, and warnings of decoders would fill its pipe.
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a file must be open to be copied
            os.dup2(nowhere.fileno(), 2)
        while True:
            items = connection.recv()
            answer: list[Any] | Exception
            try:
                answer = [_timed(function, item, seconds) for item in items]
            except Exception as err:
                answer = _picklable(err)
            connection.send(answer)


def _timed(function: Callable[[Item], Result], item: Item, seconds: float) -> Result:
    set_time_limit(seconds)
    try:
        return function(item)
    finally:
        set_time_limit(0)


def set_time_limit(seconds: float) -> None:
    """Limit the current item to `seconds` of processor time from now; 0 removes the limit.

    Outside a worker this does nothing: a timer would end the caller's process.
    """
    if not _serving:
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * _CLOCK_PER_PROCESSOR)


def _picklable(err: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(err))
    except Exception:
        return RuntimeError(f"{type(err).__name__}: {err}")
    return err


def limit_memory(size: int) -> None:
    """Limit the address space of this process to `size` bytes; outside a worker this does nothing.

    There it would hold for the caller as well. macOS and Windows have no such limit.
    """
    if not _serving:
        return
    import resource  # Windows has no such module, and no workers

    with contextlib.suppress(ValueError, OSError):  # not supported here, or set by an earlier call
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
