"""Degenerate folders: constant, black, white, one image, two, 1x1 sources, copies.

Every command does what it was asked or says in one line why it cannot, and every number it writes is finite.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torture.commands import TINY_OPTIONS
from torture.outcome import Outcome
from torture.processes import command, run
from torture.seeds import picture

Folder = Callable[[int], Iterator[Image.Image]]

# Images of each class, by the number of the class.
FOLDERS: dict[str, Folder] = {
    "constant": lambda label: (Image.new("RGB", (30, 20), (n, 9 * label, 99)) for n in range(8)),
    "black": lambda label: (Image.new("RGB", (20 + n, 20 + label)) for n in range(8)),
    "white": lambda label: (Image.new("L", (20 + n, 20 + label), 255) for n in range(8)),
    "one image": lambda label: (picture(seed=1) for _ in range(label == 0)),
    "two images": lambda label: (picture(seed=label) for _ in range(1)),
    "1x1 sources": lambda label: (Image.new("RGB", (1, 1), (30 * n, 99, 50 * label)) for n in range(8)),
    "copies only": lambda label: (picture(seed=1) for _ in range(8)),
    "two distinct": lambda label: (picture(seed=label) for _ in range(8)),
    "few colours": lambda label: (Image.new("1", (30, 20), (n + label) % 2) for n in range(8)),
    "noise": lambda label: (
        Image.fromarray(np.random.default_rng([label, n]).integers(0, 256, (20, 20, 3), np.uint8))
        for n in range(8)
    ),
}
MODELS: dict[str, Sequence[str]] = {
    "autoencoder": (),
    "vae": ("--kind", "vae"),
    "best-vae": ("--preset", "best-vae"),
    "batch-norm": ("--kind", "vae", "--set", "batch_norm=true", "--set", "sigma2=auto"),
}

_EXACT = (("psnr_db", "inf"), ("corrupted_psnr_db", "inf"))  # of an exact reconstruction


def attack(cases: int, seed: int, folder: Path, names: Sequence[str] = ()) -> Outcome:
    """Put degenerate folders through every command.

    Args:
        cases: the most combinations of a folder and a model, drawn by chance; there are 40.
        seed: of that choice.
        folder: to work in.
        names: the folders; of none, all.
    """
    outcome = Outcome()
    pairs = [(name, model) for name in names or FOLDERS for model in MODELS]
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:cases]
    for number in sorted(chosen):
        name, model = pairs[number]
        work = folder / f"{name} {model}"
        _make(work / "images", FOLDERS[name])
        _through_all(f"{name}, {model}", work, MODELS[model], outcome)
        shutil.rmtree(work)
    return outcome


def _make(folder: Path, images: Folder) -> None:
    for label in range(2):
        for number, image in enumerate(images(label)):
            path = folder / f"class {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def _through_all(what: str, work: Path, settings: Sequence[str], outcome: Outcome) -> None:
    images, made = work / "images", work / "run"
    one = sorted(images.rglob("*.png"))[0]
    typed: tuple[Sequence[str | Path], ...] = (
        ("pack", images, "--size", "16", "--out", work / "pack"),
        ("train", images, *settings, *TINY_OPTIONS, "--out", made),
        ("reconstruct", made, images, "--out", work / "restored"),
        ("morph", made, one, one, "--frames", "3", "--out", work / "morph.gif"),
        ("generate", made, "-n", "4", "--out", work / "new", "--walk", work / "walk.gif"),
        ("outliers", made, images, "--out", work / "outliers.json", "--heatmaps"),
        ("outliers", made, images, "--out", work / "outliers.csv", "--score", "mahalanobis"),
        ("outliers", made, images, "--score", "knn", "--rule", "paper"),
        ("index", images, "--model", made, "--embedding", "code", "--out", work / "index"),
        ("search", work / "index", one, "--out", work / "found.json", "--sheet", work / "found.png"),
        ("duplicates", images, "--out", work / "copies"),
        ("index", images, "--model", made, "--embedding", "code", "--out", work / "l2", "--distance", "l2"),
        ("search", work / "l2", one, "--out", work / "l2.json"),
        ("evaluate", made, "--out", work / "numbers.json"),
        ("report", made),
        ("features", made, one, "--out", work / "features"),
        ("transfer", made, images, "--out", work / "classifier"),
        ("classify", work / "classifier", images, "--out", work / "classes.json"),
    )
    for arguments in typed:
        ended = run(command(*arguments))
        outcome.cases += 1
        text = " ".join(str(argument).removeprefix(f"{work}/") for argument in arguments)
        outcome.check(ended.is_plain, f"{what}: {text}: {ended}")
    for path in sorted(work.rglob("*")):
        if path.suffix == ".json":
            wrong = list(_not_numbers(json.loads(path.read_text()), ""))
            outcome.check(not wrong, f"{what}: {path.relative_to(work)} has {wrong[:5]}")
        elif path.suffix == ".csv":
            with path.open(newline="") as file:
                fields = [field for row in csv.DictReader(file) for field in row.items()]
            wrong = [field for name, field in fields if _is_no_number(field) and (name, field) not in _EXACT]
            outcome.check(not wrong, f"{what}: {path.relative_to(work)} has {wrong[:5]}")


def _not_numbers(value: Any, place: str) -> Iterator[str]:  # noqa: ANN401 - any JSON
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_numbers(inner, f"{place}/{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_numbers(inner, f"{place}/{number}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place


def _is_no_number(field: str) -> bool:
    try:
        return not math.isfinite(float(field))
    except ValueError:
        return False
