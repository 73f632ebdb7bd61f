"""Starting the processes of `train --workers` on this machine, and again where one is lost.

As torchrun does it, and in its terms, so that a process need not know who started it. But torchrun starts
again after every error; here an error that would only come back, which exits by itself, is final, and only
processes that a signal killed are replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from autoencode.data.workers import available_cores
from autoencode.errors import RunError
from autoencode.interfaces.progress import warn

RESTARTS = 3
HOST = "127.0.0.1"
POLL_S, PATIENCE_S = 0.1, 30  # how long the others may take to end once one has


def run_workers(count: int, command: Sequence[str]) -> int:
    """Run a command that trains in `count` processes that know of each other.

    Ctrl-C and SIGTERM are passed on to all of them. The processes are restarted, all of them, at most
    `RESTARTS` times.

    Returns:
        0, or the exit code of the first process that failed.

    Raises:
        RunError: processes were killed once too often.
    """
    for restart in range(RESTARTS + 1):
        codes, stopped = _run_once(count, command, restart)
        lost = [rank for rank, code in enumerate(codes) if code < 0]
        if stopped or not lost:
            return next((code for code in codes if code > 0), 130 if stopped and lost else 0)
        name = signal.Signals(-codes[lost[0]]).name
        if restart < RESTARTS:
            warn(f"Process {lost[0]} was killed ({name}). All start again from the last checkpoint.")
    raise RunError(
        f"Processes were killed {RESTARTS + 1} times, the last by {name}; often that is a lack of memory. "
        "The state of the last checkpoint is kept: run it again with --resume."
    )


def _run_once(count: int, command: Sequence[str], restart: int) -> tuple[list[int], bool]:
    """Run the processes to their end; return their exit codes, and whether they were told to stop."""
    shared = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(_free_port()),
        "TORCHELASTIC_RESTART_COUNT": str(restart),
    }
    threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // count))}
    processes: list[subprocess.Popen[bytes]] = []
    with _passing_signals_to(processes) as signals:
        for rank in range(count):
            environment = threads | os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: Ctrl-C in a terminal reaches this process alone, and is passed on once.
            processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
            )
        try:
            ended = _wait_for(processes)
        finally:
            for process in processes:
                process.kill()
    for process in processes:
        process.wait()
    # One that had to be killed here was waiting for another: that one is why.
    return [code if code is not None else 0 for code in ended], bool(signals)


def _wait_for(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait until all have ended, or one has failed and the others had their time; return the exit codes."""
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or time.monotonic() > deadline:
            return codes
        if deadline == float("inf") and any(codes):
            deadline = time.monotonic() + PATIENCE_S
        time.sleep(POLL_S)


@contextlib.contextmanager
def _passing_signals_to(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Pass signals that ask to stop on to the processes; gives the signals that came."""
    signals: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        signals.append(number)
        for process in processes:
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
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
