from __future__ import annotations

import contextlib
import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from autoencode import ImageError, Limits, Preprocessing, pack_folder
from autoencode.data import workers
from autoencode.data.decoders import UntrustedDecoder
from autoencode.data.preprocessing import read_image
from autoencode.data.workers import Lost, run
from autoencode.errors import AutoencodeError

Item = TypeVar("Item")
Result = TypeVar("Result")


def results(
    function: Callable[[Item], Result], items: Sequence[Item], seconds: float = 30, count: int = 2
) -> list[Result | Lost]:
    by_index = dict(run(function, items, seconds=seconds, workers=count))
    return [by_index[index] for index in range(len(items))]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 5, 100])
def test_every_item_gets_its_result_once(count: int, items: int) -> None:
    assert results(abs, [-i for i in range(items)], count=count) == list(range(items))


def test_an_item_that_hangs_is_given_up_alone() -> None:
    started = time.monotonic()
    seconds = [0.0] * 40
    seconds[7] = 600
    outcome = results(time.sleep, seconds, seconds=0.1)
    assert outcome[7] == Lost("took longer than 0.6 s")
    assert outcome[:7] + outcome[8:] == [None] * 39
    assert time.monotonic() - started < 20


def test_the_time_limit_is_for_each_item_and_not_for_their_sum() -> None:
    assert results(time.sleep, [0.1] * 16, seconds=0.15, count=1) == [None] * 16


def test_an_item_that_never_stops_computing_is_given_up_alone() -> None:
    items = [range(2), range(10**15), range(3)]
    assert results(sum, items, seconds=0.2) == [1, Lost("took longer than 0.2 s"), 3]


def test_waiting_costs_no_processor_time() -> None:
    assert results(time.sleep, [0.5], seconds=0.2) == [None]


def test_a_process_that_is_no_worker_is_never_ended() -> None:
    workers.set_time_limit(0.01)
    assert signal.getitimer(signal.ITIMER_PROF) == signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def _allowed(seconds: float) -> int:
    workers.set_time_limit(seconds)
    return sum(range(10**15))


def test_the_function_can_allow_its_item_another_time() -> None:
    started = time.monotonic()
    assert results(_allowed, [0.2], seconds=60) == [Lost("took longer than 60 s")]
    assert time.monotonic() - started < 30


def test_an_item_that_crashes_the_process_is_lost_alone() -> None:
    signals = [0] * 40
    signals[3], signals[30] = signal.SIGSEGV, signal.SIGKILL
    outcome = results(signal.raise_signal, signals)
    assert outcome[3] == Lost("the decoder crashed (Segmentation fault)")
    assert outcome[30] == Lost("the decoder was killed, as the system does when memory runs out")
    assert [o for i, o in enumerate(outcome) if i not in (3, 30)] == [None] * 38
    assert results(os._exit, [3]) == [Lost("the decoder crashed (exit code 3)")]


def test_an_error_of_the_function_ends_the_run() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        results(int, ["1", "one"])
    with pytest.raises(FileNotFoundError, match="no such place"):
        results(os.listdir, ["/no such place"])


@pytest.mark.parametrize("executable", ["/no/such/python", "/bin/false"])
def test_a_worker_that_cannot_start_is_an_error_and_not_a_lost_item(
    monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(AutoencodeError, match="Could not start a worker process"):
        results(abs, [1, 2])


def test_giving_up_ends_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", remember)
    with contextlib.closing(run(time.sleep, [0.0, 600, 600], seconds=900, workers=3)) as outcome:
        assert next(outcome) == (0, None)
    assert len(started) == 3
    assert all(process.returncode is not None for process in started)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from autoencode.data.workers import run\n"
        "for index, pid in run(eval, ['__import__(\"os\").getpid()'] * 9, seconds=9, workers=1):\n"
        "    print(pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert parent.returncode == -signal.SIGKILL
    worker = int(parent.stdout.split()[0])
    for _ in range(100):
        status = Path(f"/proc/{worker}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


def test_a_persistent_worker_stays_for_items_one_at_a_time() -> None:
    worker = workers.PersistentWorker(abs, seconds=5)
    try:
        assert worker.call(-1) == 1
        assert worker._worker is not None
        process = worker._worker.process.pid
        assert worker.call(-2) == 2
        assert worker._worker.process.pid == process
    finally:
        worker.close()
    assert worker._worker is None


def test_a_persistent_worker_is_replaced_after_an_item_that_hangs() -> None:
    worker = workers.PersistentWorker(time.sleep, seconds=0.05)
    try:
        assert worker.call(60) == Lost("took longer than 0.3 s")
        assert worker.call(0) is None
    finally:
        worker.close()


def test_a_persistent_worker_raises_what_the_function_raises_and_goes_on() -> None:
    worker = workers.PersistentWorker(int, seconds=5)
    try:
        with pytest.raises(ValueError, match="no number"):
            worker.call("no number")
        assert worker.call("3") == 3
    finally:
        worker.close()


SIZE = Preprocessing(32, 32)


def content(width: int = 50, height: int = 40) -> bytes:
    file = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_the_pixels_are_those_of_reading_it_here() -> None:
    decoder = UntrustedDecoder(SIZE)
    try:
        for _ in range(2):
            np.testing.assert_array_equal(decoder.decode(content()), read_image(content(), SIZE))
    finally:
        decoder.close()


def test_limits_hold_and_say_why() -> None:
    decoder = UntrustedDecoder(SIZE, Limits(max_pixels=1000, max_bytes=10_000))
    try:
        with pytest.raises(ImageError, match="pixels are more than the limit"):
            decoder.decode(content())
        with pytest.raises(ImageError, match="more bytes than the limit"):
            decoder.decode(bytes(10_001))
        with pytest.raises(ImageError, match="not an image"):
            decoder.decode(b"text")
    finally:
        decoder.close()


def test_too_little_memory_costs_the_file_alone() -> None:
    file = io.BytesIO()
    # One byte per pixel in the file, four once its transparency is looked up.
    Image.new("P", (7900, 7900)).save(file, "PNG", transparency=0, compress_level=1)
    decoder = UntrustedDecoder(SIZE, memory_bytes=450 * 1024**2)
    try:
        with pytest.raises(ImageError, match=r"memory|cannot be decoded"):
            decoder.decode(file.getvalue())
        assert decoder.decode(content()).shape == (32, 32, 3)
    finally:
        decoder.close()


def test_a_process_that_ends_is_replaced() -> None:
    decoder = UntrustedDecoder(SIZE)
    try:
        decoder.decode(content())
        worker = decoder._worker._worker
        assert worker is not None
        os.kill(worker.process.pid, signal.SIGKILL)
        with pytest.raises(ImageError, match="killed"):
            decoder.decode(content())
        assert decoder.decode(content()).shape == (32, 32, 3)
    finally:
        decoder.close()


def test_it_does_not_outlive_its_time() -> None:
    decoder = UntrustedDecoder(SIZE, Limits(seconds_per_file=0.01))
    file = io.BytesIO()
    Image.fromarray(np.zeros((3000, 3000, 3), np.uint8)).save(file, "PNG")
    started = time.monotonic()
    try:
        with pytest.raises(ImageError, match="took longer than"):
            decoder.decode(file.getvalue())
    finally:
        decoder.close()
    assert time.monotonic() - started < 10


def test_a_system_without_workers_works_on_items_in_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_HAS_WORKERS", False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process"))
    with pytest.warns(UserWarning, match=r"in this process.*that hangs or crashes"):
        assert results(abs, [-1, 2, -3]) == [1, 2, 3]
    decoder = UntrustedDecoder(SIZE)
    np.testing.assert_array_equal(decoder.decode(content()), read_image(content(), SIZE))
    decoder.close()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="address space is not known here")
def test_a_file_that_needs_more_memory_than_the_share_of_a_worker_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "small.png")
    Image.new("RGB", (8000, 8000)).save(folder / "large.png")  # 192 MB of pixels
    monkeypatch.setattr(workers, "_MOST_BYTES", 150 * 1024**2)
    pack = pack_folder(folder, tmp_path / "pack", size=16, workers=2)
    [skipped] = pack.skipped
    assert (skipped.path, skipped.reason) == ("large.png", "too large for the memory of this machine")


def test_workers_share_what_is_free_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 1024**3
    for free, count, share in ((20, 2, 4), (5, 2, 2), (5, 16, 1), (0.1, 1, 1), (math.inf, 8, 4)):
        monkeypatch.setattr(workers, "free_bytes", lambda free=free: free * gigabyte)
        assert workers.memory_share(count) == share * gigabyte
    monkeypatch.undo()
    assert workers.free_bytes() > 0
