"""Jobs are done once, report progress and can be left; functions in a process of their own can be ended."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from autoencode import AutoencodeError, ConfigError
from autoencode.data.pack import Progress, StageProgress
from autoencode.web.commands import Starter
from autoencode.web.jobs import Job, JobQueue, Together, one_core, run_apart

from .conftest import in_a_loop
from .conftest import wait_for as wait


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def test_work_is_done_once_and_reports_progress(threads: ThreadPoolExecutor) -> None:
    calls, go_on = [], threading.Event()

    def work(report: StageProgress) -> int:
        calls.append(1)
        report("counting", 3, 7)
        go_on.wait(60)
        return 42

    job = Job(work, threads)
    assert job.progress()["state"] == "waiting"
    assert not calls
    assert job.result() is None
    wait(lambda: job.progress()["done"] == 3)
    assert job.progress() == {"state": "running", "stage": "counting", "done": 3, "total": 7, "error": ""}
    go_on.set()
    wait(lambda: job.result() == 42)
    assert job.progress()["state"] == "done"
    assert len(calls) == 1


def test_what_went_wrong_is_said(threads: ThreadPoolExecutor) -> None:
    def rejected(_: StageProgress) -> int:
        raise ConfigError("Choose another.")

    def broken(_: StageProgress) -> int:
        raise ZeroDivisionError("by zero")

    for work, text in ((rejected, "Choose another."), (broken, "Unexpected: ZeroDivisionError: by zero")):
        job = Job(work, threads)
        job.result()
        wait(lambda job=job: job.state == "failed")
        assert job.error == text


def test_who_leaves_does_not_wait_for_it(threads: ThreadPoolExecutor) -> None:
    def endless(report: StageProgress) -> int:
        while True:
            report("going on", 1, 2)
            time.sleep(0.001)

    job = Job(endless, threads)
    job.result()
    wait(lambda: job.state == "running")
    job.stop()
    threads.submit(lambda: None).result(5)  # the thread is free again


def test_work_that_was_stopped_is_begun_anew_by_who_wants_it(threads: ThreadPoolExecutor) -> None:
    begun, last = threading.Semaphore(0), False

    def work(report: StageProgress) -> int:
        begun.release()
        while not last:
            report("going on", 1, 2)
        return 42

    job = Job(work, threads)
    job.result()
    assert begun.acquire(timeout=60)
    job.stop()
    assert job.progress() == {
        "state": "waiting",
        "stage": "starting",
        "done": 0,
        "total": 0,
        "error": "",
    }
    assert job.result() is None
    assert begun.acquire(timeout=60)
    last = True
    wait(lambda: job.result() == 42)
    job.stop()
    assert (job.state, job.result()) == ("done", 42)


def test_work_that_has_begun_and_reported_nothing_waits_for_nothing(threads: ThreadPoolExecutor) -> None:
    begun, end = threading.Event(), threading.Event()

    def work(report: StageProgress) -> int:
        begun.set()
        end.wait(5)
        return 1

    job = Job(work, threads)
    job.result()
    begun.wait(5)
    assert job.progress()["stage"] == "starting"
    end.set()


def test_work_that_waits_tells_how_far_the_other_is() -> None:
    queue, begun, end = JobQueue("waiting"), threading.Event(), threading.Event()

    def first(report: StageProgress) -> int:
        report("reading files", 3, 7)
        begun.set()
        end.wait(5)
        return 1

    queue.job("first", first).result()
    begun.wait(5)
    second = queue.job("second", lambda report: 2)
    second.result()
    assert second.progress()["stage"] == "waiting for other work of the page: reading files"
    assert (second.progress()["done"], second.progress()["total"]) == (3, 7)
    end.set()
    wait(lambda: second.result() == 2)
    queue.close()


def squares(count: int, progress: Progress) -> tuple[int, list[int]]:
    for done in range(count):
        progress(done + 1, count)
    return os.getpid(), [value**2 for value in range(count)]


def deaf(file: Path, progress: Progress) -> None:
    """Write its process id, and then report nothing for a minute."""
    file.with_suffix(".part").write_text(str(os.getpid()))
    file.with_suffix(".part").rename(file)
    time.sleep(60)


def rejected(_: Progress) -> None:
    raise ConfigError("Choose another.")


def broken(_: Progress) -> None:
    raise ZeroDivisionError("by zero")


def gone(_: Progress) -> None:
    os._exit(9)


def test_the_result_and_the_progress_come_from_another_process() -> None:
    seen: list[tuple[int, int]] = []
    process, found = run_apart(squares, 5, report=lambda *at: seen.append(at))
    assert found == [0, 1, 4, 9, 16]
    assert process != os.getpid()
    assert seen[0] == (0, 0)
    assert seen[-1] == (5, 5)


class Left(Exception):
    """Nobody waits any more."""


def test_what_says_nothing_is_ended_at_once(tmp_path: Path) -> None:
    started = tmp_path / "process"

    def report(done: int, total: int) -> None:
        if started.exists():
            raise Left

    with pytest.raises(Left):
        run_apart(deaf, started, report=report)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [
        (rejected, AutoencodeError, "Choose another."),
        (broken, RuntimeError, "ZeroDivisionError"),
        (gone, AutoencodeError, "ended unexpectedly"),
    ],
)
def test_what_goes_wrong_there_is_said_here(
    function: Callable[[Progress], None], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        run_apart(function, report=lambda *_: None)


def test_a_command_is_stopped_as_by_the_keyboard_and_ends_with_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A command that does what training does on Ctrl-C, without its seconds.
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, sys, time, pathlib\n"
        "def end(*_): pathlib.Path('kept').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, end)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    starter = Starter(tmp_path)
    work = starter.begin("train", tmp_path / "inner")
    assert work.out == tmp_path.resolve() / "runs" / "inner"
    wait((tmp_path / "ready").exists)
    with pytest.raises(ConfigError, match="Another command is running"):
        starter.begin("index", tmp_path / "inner")
    starter.close()
    assert (work.process.returncode, (tmp_path / "kept").exists()) == (130, True)
    assert not starter.is_busy
    os.kill(os.getpid(), signal.SIG_DFL)  # and this process is unharmed


def test_what_is_asked_for_at_once_is_done_together_and_an_error_is_of_one_alone(
    threads: ThreadPoolExecutor,
) -> None:
    batches: list[list[int]] = []
    first = threading.Event()

    def square(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        first.wait(5)
        if -1 in numbers:
            raise ConfigError("There is no -1.")
        return [number**2 for number in numbers]

    together = Together(square, threads, most=4)

    async def ask() -> list[int | BaseException]:
        asked = [asyncio.ensure_future(together(number)) for number in (7, 1, 2, -1, 3, 4, 5)]
        await asyncio.sleep(0)  # all have asked; the thread has taken the first, or as many as were there
        asked[-1].cancel()
        first.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    *results, given_up = in_a_loop(ask())
    assert [str(one) for one in results] == ["49", "1", "4", "There is no -1.", "9", "16"]
    assert isinstance(given_up, asyncio.CancelledError)
    assert max(map(len, batches)) > 1
    assert all(len(batch) <= 4 for batch in batches)
    assert [5] not in batches


def test_a_thread_for_requests_computes_on_one_core_and_others_on_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_core("requests") as requests:
            assert requests.submit(torch.get_num_threads).result() == 1
            with ThreadPoolExecutor(1) as others:
                assert others.submit(torch.get_num_threads).result() == 2
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
