"""Ctrl-C and SIGTERM as something a loop can ask about, so that work stops between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
