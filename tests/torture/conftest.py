"""The torture, run as from the command line: it forks, which a process with threads must not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Torture = Callable[..., str]


@pytest.fixture
def torture(tmp_path: Path) -> Torture:
    """Run a part with its options; return the last line of the table, once nothing fell."""

    def run(*arguments: str) -> str:
        root = Path(__file__).parents[2]
        ended = subprocess.run(
            [sys.executable, "-m", "torture", *arguments],
            cwd=root,
            # One arena: under load glibc gives a thread a second one of some 26 MB, once, which a
            # soak of a few rounds cannot tell from a leak.
            env={**os.environ, "TMPDIR": str(tmp_path), "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout.splitlines()[-1]

    return run
