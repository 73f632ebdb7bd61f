"""A full disk and a folder that cannot be written, at every write of every command that writes.

The commands write into a small file system in memory, made with mount, which needs root. Each time it has
room for another number of blocks; the command does what it was asked, or ends with exit 1 and one line, and
what an earlier call left is whole. With more room the same command then succeeds.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from autoencode.data.manifest import is_pack
from autoencode.data.pack import open_pack
from autoencode.models.model_file import load_model
from torture.commands import HAS_LANCE, TINY_OPTIONS, make_images, whole_lance
from torture.outcome import Outcome
from torture.processes import Ended, command, run

BLOCK = 4096
LARGE = "256m"
IMAGES = 24

Arguments = Callable[[Path, Path], Sequence[str | Path]]

# What is typed, of (the folder with what was made before, the small file system).
COMMANDS: dict[str, Arguments] = {
    "pack": lambda had, out: ("pack", had / "images", "--size", "16", "--out", out / "pack"),
    "train": lambda had, out: ("train", had / "images", *TINY_OPTIONS, "--out", out / "run"),
    "index": lambda had, out: (*("index", had / "images", "--model", had / "run", "--out", out / "index"),),
    "lance": lambda had, out: (
        *("index", had / "images", "--model", had / "run", "--store", "lance", "--out", out / "tables"),
    ),
    "reconstruct": lambda had, out: ("reconstruct", had / "run", had / "images", "--out", out / "restored"),
    "morph": lambda had, out: ("morph", had / "run", *_two(had), "--out", out / "morph.gif"),
    "generate": lambda had, out: ("generate", had / "run", "-n", "9", "--out", out / "new"),
    "outliers": lambda had, out: ("outliers", had / "run", had / "images", "--out", out / "outliers.csv"),
    "normal": lambda had, out: ("outliers", had / "images", "--save", out / "normal.safetensors"),
    "defects": lambda had, out: (
        *("outliers", had / "images", "--out", out / "defects.csv", "--maps", out / "maps"),
    ),
    "duplicates": lambda had, out: ("duplicates", had / "images", "--out", out / "copies"),
    "embed": lambda had, out: ("embed", had / "run", had / "images", "--out", out / "codes.csv"),
    "search": lambda had, out: (
        *("search", had / "index", *_two(had), "--out", out / "found.json", "--sheet", out / "found.png"),
    ),
    "features": lambda had, out: ("features", had / "run", _two(had)[0], "--out", out / "features"),
    "classify": lambda had, out: (
        *("classify", had / "classifier", had / "images", "--out", out / "classes.csv"),
    ),
    "transfer": lambda had, out: ("transfer", had / "run", had / "images", "--out", out / "classifier"),
    "evaluate": lambda had, out: ("evaluate", had / "run", "--out", out / "numbers.json"),
    "export": lambda had, out: ("export", had / "run", "--out", out / "onnx"),
    "paper": lambda had, out: (
        *("paper", had / "images", "--size", "16", "--budget", "0.01", "--only", "ae"),
        *("--out", out / "paper"),
    ),
}


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Fill the disk at so many moments of each command, and take the right to write away.

    Args:
        cases: amounts of room for each command.
        seed: of the amounts.
        folder: to work in.
        names: the commands; of none, all.
    """
    outcome = Outcome()
    small = folder / "small"
    small.mkdir()
    if (reason := _cannot_mount(small)) is not None:
        outcome.skipped = reason
        return outcome
    had = folder / "had"
    make_images(had / "images", IMAGES)
    only_images = set(names or COMMANDS) <= {"pack", "train", "paper", "normal", "defects", "duplicates"}
    for made in (
        ()
        if only_images
        else (
            ("train", had / "images", *TINY_OPTIONS, "--out", had / "run"),
            ("index", had / "images", "--model", had / "run", "--out", had / "index"),
            ("transfer", had / "run", had / "images", "--out", had / "classifier"),
        )
    ):
        ended = run(command(*made))
        if not outcome.check(ended.code == 0, f"{made[0]}: {ended}"):
            return outcome
    for name in names or (name for name in COMMANDS if HAS_LANCE or name != "lance"):
        generator = np.random.default_rng([seed, *name.encode()])
        with _mounted(small, LARGE):
            typed = command(*COMMANDS[name](had, small))
            ended = run(typed)
            if not outcome.check(ended.code == 0, f"{name}: {ended}"):
                continue
            needed = -(-_bytes_below(small) // BLOCK) + 8
            older = folder / f"{name}-older"
            shutil.copytree(small, older, symlinks=True)
        for case in range(cases):
            with _mounted(small, LARGE):
                _one(name, case, int(generator.integers(1, needed)), (had, small, older), outcome)
        with _mounted(small, LARGE):
            _read_only(name, (had, small, older), outcome)
    return outcome


def _one(name: str, case: int, room: int, places: tuple[Path, Path, Path], outcome: Outcome) -> None:
    """Run a command with room for so many blocks, every other time where it has written before."""
    had, small, older = places
    if case % 2 and name != "train":  # which refuses to start again
        shutil.copytree(older, small, symlinks=True, dirs_exist_ok=True)
    what = f"{name} with {room} free blocks, case {case}"
    with _filled(small, room):
        ended = run(command(*COMMANDS[name](had, small)))
    outcome.cases += 1
    _judge(what, ended, small, outcome)
    resumed = ("--resume",) if name == "train" and (small / "run" / "run.json").is_file() else ()
    again = run(command(*COMMANDS[name](had, small), *resumed))
    outcome.check(again.code == 0, f"{what}: and not with room again: {again}")


def _read_only(name: str, places: tuple[Path, Path, Path], outcome: Outcome) -> None:
    had, small, older = places
    if name != "train":
        shutil.copytree(older, small, symlinks=True, dirs_exist_ok=True)
    before = _digests(small)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    ended = run(command(*COMMANDS[name](had, small)))
    outcome.cases += 1
    outcome.check(ended.is_plain, f"{name} into a folder that cannot be written: {ended}")
    outcome.check(_digests(small) == before, f"{name} wrote where nothing can be written")


def _judge(what: str, ended: Ended, small: Path, outcome: Outcome) -> None:
    outcome.check(ended.is_plain and ended.code in (0, 1), f"{what}: {ended}")
    partial = [path.name for path in small.rglob("*.partial")]
    outcome.check(not partial, f"{what}: left {partial}")
    whole = run(lambda: _assert_whole(small))
    outcome.check(whole.code == 0, f"{what}: not whole: {whole}")


def _assert_whole(folder: Path) -> None:
    """Open each file as what it is."""
    for path in sorted(folder.rglob("*")):
        if is_pack(path) and (path / "manifest.jsonl").exists():
            pack = open_pack(path)
            pack.pixels(pack.rows())
        elif path.name == "settings.lance":
            assert whole_lance(path.parent), path
        elif any(parent.suffix == ".lance" for parent in path.parents):
            continue  # LanceDB's own: some are hints, which may be cut short
        elif path.suffix in (".png", ".gif", ".webp"):
            Image.open(path).load()
        elif path.name == "model.safetensors":
            load_model(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.open(newline=""))}) == 1, path
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), path
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".onnx":
            assert path.stat().st_size, path


def _two(had: Path) -> list[Path]:
    return sorted((had / "images").rglob("*.png"))[:2]


def _cannot_mount(place: Path) -> str | None:
    """Why no file system can be made here, or None."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        return "making a small file system needs root and mount"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        return f"no file system can be made: {made.stderr.strip()}"
    subprocess.run(["umount", place], check=True)
    return None


@contextlib.contextmanager
def _mounted(place: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def _filled(place: Path, blocks: int) -> Iterator[None]:
    """Leave so many blocks free in the file system mounted at `place`."""
    used = os.statvfs(place)
    taken = (used.f_blocks - used.f_bfree) * used.f_frsize
    _resize(place, str(taken + blocks * BLOCK))
    try:
        yield
    finally:
        _resize(place, LARGE)


def _resize(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def _bytes_below(folder: Path) -> int:
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
