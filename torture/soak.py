"""Training, encoding, generating and searching again and again, with the local page in use.

Memory and open files stay flat, of what trains and of what serves the page.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import torch

from autoencode.data.pack import open_pack
from autoencode.generation import fit_prior, generate
from autoencode.index import build_index, open_index
from autoencode.models.model_file import load_model
from autoencode.training.run import read_metrics
from autoencode.training.train import train
from torture.commands import TINY, make_images
from torture.outcome import Outcome
from torture.processes import open_files, resident_mb
from torture.visitor import Visitor

WARM_UP_SHARE = 0.2
WARM_UP_ROUNDS = 3
GROWTH_MB = 24.0  # what pools of the allocator and caches of libraries may still take
EXTRA_FILES = 4  # connections that have just been closed


class _Use(NamedTuple):
    """What a process has: memory without what it is meant to hold, and open files."""

    memory_mb: float
    files: int


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Go on for so many seconds.

    Args:
        cases: seconds.
        seed: of the training.
        folder: to work in.
    """
    outcome = Outcome()
    images = make_images(folder / "images", 24)
    watched, index = folder / "watched", folder / "watched-index"
    _train_on(images, watched, seed, epochs=1)
    build_index(images, index, watched)
    visitor = Visitor(watched, index, seed)
    try:
        _soak(outcome, cases, seed, folder, visitor)
    finally:
        visitor.leave()
    return outcome


def _soak(outcome: Outcome, seconds: int, seed: int, folder: Path, visitor: Visitor) -> None:
    images, start = folder / "images", time.monotonic()
    shown = sorted(images.rglob("*.png"))
    base: dict[str, _Use] | None = None
    now: dict[str, _Use] = {}
    while time.monotonic() - start < seconds or outcome.cases < 2 * WARM_UP_ROUNDS:
        _round(images, folder, seed)
        outcome.cases += 1
        # One epoch more of the run that the page is about, seen there while it is in use.
        _train_on(images, folder / "watched", seed, epochs=1 + outcome.cases)
        visitor.look_around(shown[outcome.cases % len(shown)])
        now = {"training": _Use(resident_mb(os.getpid()), open_files(os.getpid())), "page": _of(visitor)}
        is_warm = time.monotonic() - start >= WARM_UP_SHARE * seconds and outcome.cases >= WARM_UP_ROUNDS
        base = now if base is None and is_warm else base
    assert base is not None
    logged = len(read_metrics(folder / "watched"))  # with the epochs of a warm-up
    outcome.check(logged > outcome.cases, f"{logged} epochs were trained in {outcome.cases} rounds")
    seen = visitor.epochs_seen
    outcome.check(seen == logged, f"the page has seen {seen} epochs of {logged}")
    for name, before in base.items():
        _compare(outcome, name, before, now[name])


def _compare(outcome: Outcome, name: str, before: _Use, after: _Use) -> None:
    memory = f"memory {before.memory_mb:.0f} to {after.memory_mb:.0f} MB"
    files = f"open files {before.files} to {after.files}"
    outcome.check(after.memory_mb - before.memory_mb < GROWTH_MB, f"{name}: {memory}")
    allowed = EXTRA_FILES if name == "page" else 0
    outcome.check(after.files <= before.files + allowed, f"{name}: {files}")
    outcome.notes.append(f"{name}: {memory}, {files}")


def _of(visitor: Visitor) -> _Use:
    return _Use(visitor.memory_mb() - visitor.held_mb, visitor.open_files())


def _train_on(images: Path, out: Path, seed: int, epochs: int) -> None:
    going_on = out.exists()
    train(
        images,
        out,
        size=None if going_on else 16,
        epochs=epochs,
        kind="vae",
        seed=seed,
        resume=going_on,
        keep_memory=False,
        **TINY,
    )


def _round(images: Path, folder: Path, seed: int) -> None:
    _train_on(images, folder / "run", seed, epochs=1)
    model = load_model(folder / "run")
    [made] = folder.glob("*.pack")
    pack = open_pack(made)
    fit_prior(model, pack)
    generate(model, 4, folder / "new")
    model.decode(model.encode(torch.from_numpy(pack.pixels(pack.rows())).permute(0, 3, 1, 2).float() / 255))
    build_index(images, folder / "index", folder / "run")
    open_index(folder / "index", model=folder / "run").search(images / "class 0", 3)
    for name in ("run", "new", "index"):
        shutil.rmtree(folder / name)
