"""Starting processes, passing signals on, starting again: with a shell in place of a training run."""

from __future__ import annotations

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

from autoencode.cli import demo_pack_config_train as train
from autoencode.errors import ConfigError, RunError
from autoencode.training import process


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


def test_one_that_waits_for_a_lost_one_does_not_hold_up_the_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "NOTICING_S", 0.2)
    script = "[ $TORCHELASTIC_RESTART_COUNT = 1 ] || { [ $RANK = 0 ] && exec sleep 600; kill -9 $$; }"
    assert process.run_workers(2, shell(script, tmp_path)) == 0


def test_an_error_that_the_first_cannot_hear_of_is_told_here_within_seconds(
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
