"""Ranks, signals, memory, and the launcher, with a shell in place of a training run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from autoencode.cli import train_config as train
from autoencode.errors import ConfigError, RunError
from autoencode.training import process
from autoencode.training.process import (
    Ranks,
    interrupt,
    interrupts,
    is_first,
    keep_freed_memory,
    own_ranks,
    stopped_by_sigterm,
)

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_a_process_is_alone_unless_the_environment_says_otherwise() -> None:
    assert own_ranks({}) == own_ranks({"WORLD_SIZE": "1"}) == Ranks(0, 1, 0, 0)
    assert is_first({}) and is_first({"RANK": "3"})


def test_a_process_reads_the_variables_of_torchrun() -> None:
    assert own_ranks(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2"}) == Ranks(3, 4, 1, 2)
    assert own_ranks({"WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}) == Ranks(0, 1, 0, 2)
    assert not is_first(TORCHRUN)
    assert is_first(TORCHRUN | {"RANK": "0"})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK and MASTER_ADDR and MASTER_PORT not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "0"}, "whole number from 1"),
        (TORCHRUN | {"RANK": "4"}, "ranks go from 0 to 3"),
        (TORCHRUN | {"RANK": "-1"}, "RANK is '-1'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_rejected(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own_ranks(environment)


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


# Allocates and frees 64 MB again and again; with the memory kept, only the first time faults it in.
FAULTS = """
import ctypes, resource, sys
from autoencode.training.process import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
assert "torch" not in sys.modules
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def refuse_to_load_a_library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for libc, so that the tests leave the allocator of their own process alone."""
    loaded: list[str] = []

    def load(name: str) -> object:
        loaded.append(name)
        raise OSError("no such library")

    monkeypatch.setattr(process.ctypes, "CDLL", load)
    monkeypatch.setattr(process.sys, "platform", "linux")
    monkeypatch.delenv("AUTOENCODE_KEEP_MEMORY", raising=False)
    return loaded


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_nothing_is_touched_off_linux(
    platform: str, monkeypatch: pytest.MonkeyPatch, refuse_to_load_a_library: list[str]
) -> None:
    monkeypatch.setattr(process.sys, "platform", platform)
    assert keep_freed_memory() is False
    assert not refuse_to_load_a_library


def test_the_environment_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, refuse_to_load_a_library: list[str]
) -> None:
    monkeypatch.setenv("AUTOENCODE_KEEP_MEMORY", "0")
    assert keep_freed_memory() is False
    assert not refuse_to_load_a_library


def test_another_c_library_is_left_alone(refuse_to_load_a_library: list[str]) -> None:
    assert keep_freed_memory() is False
    assert refuse_to_load_a_library == ["libc.so.6"]


def test_every_setting_must_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def __init__(self, answer: int) -> None:
            self.calls: list[tuple[int, int]] = []
            self.answer = answer

        def mallopt(self, parameter: int, value: int) -> int:
            self.calls.append((parameter, value))
            return self.answer

    for answer in (1, 0):
        libc = Libc(answer)
        monkeypatch.setattr(process.ctypes, "CDLL", lambda _name, libc=libc: libc)
        assert keep_freed_memory() is bool(answer)
        assert libc.calls[0] == (-4, 0)  # M_MMAP_MAX: nothing is mapped on its own any more


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tells glibc")
def test_freed_memory_is_not_faulted_in_again() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("keep", "return")
    ]
    assert faults[0] < faults[1] / 5
    assert ctypes.sizeof(ctypes.c_size_t) == 8


def shell(script: str, folder: Path) -> list[str]:
    return ["sh", "-c", f"cd {folder}; {script}"]


def test_each_process_knows_its_ranks(tmp_path: Path) -> None:
    script = 'echo "$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $TORCHELASTIC_RESTART_COUNT" > $RANK'
    assert process.run_workers(3, shell(script, tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == f"3 {rank} 127.0.0.1 0\n"


def test_an_error_is_final_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    script = "echo >> starts-$RANK; [ $RANK = 0 ] || exit 2"
    assert process.run_workers(2, shell(script, tmp_path)) == 2
    assert (tmp_path / "starts-1").read_text() == "\n"


def test_a_process_that_is_killed_is_started_again_with_all_others(tmp_path: Path) -> None:
    script = "echo >> starts-$RANK; [ $RANK$TORCHELASTIC_RESTART_COUNT != 10 ] || kill -9 $$"
    assert process.run_workers(2, shell(script, tmp_path)) == 0
    assert [(tmp_path / f"starts-{rank}").read_text() for rank in (0, 1)] == ["\n\n", "\n\n"]


def test_processes_that_are_killed_every_time_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"killed 4 times, the last by SIGKILL.*--resume"):
        process.run_workers(2, shell("echo >> starts-$RANK; [ $RANK = 0 ] || kill -9 $$", tmp_path))
    assert (tmp_path / "starts-1").read_text() == "\n" * 4


def test_a_process_that_waits_for_a_lost_one_does_not_delay_the_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "NOTICING_S", 0.2)
    script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || { [ $RANK = 0 ] && exec sleep 600; kill -9 $$; }"
    assert process.run_workers(2, shell(script, tmp_path)) == 0


def test_an_error_that_process_0_does_not_learn_of_is_reported_within_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "NOTICING_S", 0.2)
    started = time.monotonic()
    with pytest.raises(RunError, match="Process 1 ended with exit code 3, and the others were stopped"):
        process.run_workers(2, shell("[ $RANK = 1 ] && exit 3; exec sleep 600", tmp_path))
    assert time.monotonic() - started < 10


LAUNCH = """
import sys
from autoencode.training.process import run_workers
run_workers(2, [sys.executable, "-c", sys.argv[1], sys.argv[2]])
"""
WORK = """
import os, signal, sys, time
from pathlib import Path
from typing import Any
from autoencode.training.process import end_with_launcher

def stop(*_):
    Path(sys.argv[1], "stopped-" + os.environ["RANK"]).touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, stop)
end_with_launcher()
Path(sys.argv[1], "ready-" + os.environ["RANK"]).touch()
time.sleep(600)
"""


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCH, WORK, str(tmp_path)])
    wait_for(tmp_path, "ready-*")
    launcher.kill()
    launcher.wait()
    wait_for(tmp_path, "stopped-*")


def wait_for(folder: Path, pattern: str, count: int = 2) -> None:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.05)


def test_a_signal_is_passed_on_to_every_process_and_none_is_started_again(tmp_path: Path) -> None:
    script = "trap 'echo stopped > $RANK; exit 130' TERM; echo > ready-$RANK; while :; do sleep 0.05; done"

    def stop() -> None:
        wait_for(tmp_path, "ready-*")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert process.run_workers(2, shell(script, tmp_path)) == 130
    thread.join()
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["stopped\n", "stopped\n"]
    assert not (tmp_path / "2").exists()


def test_train_runs_its_own_command_line_in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, list[str]]] = []
    codes = iter([0, 3])

    def run_workers(count: int, command: list[str], **_: object) -> int:
        calls.append((count, command))
        return next(codes)

    monkeypatch.setattr(train, "run_workers", run_workers)
    monkeypatch.setattr(sys, "argv", ["autoencode", "train", "photos", "--workers", "2"])
    assert train._start(2)
    assert calls == [(2, [sys.executable, "-m", "autoencode", "train", "photos", "--workers", "2"])]
    with pytest.raises(typer.Exit) as stopped:
        train._start(2)
    assert stopped.value.exit_code == 3
    assert not train._start(1)


def test_a_worker_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not train._start(2)
    with pytest.raises(ConfigError, match="There are 2 processes already, not --workers 3"):
        train._start(3)


def test_a_signal_while_processes_are_started_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    popen, started = subprocess.Popen, 0

    def interrupted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        nonlocal started
        started += 1
        if started == 1:
            signal.raise_signal(signal.SIGINT)
        return popen(*arguments, **options)

    monkeypatch.setattr(process.subprocess, "Popen", interrupted)
    before = time.monotonic()
    assert process.run_workers(2, ["sleep", "60"]) == 130
    assert started == 2
    assert time.monotonic() - before < 30
