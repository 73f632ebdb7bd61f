"""What the tests of the command line share: a command line that runs here, and what an error looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest

from autoencode.cli import main

Command = Callable[..., "Result"]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def autoencode(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code: object = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["autoencode", *map(str, arguments)])
            # Its name is that of the program that runs the tests otherwise, as in `python -m pytest`.
            patch.setattr(main, "app", partial(main.app, prog_name="autoencode"))
            try:
                main.main()
            except SystemExit as err:
                code = err.code or 0
        captured = capfd.readouterr()
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run


def assert_one_line(result: Result, *parts: object, code: int = 1) -> None:
    """The error of a command that failed: one line on stderr that holds all parts, and no traceback."""
    assert result.code == code, result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("error: ")
    for part in parts:
        assert str(part) in result.err
    assert "Traceback" not in result.out + result.err
