"""Hostile image files in the folders that every command is given, typed as a user would type it.

A command ends with a result or with one line, in the time that its files may take, and names every file: in
what it writes and prints, or with the reason why it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from torture.commands import TINY_OPTIONS, make_images
from torture.images import SECONDS
from torture.outcome import Outcome
from torture.seeds import damaged, encoded, made_to_hurt, picture, seeds

SOUND = 24
MEMORY_MB = 4_000  # of a process and its workers, each
START_SECONDS = 60  # to load libraries, and to train, on a machine with other work
_COMMAND = [sys.executable, "-c", "from autoencode.cli.main import main; main()"]


class _Command(NamedTuple):
    """A command: its name, its arguments, made of the folders, and the files that list what it did."""

    name: str
    arguments: Callable[[Path, Path], Sequence[str | Path]]
    lists: tuple[str, ...] = ()


_COMMANDS = (
    _Command(
        "pack",
        lambda work, files: ["pack", files, "--out", work / "pack", "--size", "16"],
        ("pack/manifest.jsonl",),
    ),
    _Command(
        "train",
        lambda work, files: ["train", files, "--out", work / "run", *TINY_OPTIONS],
        ("files-*.pack/manifest.jsonl",),
    ),
    _Command(
        "index",
        lambda work, files: [
            "index",
            files,
            "--model",
            work / "sound",
            "--embedding",
            "code",
            "--out",
            work / "index",
        ],
        ("index/pack/manifest.jsonl",),
    ),
    _Command(
        "embed",
        lambda work, files: ["embed", work / "sound", files, "--out", work / "codes.csv"],
        ("codes.csv",),
    ),
    _Command(
        "outliers",
        lambda work, files: ["outliers", work / "sound", files, "--out", work / "outliers.json"],
        ("outliers.json",),
    ),
    _Command(
        "defects",
        lambda work, files: ["outliers", work / "images", files, "--out", work / "defects.json"],
        ("defects.json",),
    ),
    _Command(
        "restore",
        lambda work, files: ["restore", work / "restorer", files, "--out", work / "restored"],
        ("restored/restored.jsonl",),
    ),
    _Command("duplicates", lambda work, files: ["duplicates", files, "--out", work / "copies"]),
    _Command(
        "reconstruct",
        lambda work, files: ["reconstruct", work / "sound", files, "--out", work / "reconstructed"],
        ("reconstructed/reconstructions.csv",),
    ),
    _Command("search", lambda work, files: ["search", work / "sound-index", files, "-k", "2"]),
    _Command("info", lambda work, files: ["info", work / "pack"]),
)


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Give every command a folder of damaged files, files made to hurt, and things that are no files.

    Args:
        cases: damaged files.
        seed: of the damage.
        folder: to work in.
        names: the commands; of none, all.
    """
    outcome = Outcome()
    images = make_images(folder / "images", SOUND)
    restorer = ["--preset", "restore", "--set", "widths=8,16", "--epochs", "1", "--size", "32"]
    for made in (
        ["train", images, "--out", folder / "sound", *TINY_OPTIONS],
        ["train", images, "--out", folder / "restorer", *restorer],
        [
            "index",
            images,
            "--model",
            folder / "sound",
            "--embedding",
            "code",
            "--out",
            folder / "sound-index",
        ],
    ):
        ended = _typed(made, 600)
        outcome.check(ended.returncode == 0, f"{made[0]}: {ended.stderr[-600:]}")
    files = _make(folder / "files", cases, seed)
    for command in _COMMANDS:
        if names and command.name not in names:
            continue
        arguments = command.arguments(folder, folder / "files")
        limit = START_SECONDS + SECONDS * len(files) / 2
        started = time.monotonic()
        try:
            ended = _typed([*arguments, "--json"], limit)
        except subprocess.TimeoutExpired:
            outcome.failures.append(f"{command.name}: took longer than {limit:.0f} s")
            continue
        seconds = time.monotonic() - started
        outcome.cases += len(files)
        is_plain = ended.returncode in (0, 1, 2) and "Traceback" not in ended.stderr
        outcome.check(is_plain, f"{command.name}: exit {ended.returncode}: {ended.stderr[-1500:]}")
        lists = [path for pattern in command.lists for path in folder.glob(pattern)]
        text = ended.stdout + ended.stderr + "".join(path.read_text() for path in lists)
        if command.name == "duplicates" and is_plain:  # which names no image that is like no other
            found = json.loads(ended.stdout)
            count = found["images"] + len(found["skipped"])
            outcome.check(count == len(files), f"duplicates: {count} of {len(files)} files")
        elif command.name != "info":
            lost = [name for name in files if name not in text]
            outcome.check(
                not lost, f"{command.name} says nothing of {len(lost)} files: {', '.join(lost[:8])}"
            )
        outcome.notes.append(f"{command.name} {seconds:.0f} s")
    return outcome


def _typed(arguments: Sequence[str | Path], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def _make(folder: Path, cases: int, seed: int) -> list[str]:
    """Make the folder; return the names of its files."""
    folder.mkdir()
    sound = seeds()
    made = [
        *((f"sound-{number:03}{extension}", content) for number, (extension, content) in enumerate(sound))
    ]
    made += [(f"hurt-{number:03}-{name}", content) for number, (name, content) in enumerate(made_to_hurt())]
    for case in range(cases):
        generator = np.random.default_rng([seed, case])
        extension, content = sound[case % len(sound)]
        other = sound[int(generator.integers(len(sound)))][1]
        made.append((f"case-{case:05}{extension}", damaged(content, other, generator)))
    for name, content in made:
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "kernel.png").symlink_to("/proc/kmsg")
    (folder / "nowhere.png").symlink_to(folder / "no such file")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "formula").mkdir()
    (folder / "formula" / "=1+21.png").write_bytes(encoded(picture(), "PNG"))
    os.truncate(_touched(folder / "sparse.png"), 2**40)
    odd = ["pipe.png", "zero.png", "kernel.png", "nowhere.png", "itself.png", "=1+21.png", "sparse.png"]
    return [*(name for name, _ in made), *odd]


def _touched(path: Path) -> Path:
    path.touch()
    return path
