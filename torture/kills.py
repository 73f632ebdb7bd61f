"""kill -9 at any moment of pack, train, index and paper, then the same again: nothing is lost or half-made.

Half of the moments are random times; the others are just before and after a call that makes something
lasting: a sync, a rename, a removal, the making of a folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoencode.index import open_index
from torture.commands import Command, make_images, prepared
from torture.outcome import Outcome
from torture.processes import Child, run

LASTING = ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "mkdir"))
IMAGES, NEW_IMAGES = 30, 6


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Kill each command at so many moments, half of the time on top of an older result.

    Args:
        cases: moments for each command.
        seed: of the moments.
        folder: to work in.
        names: the commands; of none, all.
    """
    outcome, images, commands = prepared(folder, IMAGES, names)
    older: dict[str, Path] = {}
    for command in commands:
        older[command.name] = folder / f"{command.name}-older"
        ended = run(lambda command=command: command.run(images, older[command.name]))  # type: ignore[misc]
        outcome.check(ended.code == 0, f"{command.name}: {ended}")
    for path in sorted(images.rglob("*.png"))[:2]:
        path.unlink()
    make_images(images, NEW_IMAGES, IMAGES)
    for command in commands:
        _attack_command(
            command,
            cases,
            np.random.default_rng([seed, *command.name.encode()]),
            older[command.name],
            outcome,
        )
    return outcome


def _are_close(one: Path, other: Path) -> bool:
    return np.allclose(open_index(one).codes, open_index(other).codes, rtol=1e-4, atol=1e-4)


def _attack_command(
    command: Command, cases: int, generator: np.random.Generator, older: Path, outcome: Outcome
) -> None:
    folder = older.parent
    images = folder / "images"
    whole = folder / f"{command.name}-whole"
    started = time.monotonic()
    calls = _calls(command, images, whole, outcome)
    seconds = time.monotonic() - started
    expected = updated = command.result(whole)
    # A run on other images is rejected: only packs and indexes can be updated.
    has_older = command.name in ("pack", "index", "lance")
    if has_older:
        new = shutil.copytree(older, folder / f"{command.name}-updated", symlinks=True)
        ended = run(lambda: command.run(images, new))
        outcome.check(ended.code == 0, f"{command.name}: {ended}")
        updated = command.result(new)
        # New images are encoded in another batch, where sums are rounded otherwise: codes differ in the last
        # bits on some processors. LanceDB's vectors stay in the space of the first images.
        is_exact = command.name == "pack"
        outcome.check(updated == expected or not is_exact, f"{command.name}: not as if made anew")
        if command.name == "index":
            outcome.check(_are_close(new, whole), "index: codes are not those of one made anew")
    for case in range(cases):
        out = folder / f"{command.name}-{case}"
        is_update = has_older and case % 4 >= 2
        if is_update:
            shutil.copytree(older, out, symlinks=True)
        if case % 2:
            at = int(generator.integers(1, calls + 1))
            name = f"{command.name} killed at call {at} of {calls}"
            child = Child(lambda: (_kill_at(at), command.run(images, out)))  # noqa: B023 - runs before the next
        else:
            after = float(generator.uniform(0, seconds))
            name = f"{command.name} killed after {after:.3f} of {seconds:.3f} s"
            child = Child(lambda: command.run(images, out))  # noqa: B023
            time.sleep(after)
            child.kill()
        ended = child.wait()
        outcome.cases += 1
        outcome.check(ended.code in (0, -signal.SIGKILL), f"{name}: {ended}")
        left = run(lambda: _assert(command.is_whole(out)))  # noqa: B023
        outcome.check(left.code == 0, f"{name}: what it left is not whole: {left}")
        again = run(lambda: command.run(images, out))  # noqa: B023
        if outcome.check(again.code == 0, f"{name}: and cannot be run again: {again}"):
            outcome.check(
                command.result(out) == (updated if is_update else expected), f"{name}: another result"
            )
            partial = [str(path.relative_to(out)) for path in out.rglob("*.partial")]
            outcome.check(not partial, f"{name}: left {partial}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.with_suffix(".pack"), ignore_errors=True)


def _assert(is_good: bool) -> None:
    if not is_good:
        raise AssertionError


def _calls(command: Command, images: Path, out: Path, outcome: Outcome) -> int:
    """Run a command to its end; return how many lasting calls it makes."""
    counted = out.with_suffix(".calls")

    def counting() -> None:
        calls = _kill_at(0)
        command.run(images, out)
        counted.write_text(str(calls()))

    ended = run(counting)
    outcome.check(ended.code == 0, f"{command.name}: {ended}")
    return int(counted.read_text())


def _kill_at(last: int) -> Callable[[], int]:
    """Kill this process at a lasting call, counted from 1 both before and after; return a counter."""
    calls = 0

    def passing() -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def killed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            passing()
            result = call(*arguments, **options)
            passing()
            return result

        return killed

    for owner, name in LASTING:
        setattr(owner, name, killing(getattr(owner, name)))
    return lambda: calls
