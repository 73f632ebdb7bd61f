"""How fast images become a pack: `pack` with one and two processes, beside a bare loop of Pillow.

    python benchmarks/packing.py [--images 4000] [--rounds 5] [--source FOLDER] [--workers 1 2]

The images are JPEGs of 250x250 pixels (quality 90), made of those in FOLDER or of smooth noise; all of them
go to 128x128. The bare loop opens each file, decodes it at a reduced size, resizes it, and keeps the pixels
in memory: nothing is checked, hashed, isolated or written. Contenders take turns; a rate is the median over
the rounds, for each second of processor time of all processes together, and for each second as one waits.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode import Preprocessing, pack_folder
from autoencode.data.sources import find_images
from machine import machine

SIDE, STORED = 128, 250


def write_jpegs(folder: Path, count: int, source: Path | None) -> int:
    """Fill `folder` with JPEGs, and return their mean size in bytes."""
    generator = np.random.default_rng(0)
    pictures = find_images(source) if source else []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        if pictures:
            with Image.open(pictures[index % len(pictures)]) as opened:
                small = opened.convert("RGB")
        else:
            small = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8))
        large = small.resize((STORED, STORED), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 4, (STORED, STORED, 1))
        pixels = np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06}.jpg", quality=90)
    return sum(path.stat().st_size for path in folder.iterdir()) // count


def bare_loop(folder: Path) -> NDArray[np.uint8]:
    paths = sorted(folder.iterdir())
    pixels = np.empty((len(paths), SIDE, SIDE, 3), np.uint8)
    for index, path in enumerate(paths):
        image = Image.open(path)
        image.draft(None, (STORED // 2, STORED // 2))
        pixels[index] = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
    return pixels


def pack(folder: Path, workers: int) -> None:
    out = folder.with_name("pack")
    try:
        pack_folder(folder, out, Preprocessing(SIDE, SIDE), workers=workers)
    finally:
        shutil.rmtree(out)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in used)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time and of waiting."""
    before, started = processor_seconds(), time.perf_counter()
    work()
    return processor_seconds() - before, time.perf_counter() - started


def table(times: dict[str, list[tuple[float, float]]], images: int) -> str:
    first = next(iter(times))
    header = "| | images per CPU second | of the bare loop | images per second |"
    lines = [header, "| --- | --- | --- | --- |"]
    for name, rounds in times.items():
        cpu, waited = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(times[first], rounds, strict=True))
        lines.append(f"| {name} | {images / cpu:,.0f} | {ratio:.2f} | {images / waited:,.0f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--source", type=Path, help="a folder of pictures to enlarge")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "jpegs"
        size = write_jpegs(folder, chosen.images, chosen.source)
        contenders: dict[str, Callable[[], object]] = {"bare loop of Pillow": lambda: bare_loop(folder)}
        for workers in chosen.workers:
            name = f"`pack`, {workers} process{'es' * (workers > 1)}"
            contenders[name] = lambda workers=workers: pack(folder, workers)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for index in range(chosen.rounds + 1):  # the first warms up the file cache
            for name, work in contenders.items():
                spent = timed(work)
                if index:
                    times[name].append(spent)
    print(
        f"{machine()}; {chosen.images:,} JPEGs of {STORED}x{STORED}, {size / 1000:.0f} kB each, "
        f"to {SIDE}x{SIDE}; {chosen.rounds} rounds\n"
    )
    print(table(times, chosen.images))


if __name__ == "__main__":
    main()
