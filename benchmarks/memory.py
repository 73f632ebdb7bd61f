"""Peak memory of the verbs that read whole folders, with few and with many images.

    python benchmarks/memory.py [--images 12000 60000] [--verbs pack train index outliers evaluate]

The images are JPEGs of 48x48 pixels, all different, packed at 32x32; the model is `--preset best`, one epoch.
Each verb runs in a process of its own, from the command line. Anonymous memory is what the process and its
workers hold themselves, read every 20 ms from /proc/PID/smaps_rollup (shared pages in proportion); pages of
mapped files, which the system may drop at any time, count only in the peak resident size (of the largest
process, as the kernel reports it).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from machine import machine

SIDE, STORED, LABELS = 32, 48, 4
INTERVAL = 0.02  # seconds
VERBS = ("pack", "train", "index", "outliers", "evaluate")


def write_images(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for label in range(LABELS):
        (folder / str(label)).mkdir(parents=True)
    for index in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), np.uint8))
        image = coarse.resize((STORED, STORED), Image.Resampling.BICUBIC)
        image.save(folder / str(index % LABELS) / f"{index:06}.jpg")


def command(verb: str, folder: Path) -> list[str]:
    images, pack, run = (str(folder / name) for name in ("images", "images.pack", "run"))
    return {
        "pack": ["pack", images, "--out", pack, "--size", str(SIDE)],
        "train": ["train", pack, "--out", run, "--preset", "best", "--epochs", "1"],
        "index": ["index", pack, "--model", run, "--out", str(folder / "index")],
        "outliers": ["outliers", run, images, "--out", str(folder / "outliers.csv")],
        "evaluate": ["evaluate", run],
    }[verb]


@dataclass
class Peak:
    """Most of it at any moment, in MiB, and seconds it took."""

    anonymous: float
    resident: float
    seconds: float


def measure(arguments: Sequence[str]) -> Peak:
    started, most = time.perf_counter(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "autoencode", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        most = max(most, sum(map(anonymous_kib, family(process.pid))))
        time.sleep(INTERVAL)
    if status:
        assert process.stderr is not None
        raise SystemExit(f"{' '.join(arguments)} failed: {process.stderr.read()}")
    return Peak(most / 1024, usage.ru_maxrss / 1024, time.perf_counter() - started)


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *map(int, children)]


def anonymous_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs=2, default=[12_000, 60_000])
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=list(VERBS))
    parser.add_argument("--keep", type=Path, help="folder for images, packs and runs, used again")
    chosen = parser.parse_args()
    few, many = chosen.images
    print(f"{machine()}; {few:,} and {many:,} images, {SIDE}x{SIDE}\n")
    print(f"| verb | {few:,}: anonymous MiB | {many:,} | ratio | resident MiB | | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {count: (chosen.keep or Path(temporary)) / str(count) for count in chosen.images}
        for count, folder in folders.items():
            if not folder.exists():
                write_images(folder / "images", count)
        for verb in VERBS:
            done = {"pack": "images.pack", "train": "run"}.get(verb, "")
            if verb not in chosen.verbs and (not done or all((f / done).exists() for f in folders.values())):
                continue
            a, b = (measure(command(verb, folder)) for folder in folders.values())
            print(
                f"| `{verb}` | {a.anonymous:,.0f} | {b.anonymous:,.0f} | {b.anonymous / a.anonymous:.2f} "
                f"| {a.resident:,.0f} | {b.resident:,.0f} | {b.resident / a.resident:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
