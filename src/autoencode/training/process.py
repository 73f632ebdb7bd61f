"""Processes that train on this machine: ranks, signals, memory, and the launcher of `--workers`.

This module imports neither torch nor NumPy: `--help` needs it, and `keep_freed_memory` has its full effect
only before torch is imported.

`run_workers` starts processes with the environment variables that torchrun sets, so that a process need not
know who started it. torchrun's own agent (`elastic_launch`) was tried in its place and fails four tests of
launching: it starts all processes again after an error that would come back each time; it terminates process
0 as soon as another one fails, before process 0 can report that error; its processes go on when it is killed;
and a signal that comes while it starts them is lost. With restarts in a loop of ours around the agent, the
last three remain.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from autoencode.errors import ConfigError, RunError

# Parameters of mallopt(3), by their numbers in malloc.h, which Python cannot read.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Make malloc of this process keep freed memory; return whether the system supports that.

    By default glibc maps each big buffer anew and returns it at once, and the page faults take up to a third
    of a training step in fp32 on two cores (docs/log.md). Keeping the memory costs up to about 1 GB.
    AUTOENCODE_KEEP_MEMORY=0 in the environment turns this off.
    """
    if not sys.platform.startswith("linux") or os.environ.get("AUTOENCODE_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    # torch reads this at its first allocation: big tensors then lie on huge pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


_active: set[threading.Event] = set()


def interrupt() -> None:
    """Stop all work under `interrupts` as Ctrl-C does; for work in a thread, which receives no signals."""
    for event in tuple(_active):
        event.set()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event; a second one stops at once.

    Raises:
        KeyboardInterrupt: the event was set; raised when the work ends, or at once by a second signal.
    """
    interrupted = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    # Only the main thread may set handlers; work in another one is stopped by `interrupt`.
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    previous = {number: signal.signal(number, handle) for number in numbers}
    _active.add(interrupted)
    try:
        yield interrupted
    finally:
        _active.discard(interrupted)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does, so that files are closed and temporary files removed.

    Raises:
        KeyboardInterrupt: on SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclass(frozen=True)
class Ranks:
    """The ranks of this process among those that train one model.

    Attributes:
        rank: number of this process, from 0; process 0 writes and reports.
        world_size: number of processes on all machines.
        local_rank: number of this process among those on its machine, from 0.
        restarts: number of times that all processes were restarted because one was lost.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process reports: process 0, or a process without others."""
    return "WORLD_SIZE" not in environment or environment.get("RANK", "0") == "0"


def own_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Read the ranks of this process from the environment; without WORLD_SIZE there are no others.

    Raises:
        ConfigError: a variable is missing, is not a number, or contradicts another.
    """
    if "WORLD_SIZE" not in environment:
        return Ranks()
    world_size = _number(environment, "WORLD_SIZE", least=1)
    restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT", least=0, default="0")
    if world_size == 1:
        return Ranks(restarts=restarts)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but {' and '.join(missing)} not set. Start the processes with "
            "torchrun or train --workers, which set them all; or unset WORLD_SIZE to train in one process."
        )
    rank = _number(environment, "RANK", least=0)
    if rank >= world_size:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {world_size}: ranks go from 0 to {world_size - 1}.")
    local_rank = _number(environment, "LOCAL_RANK", least=0, default="0")
    return Ranks(rank, world_size, local_rank, restarts)


def _number(environment: Mapping[str, str], name: str, least: int, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is {text!r} in the environment; it must be a whole number from {least}.")
    return int(text)


RESTARTS = 3
HOST = "127.0.0.1"
LAUNCHER = "AUTOENCODE_LAUNCHER"  # environment variable with the descriptor of the pipe, see `_pipe`
POLL_S = 0.1
# Time for process 0 to learn of the error of another process and to report it, before it is terminated.
NOTICING_S = 5
PATIENCE_S = 30  # time to save the state after that


def run_workers(
    count: int, command: Sequence[str], *, warn: Callable[[str], None] = lambda message: None
) -> int:
    """Run a training command in `count` processes of one process group.

    Ctrl-C and SIGTERM are passed on to all of them. If a signal kills a process, all are restarted, at most
    `RESTARTS` times; `warn` is called with a sentence about each restart.

    Returns:
        0, or the exit code of the first process that failed.

    Raises:
        ConfigError: this system is Windows, which has neither the signals nor the inherited pipe needed here.
        RunError: processes were killed more than `RESTARTS` times; or a process other than 0 failed, and
            process 0 did not report it within `NOTICING_S`.
    """
    if os.name != "posix":
        raise ConfigError("Several processes need Linux or macOS. Train in one, or start them with torchrun.")
    for restart in range(RESTARTS + 1):
        codes, stopped = _run_once(count, command, restart)
        if not stopped and codes[0] is None and any(code and code > 0 for code in codes):
            raise RunError(_unreported(codes))
        lost = [rank for rank, code in enumerate(codes) if code and code < 0]
        if stopped or not lost:
            return next((code for code in codes if code and code > 0), 130 if stopped and lost else 0)
        name = signal.Signals(-(codes[lost[0]] or 0)).name
        if restart < RESTARTS:
            warn(f"Process {lost[0]} was killed ({name}). All start again from the last checkpoint.")
    raise RunError(
        f"Processes were killed {RESTARTS + 1} times, the last by {name}; often that is a lack of memory. "
        "The state of the last checkpoint is kept: run it again with --resume."
    )


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Stop this process as on SIGTERM once the launcher that started it has ended."""
    if LAUNCHER in environment:
        threading.Thread(target=_watch, args=(int(environment[LAUNCHER]),), daemon=True).start()


def _watch(launcher: int) -> None:
    os.read(launcher, 1)  # nothing is ever written: this returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(1)


def _run_once(count: int, command: Sequence[str], restart: int) -> tuple[list[int | None], bool]:
    """Start the processes and wait until they end.

    Returns:
        The exit codes, with None for processes that were stopped here because another one had failed; and
        whether a signal asked all of them to stop.
    """
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RESTART_COUNT": str(restart),
    }
    from autoencode.data.workers import available_cores  # here, as it imports NumPy

    # Every process would otherwise start a thread for each core, and they would wait for each other.
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // count))}
    processes: list[subprocess.Popen[bytes]] = []
    with _pipe() as watched, _passing_signals_to(processes) as signals:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), LAUNCHER: str(watched)}
            # In its own session, so that Ctrl-C in a terminal does not reach it twice.
            processes.append(
                subprocess.Popen(
                    command,
                    env=threads | os.environ | shared | own,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[watched],
                )
            )
        signals.pass_on()
        try:
            ended = _wait_for(processes, signals)
        finally:
            for process in processes:
                process.kill()
    for process in processes:
        process.wait()
    return ended, bool(signals)


def _wait_for(processes: Sequence[subprocess.Popen[bytes]], signals: Sized) -> list[int | None]:
    """Return the exit codes once all have ended, or once one has failed and the others had time to end."""
    failed = float("inf")
    while None in (codes := [process.poll() for process in processes]):
        time.sleep(POLL_S)
        if any(codes):
            failed = min(failed, time.monotonic())
        # A second signal would interrupt a process that is still saving its state after the first.
        if time.monotonic() > failed + (PATIENCE_S if signals else NOTICING_S):
            _stop([process for process in processes if process.returncode is None])
            break
    # Processes stopped here waited for the failed one; their exit codes mean nothing, so they stay None.
    return codes


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate processes and wait up to `PATIENCE_S` for them."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))


def _unreported(codes: Sequence[int | None]) -> str:
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    return (
        f"Process {rank} ended with exit code {code}, and the others were stopped: process 0 did not learn "
        "its error. Its own message is above."
    )


@contextlib.contextmanager
def _pipe() -> Iterator[int]:
    """Yield the read end of a pipe, by whose end of file a worker learns that this process has ended.

    macOS has no signal for that, and a process ID may belong to another process by the time it is checked.
    """
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


class _Signals:
    """Counts signals, and passes them on once all processes have been started."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes, self._came, self._pass = processes, 0, False

    def __len__(self) -> int:
        return self._came

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Count a signal, and pass it on."""
        self._came += 1
        if self._pass:
            for process in self._processes:
                process.send_signal(number)

    def pass_on(self) -> None:
        """Pass signals on from now on; if one came before, terminate the processes."""
        # Not before all have been started: those that follow would not get it.
        self._pass = True
        if self._came:
            for process in self._processes:
                process.terminate()


@contextlib.contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[_Signals]:
    """Pass signals that ask to stop on to the processes; yields the counter of signals."""
    signals = _Signals(processes)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signals.handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port
