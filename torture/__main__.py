"""Run the parts of the torture and print the failures: `python -m torture`.

The default sizes take two to three hours on two cores; `--times 10` is for a weekend.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Before torch is loaded, here and in children: what is small gains nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from torture.outcome import Outcome


class Part(NamedTuple):
    """A part of the torture: where its attack is, and how many cases it has by default."""

    module: str
    attack: str
    cases: int
    unit: str


PARTS = {
    "images": Part("images", "attack", 10_000, "damaged files"),
    "guided": Part("guided", "attack", 200_000, "files that a fuzzer grows"),
    "hostile": Part("hostile", "attack", 1_000, "damaged files, and others, for each command"),
    "folders": Part("images", "attack_folders", 100_000, "files in one folder"),
    "kills": Part("kills", "attack", 8, "moments a command"),
    "disks": Part("disks", "attack", 4, "amounts of room, for each command"),
    "concurrency": Part("concurrency", "attack", 4, "pairs, for each command"),
    "forged": Part("forged", "attack", 20, "changes of a kind of file"),
    "inputs": Part("inputs", "attack", 20, "networks, settings, tables, lists, masks, and damaged ones"),
    "numerics": Part("numerics", "attack", 40, "degenerate folders through every command"),
    "determinism": Part("determinism", "attack", 2, "times more, for each command"),
    "crowd": Part("crowd", "attack", 60, "pictures seen while others upload or send slowly"),
    "routes": Part("routes", "attack", 500, "requests with odd values, to each address of the page"),
    "soak": Part("soak", "attack", 1_800, "rounds of training, updates, kills, the page, a watched folder"),
}


def run(name: str, cases: int, seed: int, only: list[str] | None) -> Outcome:
    """Run one part in a folder of its own."""
    part = PARTS[name]
    attack = getattr(importlib.import_module(f"torture.{part.module}"), part.attack)
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
        names = [only] if only else []
        outcome: Outcome = attack(cases, seed, Path(folder).resolve(), *names)
    return outcome


def main() -> int:
    """Run the parts asked for; return 1 if anything fell."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--cases", type=int, help="instead of each part's own number")
    parser.add_argument("--times", type=float, default=1.0, help="the parts' own numbers, so many times")
    parser.add_argument("--only", action="append", help="of a part's commands, kinds or folders; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    failed = False
    print(f"{'part':12} {'cases':>8} {'failures':>8} {'seconds':>8}  what a case is, and notes")
    for name in arguments.parts or PARTS:
        started = time.monotonic()
        cases = arguments.cases or max(1, round(PARTS[name].cases * arguments.times))
        outcome = run(name, cases, arguments.seed, arguments.only)
        notes = "; ".join([PARTS[name].unit, *([outcome.skipped] if outcome.skipped else outcome.notes)])
        seconds = time.monotonic() - started
        print(f"{name:12} {outcome.cases:8,} {len(outcome.failures):8,} {seconds:8.0f}  {notes}", flush=True)
        for failure in outcome.failures:
            print(f"{name}: {failure}\n", file=sys.stderr, flush=True)
        failed |= bool(outcome.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
