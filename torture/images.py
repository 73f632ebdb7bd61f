"""Hostile image files and folders: each file is packed, or skipped with a reason.

None crashes, hangs or bloats. Files are packed as a user would pack them, in workers with a time limit.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autoencode.data.pack import Pack, pack_folder
from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.errors import ImageFolderError
from torture.outcome import Outcome
from torture.seeds import damaged, encoded, made_to_be_heavy, made_to_hurt, picture, seeds

SECONDS = Limits().seconds_per_file
MEMORY_MB = 4_200  # the share of a worker, 4 GB at most, and its libraries; lossless WebP takes most
BATCH = 500
MOST_LINKS = 30_000  # of a file; some file systems take no more than 65,000
SIZE = Preprocessing(32, 32)


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Pack damaged files, and files made to hurt.

    Args:
        cases: damaged files.
        seed: of the damage.
        folder: to work in.
    """
    outcome = Outcome()
    hurting = [(f"shape-{number:03}-{name}", c) for number, (name, c) in enumerate(made_to_hurt())]
    for files in _batches([*hurting, *_damaged(cases, seed)]):
        _pack(files, folder / "files", outcome)
    if cases >= BATCH:  # minutes, and gigabytes
        for heavy in made_to_be_heavy():
            _pack([heavy], folder / "heavy", outcome)
    outcome.notes.append(f"a worker took at most {_most_memory_mb():,.0f} MB")
    return outcome


def attack_folders(cases: int, seed: int, folder: Path) -> Outcome:
    """Pack folders of pipes, devices, loops, odd names, and very many files.

    Args:
        cases: files in the large folder.
        seed: not used; the folders are always the same.
        folder: to work in.
    """
    outcome = Outcome()
    odd = folder / "odd"
    expected = _make_odd(odd)
    pack = _packed(odd, folder / "odd.pack", outcome)
    if pack is not None:
        found = {entry.path: entry.status for entry in [*pack.entries, *pack.skipped]}
        for name, status in expected.items():
            outcome.cases += 1
            outcome.check(found.pop(name, None) == status, f"{name!r} is not {status}")
        outcome.check(not found, f"listed, but never made: {found}")
    many = folder / "many"
    content = encoded(picture(16, 16), "PNG")
    for number in range(cases):
        place = many / f"{number % 7}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number % MOST_LINKS == 0:
            original = place
            place.write_bytes(content)
        else:
            os.link(original, place)
    outcome.cases += cases
    pack = _packed(many, folder / "many.pack", outcome)
    if pack is not None:
        outcome.check(len(pack) == cases, f"{len(pack):,} of {cases:,} files were packed")
        outcome.check(len(np.unique(pack.rows())) == 1, "copies do not share a row")
    shutil.rmtree(many)
    return outcome


def _damaged(cases: int, seed: int) -> Iterator[tuple[str, bytes]]:
    sound = seeds()
    for case in range(cases):
        generator = np.random.default_rng([seed, case])
        extension, content = sound[case % len(sound)]
        _, other = sound[int(generator.integers(len(sound)))]
        yield f"case-{case:06}{extension}", damaged(content, other, generator)


def _batches(files: list[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]


def _pack(files: list[tuple[str, bytes]], folder: Path, outcome: Outcome) -> None:
    folder.mkdir(parents=True)
    for name, content in files:
        (folder / name).write_bytes(content)
    # One that is sound, so that a batch of skipped files is still a pack.
    (folder / "sound.png").write_bytes(encoded(picture(), "PNG"))
    before = _workers_seconds()
    pack = _packed(folder, folder.with_suffix(".pack"), outcome)
    outcome.cases += len(files)
    if pack is not None:
        reasons = {entry.path: entry.reason or "" for entry in pack.skipped}
        packed = {entry.path for entry in pack.entries}
        for name, _ in files:
            reason = reasons.get(name)
            outcome.check(name in packed or bool(reason), f"{name} is neither packed nor skipped")
            outcome.check("crashed" not in (reason or ""), f"{name}: {reason}")
            outcome.check("\n" not in (reason or ""), f"{name}: a reason of several lines")
            if reason and ("took longer" in reason or "killed" in reason):
                outcome.notes.append(f"{name}: {reason}")
        pixels = pack.pixels(pack.rows())
        outcome.check(pixels.shape[1:] == (32, 32, 3), "pixels of another shape")
    spent = _workers_seconds() - before
    outcome.check(spent < (len(files) + 4) * (SECONDS + 1), f"{len(files)} files took {spent:.0f} s")
    outcome.check(_most_memory_mb() < MEMORY_MB, f"{files[0][0]} and others: {_most_memory_mb():,.0f} MB")
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_suffix(".pack"))


def _packed(folder: Path, out: Path, outcome: Outcome) -> Pack | None:
    try:
        return pack_folder(folder, out, SIZE, workers=1)
    except ImageFolderError as err:
        outcome.failures.append(f"{folder.name}: {err}")
    except Exception as err:
        outcome.failures.append(f"{folder.name}: {type(err).__name__}: {err}")
    return None


def _most_memory_mb() -> float:
    """Most memory that any one child process of this one ever had."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _workers_seconds() -> float:
    """Processor time of the children that have ended: the clock would count the machine's other work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _make_odd(folder: Path) -> dict[str, str]:
    """Make a folder of oddities; return what must be listed of it, and how."""
    sound = encoded(picture(), "PNG")
    expected: dict[str, str] = {}

    def put(name: str, content: bytes = sound, status: str = "packed") -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        expected[name] = status
        return path

    put("sound.png")
    put("empty.jpg", b"", "skipped")
    put("wrong.gif")
    put("a folder.jpg/inside.png")
    put("café.png")  # composed
    put("café.png")  # the same to the eye, decomposed
    put("new\nline.png")
    put("quotes'\"`$(touch x);.png")
    put("-o.png")
    put("[red]bold[/red].png")
    put("x" * 251 + ".png")
    put("/".join(["deep"] * 40) + "/down.png")
    raw = os.fsdecode(b"bytes-\xff\xfe.png")
    if _takes(folder / raw):
        put(raw)
    put(".hidden.png")
    put(".folder/hidden.png")
    del expected[".folder/hidden.png"]
    expected |= {".hidden.png": "skipped", ".folder": "skipped"}  # named once, and not looked into
    (folder / "to-itself.png").symlink_to(folder / "to-itself.png")
    expected["to-itself.png"] = "skipped"
    (folder / "nowhere.png").symlink_to(folder / "no such file")
    expected["nowhere.png"] = "skipped"
    (folder / "deep" / "up").symlink_to(folder)  # a loop of folders: each is listed once
    os.mkfifo(folder / "pipe.png")
    expected["pipe.png"] = "skipped"
    (folder / "null.png").symlink_to("/dev/zero")
    expected["null.png"] = "skipped"
    (folder / "memory.png").symlink_to("/proc/self/mem")
    expected["memory.png"] = "skipped"
    (folder / "kernel.png").symlink_to("/proc/kmsg")  # a stream that calls itself a regular file
    expected["kernel.png"] = "skipped"
    if os.geteuid():  # root reads everything
        put("secret.png", status="skipped").chmod(0)
    huge = put("sparse.png", status="skipped")
    os.truncate(huge, 2**40)
    return expected


def _takes(path: Path) -> bool:
    try:
        path.write_bytes(b"")
    except OSError:
        return False
    return True
