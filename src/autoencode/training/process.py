"""Tell glibc to keep the memory a training step frees, so that the next step need not fault it in again.

By default glibc maps each big buffer anew and gives it back at once; the page faults take a large part of a
step on a CPU (a third of it, in fp32 on two cores: docs/log.md). Keeping them costs memory, up to about 1 GB.
This module imports nothing heavy: it has its full effect before torch is imported.

Ctrl-C and SIGTERM as something a loop can ask about, so that work stops between two steps.

Which of several processes this one is, as torchrun, `--workers` or `--ray` says in the environment.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from autoencode.errors import ConfigError

# Parameters of mallopt(3), by their numbers in malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed, for this process; return whether this system could do so.

    AUTOENCODE_KEEP_MEMORY=0 in the environment turns it off.
    """
    if not sys.platform.startswith("linux") or os.environ.get("AUTOENCODE_KEEP_MEMORY") == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    # torch reads this when it allocates first: big tensors then lie on huge pages.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


_at_work: set[threading.Event] = set()


def interrupt() -> None:
    """Stop what runs under `interrupts` as Ctrl-C does; for work in a thread, which gets no signals."""
    for event in tuple(_at_work):
        event.set()


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into an event; a second one stops at once.

    Raises:
        KeyboardInterrupt: at the end, where the event came and the work ended without having looked at it.
    """
    interrupted = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        numbers = ()
    previous = {number: signal.signal(number, handle) for number in numbers}
    _at_work.add(interrupted)
    try:
        yield interrupted
    finally:
        _at_work.discard(interrupted)
        for number, handler in previous.items():
            signal.signal(number, handler)
    if interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the work as Ctrl-C does: with what it holds closed, and half-written files removed.

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
class Place:
    """This process among those that train one model.

    Attributes:
        rank: its number, from 0; process 0 is the one that writes and reports.
        count: how many there are, on all machines.
        local_rank: its number on this machine, from 0.
        restarts: how often all of them were started again after one was lost.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    restarts: int = 0

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one that reports: process 0, or one that is alone."""
    return "WORLD_SIZE" not in environment or environment.get("RANK", "0") == "0"


def own_place(environment: Mapping[str, str] = os.environ) -> Place:
    """Read this process's place; without WORLD_SIZE it is alone.

    Raises:
        ConfigError: a variable is missing, is no number, or does not fit the others.
    """
    if "WORLD_SIZE" not in environment:
        return Place()
    count = _number(environment, "WORLD_SIZE", least=1)
    restarts = _number(environment, "TORCHELASTIC_RESTART_COUNT", least=0, default="0")
    if count == 1:
        return Place(restarts=restarts)
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise ConfigError(
            f"WORLD_SIZE is {count}, and {' and '.join(missing)} not set. Start the processes with torchrun "
            "or train --workers, which set them all; or unset WORLD_SIZE to train in one process."
        )
    rank = _number(environment, "RANK", least=0)
    if rank >= count:
        raise ConfigError(f"RANK is {rank} and WORLD_SIZE {count}: ranks go from 0 to {count - 1}.")
    local_rank = _number(environment, "LOCAL_RANK", least=0, default="0")
    return Place(rank, count, local_rank, restarts)


def _number(environment: Mapping[str, str], name: str, least: int, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is {text!r} in the environment; it must be a whole number from {least}.")
    return int(text)
