"""Two processes at once on one pack, run, index or paper: the second is rejected by name, or finds it done.

Never both: the result is that of one that was alone.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoencode.errors import AutoencodeError
from torture.commands import Command, prepared
from torture.outcome import Outcome
from torture.processes import Child, run

IMAGES = 30
_REJECTIONS = ("Another process", "by another process", "holds a run already", "already done")


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Start two of each command so many times, the second after a random part of the time that one takes.

    Args:
        cases: pairs of each command.
        seed: of the times.
        folder: to work in.
        names: the commands; of none, all.
    """
    outcome, images, commands = prepared(folder, IMAGES, names)
    for command in commands:
        alone = folder / f"{command.name}-alone"
        started = time.monotonic()
        ended = run(lambda command=command, alone=alone: command.run(images, alone))  # type: ignore[misc]
        seconds = time.monotonic() - started
        if not outcome.check(ended.code == 0, f"{command.name}: {ended}"):
            continue
        expected = command.result(alone)
        generator = np.random.default_rng([seed, *command.name.encode()])
        for case in range(cases):
            out = folder / f"{command.name}-{case}"
            delay = float(generator.uniform(0, seconds)) if case % 3 else 0.0
            _race(command, images, out, delay, expected, outcome)
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(out.with_suffix(".pack"), ignore_errors=True)
    return outcome


def _race(command: Command, images: Path, out: Path, delay: float, expected: str, outcome: Outcome) -> None:
    what = f"two of {command.name}, the second after {delay:.3f} s"
    first = Child(lambda: command.run(images, out))
    time.sleep(delay)
    second = Child(lambda: command.run(images, out))
    ended = [child.wait() for child in (first, second)]
    outcome.cases += 1
    outcome.check(any(one.code == 0 for one in ended), f"{what}: neither succeeded: {ended[0]}; {ended[1]}")
    for one in ended:
        last = one.errors.strip().rpartition("\n")[2]
        is_rejected = any(text in last for text in _REJECTIONS) and last.startswith("autoencode.errors.")
        outcome.check(one.code == 0 or is_rejected, f"{what}: {one}")
    try:
        outcome.check(command.result(out) == expected, f"{what}: another result than alone")
    except (AutoencodeError, OSError) as err:
        outcome.failures.append(f"{what}: no result: {err}")
