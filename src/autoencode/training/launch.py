"""Starting the processes of `train --workers` on this machine, and again where one is lost.

As torchrun does it, and in its terms, so that a process need not know who started it. But torchrun starts
again after every error; here an error that would only come back, which exits by itself, is final, and only
processes that a signal killed are replaced. Each process holds the end of a pipe from here, and ends when it
closes: a launcher that is killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from types import FrameType

from autoencode.data.workers import available_cores
from autoencode.errors import RunError

RESTARTS = 3
HOST = "127.0.0.1"
LAUNCHER = "AUTOENCODE_LAUNCHER"  # the descriptor of the pipe, in the environment
POLL_S = 0.1
NOTICING_S = 5  # how long the others may take to notice that one has ended, until they are told to stop
PATIENCE_S = 30  # how long they may then take to do so


def run_workers(
    count: int, command: Sequence[str], *, warn: Callable[[str], None] = lambda message: None
) -> int:
    """Run a command that trains in `count` processes that know of each other.

    Ctrl-C and SIGTERM are passed on to all of them. The processes are restarted, all of them, at most
    `RESTARTS` times; `warn` is called with a sentence about each restart.

    Returns:
        0, or the exit code of the first process that failed.

    Raises:
        RunError: processes were killed once too often; or one has ended with an exit code of its own before
            the first could hear of it.
    """
    for restart in range(RESTARTS + 1):
        codes, stopped = _run_once(count, command, restart)
        if not stopped and codes[0] is None and any(code and code > 0 for code in codes):
            raise RunError(_unheard(codes))
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
    """Let this process, where `run_workers` has started it, stop as on SIGTERM once its launcher is gone."""
    if LAUNCHER in environment:
        threading.Thread(target=_watch, args=(int(environment[LAUNCHER]),), daemon=True).start()


def _watch(launcher: int) -> None:
    os.read(launcher, 1)  # nothing is ever written: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE_S)
    os._exit(1)


def _run_once(count: int, command: Sequence[str], restart: int) -> tuple[list[int | None], bool]:
    """Run the processes to their end.

    Returns:
        Their exit codes, None of those that were stopped from here because another had ended; and whether
        they were told to stop from outside.
    """
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RESTART_COUNT": str(restart),
    }
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // count))}
    processes: list[subprocess.Popen[bytes]] = []
    with _pipe() as watched, _passing_signals_to(processes) as signals:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), LAUNCHER: str(watched)}
            # A session of its own: Ctrl-C in a terminal reaches this process alone, and is passed on once.
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
    """Wait until all have ended, or one has failed and the others had their time; return the exit codes."""
    failed = float("inf")
    while None in (codes := [process.poll() for process in processes]):
        time.sleep(POLL_S)
        if any(codes):
            failed = min(failed, time.monotonic())
        # A second signal would cut short what they save on the first.
        if time.monotonic() > failed + (PATIENCE_S if signals else NOTICING_S):
            _stop([process for process in processes if process.returncode is None])
            break
    # One that had to be stopped here was waiting for another: that one is why.
    return codes


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, and give them time for it."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + PATIENCE_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, deadline - time.monotonic()))


def _unheard(codes: Sequence[int | None]) -> str:
    rank, code = next((rank, code) for rank, code in enumerate(codes) if code)
    return (
        f"Process {rank} ended with exit code {code}, and the others were stopped: process 0 had not heard "
        "of it. What it wrote is above."
    )


@contextlib.contextmanager
def _pipe() -> Iterator[int]:
    """Give the end of a pipe whose other end is open as long as this process needs its workers."""
    theirs, ours = os.pipe()
    try:
        yield theirs
    finally:
        os.close(theirs)
        os.close(ours)


class _Signals:
    """The signals that came, and the processes that hear of them once all have been started."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes, self._came, self._pass = processes, 0, False

    def __len__(self) -> int:
        return self._came

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Take note of a signal."""
        self._came += 1
        if self._pass:
            for process in self._processes:
                process.send_signal(number)

    def pass_on(self) -> None:
        """Pass signals on from now on; processes that had just been started when one came are ended."""
        self._pass = True
        if self._came:
            for process in self._processes:
                process.terminate()


@contextlib.contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[_Signals]:
    """Pass signals that ask to stop on to the processes; gives the signals that came."""
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
