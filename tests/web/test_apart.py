"""A function in another process: its result, its progress, its failure, and its end at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoencode import AutoencodeError, ConfigError
from autoencode.web.jobs import run_apart

Progress = Callable[[int, int], None]


def squares(count: int, progress: Progress) -> tuple[int, list[int]]:
    for done in range(count):
        progress(done + 1, count)
    return os.getpid(), [value**2 for value in range(count)]


def deaf(file: Path, progress: Progress) -> None:
    """Say who it is, and then nothing for a minute."""
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
    told = tmp_path / "process"

    def report(done: int, total: int) -> None:
        if told.exists():
            raise Left

    with pytest.raises(Left):
        run_apart(deaf, told, report=report)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [
        (rejected, AutoencodeError, "Choose another."),
        (broken, RuntimeError, "ZeroDivisionError"),
        (gone, AutoencodeError, "ended by itself"),
    ],
)
def test_what_goes_wrong_there_is_said_here(
    function: Callable[[Progress], None], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        run_apart(function, report=lambda *_: None)
