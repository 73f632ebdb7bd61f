"""The same seed on the same machine gives the same bytes, from any number of workers."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from autoencode.data.pack import open_pack
from autoencode.generation import fit_prior, generate
from autoencode.models.model_file import load_model, save_model
from torture.commands import (
    fit,
    index,
    make_images,
    make_model,
    pack,
    paper,
    result_of_index,
    result_of_pack,
    result_of_paper,
    result_of_run,
)
from torture.outcome import Outcome
from torture.processes import run

IMAGES = 40


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Make each result so many times more, and compare.

    Args:
        cases: times for each command.
        seed: of the order in which files are made, and of the numbers of workers.
        folder: to work in.
        names: the commands; of none, all.
    """
    outcome = Outcome()
    images = make_images(folder / "images", IMAGES)
    generator = np.random.default_rng(seed)
    ended = run(lambda: make_model(folder, images))
    outcome.check(ended.code == 0, f"no model: {ended}")
    commands: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], str]]] = {
        "pack": (pack, result_of_pack),
        "train": (fit, result_of_run),
        "index": (index, result_of_index),
        "generate": (_generated, _result_of_samples),
        "paper": (paper, result_of_paper),
    }
    for name in names or commands:
        make, result = commands[name]
        digests = set[str]()
        for case in range(cases + 1):
            out = folder / f"{name}-{case}"
            if name == "pack":
                workers = int(generator.integers(1, 5))
                ended = run(lambda out=out, workers=workers: pack(images, out, workers))  # type: ignore[misc]
            else:
                ended = run(lambda make=make, out=out: make(images, out))  # type: ignore[misc]
            if outcome.check(ended.code == 0, f"{name}: {ended}"):
                digests.add(result(out))
            outcome.cases += case > 0
            _in_another_order(images, generator)
        outcome.check(len(digests) == 1, f"{name}: {len(digests)} different results")
    return outcome


def _in_another_order(images: Path, generator: np.random.Generator) -> None:
    """Make the files anew in another order, which is that in which a folder lists them."""
    files = {path: (path.read_bytes(), path.stat()) for path in sorted(images.rglob("*.png"))}
    shutil.rmtree(images)
    for number in generator.permutation(len(files)):
        path = list(files)[number]
        path.parent.mkdir(parents=True, exist_ok=True)
        content, status = files[path]
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # which a pack notes


def _generated(images: Path, out: Path) -> None:
    """Fit a prior anew and draw from it."""
    pack(images, out.with_suffix(".pack"))
    model = load_model(images.parent / "model.safetensors")
    fit_prior(model, open_pack(out.with_suffix(".pack")))
    generate(model, 8, out)
    save_model(out / "model.safetensors", model, model.provenance)


def _result_of_samples(out: Path) -> str:
    digest = hashlib.sha256((out / "model.safetensors").read_bytes())
    for path in sorted((out / "images").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
