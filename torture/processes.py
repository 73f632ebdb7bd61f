"""Cases in processes of their own: what they print, how they end, what memory they take.

A child is a fork of a process that has torch loaded but never used, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; minus the signal that killed it.
        errors: what it wrote to stderr.
        most_memory_mb: the most it had in memory at once.
    """

    code: int
    errors: str
    most_memory_mb: float

    @property
    def is_plain(self) -> bool:
        """Whether it did what it was asked to, or said in one line why not."""
        lines = self.errors.strip().splitlines()
        said = [line for line in lines if line.startswith("error: ")]
        is_rejection = self.code in (1, 2) and said == lines[-1:]
        return "Traceback" not in self.errors and (self.code == 0 or is_rejection)

    def __str__(self) -> str:
        return f"exit {self.code}: {self.errors.strip()[-600:]}"


class Child:
    """A function, running in a process of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        sys.stdout.flush()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by wait
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function)

    def _run(self, function: Callable[[], object]) -> None:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 1)
            os.dup2(self._errors.fileno(), 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - of the descriptor
            sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115 - as Python's own
            function()
            code = 0
        except SystemExit as err:
            code = err.code if isinstance(err.code, int) else int(err.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 70
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait until it has ended."""
        _, status, usage = os.wait4(self.pid, 0)
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace")
        self._errors.close()
        code = os.waitstatus_to_exitcode(status)
        scale = 1024**2 if sys.platform == "darwin" else 1024
        return Ended(code, errors, usage.ru_maxrss / scale)


def resident_mb(pid: int) -> float:
    """Memory that a process has now."""
    status = Path(f"/proc/{pid}/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], check=True, capture_output=True, text=True)
    return int(told.stdout) / 1024


def open_files(pid: int) -> int:
    """Files and connections that a process has open; 0 of another process where the system does not say."""
    own = "/dev/fd" if pid == os.getpid() else f"/proc/{pid}/fd"
    return len(os.listdir(own)) if Path(own).exists() else 0  # noqa: PTH208 - a generator would be counted


def run(function: Callable[[], object]) -> Ended:
    """Run a function in a process of its own."""
    return Child(function).wait()


def command(*arguments: str | Path) -> Callable[[], None]:
    """Return a function that is the command line with these arguments."""

    def typed() -> None:
        from autoencode.cli.main import main

        sys.argv = ["autoencode", *map(str, arguments)]
        main()

    return typed
