"""Training, encoding, decoding, generating and searching again and again: memory and open files stay flat."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

from autoencode.applications.generate import fit_prior, generate
from autoencode.applications.indexing import build_index
from autoencode.applications.search import open_index
from autoencode.data.pack import open_pack
from autoencode.models.modelfile import load_model
from autoencode.training.train import train
from torture.outcome import Outcome
from torture.verbs import TINY, make_images

WARM_UP_SHARE = 0.2
WARM_UP_ROUNDS = 3
GROWTH_MB = 24.0  # what pools of the allocator and caches of libraries may still take


def attack(cases: int, seed: int, folder: Path) -> Outcome:
    """Go on for so many seconds.

    Args:
        cases: seconds.
        seed: of the training.
        folder: to work in.
    """
    outcome = Outcome()
    images = make_images(folder / "images", 24)
    start = time.monotonic()
    base: tuple[float, int] | None = None
    now = (0.0, 0)
    while time.monotonic() - start < cases or outcome.cases < 2 * WARM_UP_ROUNDS:
        _round(images, folder, seed)
        outcome.cases += 1
        now = _memory_mb(), _open_files()
        is_warm = time.monotonic() - start >= WARM_UP_SHARE * cases and outcome.cases >= WARM_UP_ROUNDS
        base = now if base is None and is_warm else base
    assert base is not None
    outcome.check(now[0] - base[0] < GROWTH_MB, f"memory from {base[0]:.0f} to {now[0]:.0f} MB")
    outcome.check(now[1] <= base[1], f"open files from {base[1]} to {now[1]}")
    outcome.notes.append(f"memory {base[0]:.0f} to {now[0]:.0f} MB, open files {base[1]} to {now[1]}")
    return outcome


def _round(images: Path, folder: Path, seed: int) -> None:
    train(images, folder / "run", size=16, epochs=1, kind="vae", seed=seed, keep_memory=False, **TINY)
    model = load_model(folder / "run")
    [made] = folder.glob("*.pack")
    pack = open_pack(made)
    fit_prior(model, pack)
    generate(model, 4, folder / "new")
    model.decode(model.encode(torch.from_numpy(pack.pixels(pack.rows())).permute(0, 3, 1, 2).float() / 255))
    build_index(folder / "run", images, folder / "index")
    open_index(folder / "index", model=folder / "run").search(images / "class 0", 3)
    for name in ("run", "new", "index"):
        shutil.rmtree(folder / name)


def _memory_mb() -> float:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2
    scale = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - a generator of paths would itself be counted
