"""How fast the paper's network trains here and elsewhere: same network, same first weights, same images.

    python benchmarks/train_speed.py [--side 128] [--batch 128] [--rounds 5] [--steps 2] [--only ours eager]

Each contender lives in its own process; they take turns (A B C, A B C, ...), so that whatever else the
machine does falls on all alike. A round is forward, backward and Adamax on one batch, `--steps` times; what
is reported is the median over the rounds, the ratio to plain PyTorch, the most memory the process has had,
and the loss after equal steps. Contenders that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from contenders import CONTENDERS, LEARNING_RATE, first_weights
from machine import machine

PAPERS = [name for name in CONTENDERS if not name.startswith("best")]  # train the paper's network
ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 8  # steps: compilation, and the heap of a process that keeps its memory grows for about so long


def photographs(batch: int, side: int) -> np.ndarray:
    """(B, 3, H, W) in [0, 1]: smooth random images; what they show does not matter for speed."""
    generator = np.random.default_rng(0)
    coarse = generator.random((batch, 3, side // 16, side // 16))
    images = coarse.repeat(16, 2).repeat(16, 3)
    for axis in (2, 3):
        images = (images + np.roll(images, 8, axis) + np.roll(images, 4, axis)) / 3
    return images.astype(np.float32)


def serve(name: str, side: int, batch: int, clock: Callable[[], float]) -> None:
    """The process of one contender: each line on stdin is a number of steps to take."""
    run = CONTENDERS[name][1](photographs(batch, side), first_weights(side))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        started = clock()
        losses = run(int(line))
        seconds = clock() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"seconds": seconds, "losses": losses, "gigabytes": peak}), flush=True)


class Contender:
    """A contender's process, seen from here."""

    def __init__(self, name: str, side: int, batch: int, cpu: bool) -> None:
        command = [sys.executable, __file__, "--serve", name, "--side", str(side), "--batch", str(batch)]
        command += ["--cpu"] if cpu else []
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TQDM_DISABLE": "1"}
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.gigabytes = 0.0
        self.ready = bool(self._answer())

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # some libraries print to stdout
                return json.loads(line)
        return {}

    def round(self, steps: int, counted: bool) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.losses += answer["losses"]
        self.gigabytes = answer["gigabytes"]
        if counted:
            self.seconds.append(answer["seconds"] / steps)

    def stop(self) -> None:
        self.process.communicate()


def table(contenders: Sequence[Contender], batch: int) -> str:
    plain = next((c for c in contenders if c.name == "eager"), contenders[0])
    lines = [
        "| contender | images/s | of plain PyTorch | spread of rounds | peak GB | loss, first | loss, last |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for contender in contenders:
        # Round by round, so that a slow spell of the machine, which falls on all, falls out.
        ratios = [a / b for a, b in zip(plain.seconds, contender.seconds, strict=True)]
        median = statistics.median(contender.seconds)
        lines.append(
            f"| {CONTENDERS[contender.name][0]} | {batch / median:.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {contender.gigabytes:.2f} "
            f"| {contender.losses[0]:.5f} | {contender.losses[-1]:.5f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=PAPERS)
    parser.add_argument("--cpu", action="store_true", help="processor seconds, for a machine that is busy")
    parser.add_argument("--serve", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        clock = time.process_time if arguments.cpu else time.perf_counter
        serve(arguments.serve, arguments.side, arguments.batch, clock)
        return
    sizes = arguments.side, arguments.batch, arguments.cpu
    contenders = [Contender(name, *sizes) for name in arguments.only]
    missing = [c.name for c in contenders if not c.ready]
    contenders = [c for c in contenders if c.ready]
    for contender in contenders:
        contender.round(WARM_UP, counted=False)
    for _ in range(arguments.rounds):
        for contender in contenders:
            contender.round(arguments.steps, counted=True)
    for contender in contenders:
        contender.stop()
    total = arguments.steps * arguments.rounds + WARM_UP
    print(
        f"{machine()}; {arguments.side}x{arguments.side}, batch {arguments.batch}, Adamax {LEARNING_RATE:g}, "
        f"{arguments.rounds} rounds of {arguments.steps} steps after {WARM_UP} to warm up; "
        f"loss after step 1 and step {total}\n"
    )
    print(table(contenders, arguments.batch))
    if missing:
        print(f"\nNot installed, or failed: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
