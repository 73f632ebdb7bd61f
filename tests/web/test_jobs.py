"""Work with progress: done once, seen from outside, and no reason to wait when leaving."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from autoencode import ConfigError
from autoencode.web.jobs import Job, Report

from .conftest import wait_for as wait


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def test_work_is_done_once_and_tells_how_far_it_is(threads: ThreadPoolExecutor) -> None:
    calls, go_on = [], threading.Event()

    def work(report: Report) -> int:
        calls.append(1)
        report("counting", 3, 7)
        go_on.wait(5)
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
    def rejected(_: Report) -> int:
        raise ConfigError("Choose another.")

    def broken(_: Report) -> int:
        raise ZeroDivisionError("by zero")

    for work, text in ((rejected, "Choose another."), (broken, "Unexpected: ZeroDivisionError: by zero")):
        job = Job(work, threads)
        job.result()
        wait(lambda job=job: job.state == "failed")
        assert job.error == text


def test_who_leaves_does_not_wait_for_it(threads: ThreadPoolExecutor) -> None:
    def endless(report: Report) -> int:
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

    def work(report: Report) -> int:
        begun.release()
        while not last:
            report("going on", 1, 2)
        return 42

    job = Job(work, threads)
    job.result()
    begun.acquire(timeout=5)
    job.stop()
    assert job.progress() == {
        "state": "waiting",
        "stage": "waiting for other work",
        "done": 0,
        "total": 0,
        "error": "",
    }
    assert job.result() is None
    begun.acquire(timeout=5)
    last = True
    wait(lambda: job.result() == 42)
    job.stop()
    assert (job.state, job.result()) == ("done", 42)
