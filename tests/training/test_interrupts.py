"""The first signal is an event, the second stops at once, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from autoencode.training.process import interrupt, interrupts, stopped_by_sigterm


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_sets_the_event_and_is_not_lost(number: signal.Signals) -> None:
    before, ended = signal.getsignal(number), False
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        assert not interrupted.is_set()
        os.kill(os.getpid(), number)
        assert interrupted.wait(5)
        ended = True
    assert ended
    assert signal.getsignal(number) is before


def test_other_errors_are_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="of its own"), interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(5)
        raise ValueError("of its own")


def test_a_second_signal_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal was ignored")
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_stops_work_as_ctrl_c_does() -> None:
    before, cleared = signal.getsignal(signal.SIGTERM), False
    with pytest.raises(KeyboardInterrupt), stopped_by_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was ignored")
        finally:
            cleared = True
    assert cleared
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_cannot_and_do_not_handle_signals() -> None:
    seen: list[object] = []

    def work() -> None:
        with interrupts() as interrupted:
            seen.append(interrupted.is_set())
            seen.append(signal.getsignal(signal.SIGINT))
        with stopped_by_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False, *before]


def test_work_in_a_thread_is_stopped_from_another_and_later_work_is_not() -> None:
    begun, said = threading.Event(), []

    def work() -> None:
        try:
            with interrupts() as interrupted:
                begun.set()
                said.append(interrupted.wait(5))
        except KeyboardInterrupt:
            said.append("stopped")

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(5)
    interrupt()
    thread.join()
    assert said == [True, "stopped"]
    interrupt()
    with interrupts() as interrupted:
        assert not interrupted.is_set()
