"""Original beside reconstruction, with how close they are; with corruptions, what denoising gives back.

Images are (B, 3, H, W) in [0, 1], pixels (B, H, W, 3) in 0..255.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import check_output, csv_bytes, make_folder, write_bytes
from autoencode.data.corruptions import Corruption, check_size, corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.data.preprocessing import WRITABLE, Limits, read_chunks, save_image
from autoencode.data.sources import expanded
from autoencode.errors import OutputError
from autoencode.figures import contact_sheet
from autoencode.metrics.images import psnr, ssim
from autoencode.models.model_file import as_model
from autoencode.pixels import to_float, to_pixels

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.models.autoencoder import Autoencoder

TABLE_NAME = "reconstructions.csv"
SHEET_NAME = "reconstructions.png"
IMAGES_NAME = "images"

SHEET_IMAGES = 24  # a sheet of more is looked at by nobody
CHUNK = 64  # images in memory at once

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Reconstruction:
    """What the model made of one image.

    Attributes:
        path: the image file.
        psnr_db: peak signal-to-noise ratio of the reconstruction against the clean image, dB.
        ssim: structural similarity of the two, at most 1.
        corrupted_psnr_db: the same ratio of what the model saw; None without corruptions.
        file: name of the reconstruction below the folder of images, "" where none was written.
    """

    path: Path
    psnr_db: float
    ssim: float
    corrupted_psnr_db: float | None
    file: str


@dataclass(frozen=True)
class Reconstructions:
    """What `reconstruct` found and made.

    Attributes:
        results: one an image that could be used, in the order given.
        skipped: the others, with the reason.
        sheet: pixels (H, W, 3) of the contact sheet of the first few.
    """

    results: list[Reconstruction]
    skipped: list[tuple[Path, str]]
    sheet: Pixels


def reconstruct(
    model: Autoencoder | str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reconstructions:
    """Pass images through the model.

    Args:
        model: from `load_model`, or its path.
        images: image files, and folders of them.
        out: a folder for the contact sheet, the table and the reconstructions as PNG files; made here. What
            an earlier call wrote there is replaced, going by its table. None writes nothing.
        corruptions: what is done to the images before the model sees them, such as ("gaussian:0.3",).
        seed: of the corruptions.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ModelFileError: the path given leads to no model.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        ConfigError: a corruption that cannot be used, or the sheet in `out` is one of the images.
        OutputError: `out` is something else, or cannot be written.
    """
    model = as_model(model)
    paths = expanded(images)
    chain = parse_corruptions(corruptions)
    check_size(chain, model.preprocessing.height, model.preprocessing.width)
    folder = None if out is None else Path(out)
    names = _file_names(paths) if folder is None else _prepared(folder, paths)
    results: list[Reconstruction] = []
    skipped: list[tuple[Path, str]] = []
    shown: list[_Seen] = []
    chunks = read_chunks(paths, CHUNK, model.preprocessing, limits or Limits(), skipped)
    for number, (usable, pixels) in enumerate(chunks):
        start = number * CHUNK
        if usable:
            seen = _pass(model, pixels, chain, random_seed("reconstruct", seed, start))
            if (missing := SHEET_IMAGES - sum(len(part.original) for part in shown)) > 0:
                shown.append(seen.first(missing))
            for index, path in enumerate(usable):
                if folder is not None:
                    save_image(folder / IMAGES_NAME / names[path], seen.restored[index])
                results.append(seen.result(index, path, names[path] if folder else ""))
        if progress:
            progress(min(start + CHUNK, len(paths)), len(paths))
    made = Reconstructions(results, skipped, _sheet(shown, results))
    if folder is not None:
        save_image(folder / SHEET_NAME, made.sheet)
        _write_table(folder / TABLE_NAME, results)
    return made


def sheet_of_rows(model: Autoencoder, pack: Pack) -> Pixels:
    """Draw held-out images of a pack beside their reconstructions: (H, W, 3), for a look after training.

    The images are of the validation split; where that is empty, of what stands in for it.
    """
    pixels = pack.pixels(pack.held_out("validation").rows[:SHEET_IMAGES])
    chain = parse_corruptions(model.provenance["train"]["corrupt"])
    seen = _pass(model, pixels, chain, random_seed("reconstruct", 0, 0))
    results = [seen.result(index, Path(), "") for index in range(len(pixels))]
    return _sheet([seen], results)


class Restoration(NamedTuple):
    """One image through a model.

    Attributes:
        seen: pixels (H, W, 3) that the model was given.
        restored: pixels (H, W, 3) of what it made of them.
        psnr_db: of `restored` against the clean image, dB; infinite where they are equal.
        ssim: structural similarity of the same two.
        seen_psnr_db: of `seen` against the clean image; None where that is the clean image itself.
    """

    seen: Pixels
    restored: Pixels
    psnr_db: float
    ssim: float
    seen_psnr_db: float | None


def restore(
    model: Autoencoder,
    pixels: Pixels,
    *,
    clean: Pixels | None = None,
    corruptions: Sequence[str] = (),
    seed: int = 0,
) -> Restoration:
    """Pass one image through a model, corrupted first if asked for.

    Args:
        model: from `load_model`.
        pixels: (H, W, 3) of the model's size.
        clean: what it should have looked like, of the same size; the default is `pixels` itself.
        corruptions: as for `reconstruct`.
        seed: of the corruptions.

    Raises:
        ConfigError: a corruption that cannot be used.
    """
    chain = parse_corruptions(corruptions)
    check_size(chain, model.preprocessing.height, model.preprocessing.width)
    generator = torch.Generator().manual_seed(random_seed("reconstruct", seed, 0))
    seen = corrupt(to_float(pixels[None]), chain, generator, training=True)
    restored = model.reconstruct(seen)
    target = to_float((pixels if clean is None else clean)[None])
    is_clean = clean is None and not chain
    return Restoration(
        to_pixels(seen)[0],
        to_pixels(restored)[0],
        float(psnr(restored, target)),
        float(ssim(restored, target)),
        None if is_clean else float(psnr(seen, target)),
    )


class _Seen(NamedTuple):
    """Pixels (B, H, W, 3) of one chunk, and its figures of merit (B,)."""

    original: Pixels
    corrupted: Pixels | None
    restored: Pixels
    psnr_db: list[float]
    ssim: list[float]
    corrupted_psnr_db: list[float] | None

    def first(self, count: int) -> _Seen:
        return _Seen(*(None if part is None else part[:count] for part in self))  # type: ignore[arg-type]

    def result(self, index: int, path: Path, file: str) -> Reconstruction:
        corrupted = None if self.corrupted_psnr_db is None else self.corrupted_psnr_db[index]
        return Reconstruction(path, self.psnr_db[index], self.ssim[index], corrupted, file)


def _pass(model: Autoencoder, pixels: Pixels, chain: Sequence[Corruption], seed: int) -> _Seen:
    clean = to_float(pixels)
    seen = corrupt(clean, chain, torch.Generator().manual_seed(seed), training=True)
    restored = model.reconstruct(seen)
    return _Seen(
        pixels,
        to_pixels(seen) if chain else None,
        to_pixels(restored),
        psnr(restored, clean).tolist(),
        ssim(restored, clean).tolist(),
        psnr(seen, clean).tolist() if chain else None,
    )


def _prepared(out: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """Make the folder, clear it of an earlier result, and return the name of the file for each path.

    A folder that holds something else is left alone, and so is a file among the images that no table names.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / TABLE_NAME).exists():
        raise OutputError(f"{out} is not empty and holds no earlier reconstructions. Choose another --out.")
    check_output(out / SHEET_NAME, WRITABLE, paths)
    make_folder(out / IMAGES_NAME)
    if (out / IMAGES_NAME).resolve() in {folder.resolve() for folder in {path.parent for path in paths}}:
        raise OutputError(
            f"{out / IMAGES_NAME} holds images to read and would be cleared. Choose another --out."
        )
    earlier = _written_before(out / TABLE_NAME)
    theirs = {path.name.lower() for path in (out / IMAGES_NAME).iterdir()} - {e.lower() for e in earlier}
    names = _file_names(paths, theirs)
    # Before any file is written or removed: what is stopped half-way is known as ours, and can be run again.
    planned = [Reconstruction(path, math.nan, math.nan, None, name) for path, name in names.items()]
    left = [Reconstruction(Path(), math.nan, math.nan, None, e) for e in earlier - set(names.values())]
    _write_table(out / TABLE_NAME, planned + left)
    for name in earlier:
        (out / IMAGES_NAME / name).unlink(missing_ok=True)
    return names


def _written_before(table: Path) -> set[str]:
    """Names of the files that an earlier call wrote, going by its table; none outside its folder."""
    try:
        with table.open(newline="", errors="surrogateescape") as file:
            names = {row.get("file") or "" for row in csv.DictReader(file)}
    except FileNotFoundError:
        return set()
    return {name for name in names if name.endswith(".png") and Path(name).name == name}


def _file_names(paths: Sequence[Path], taken: Collection[str] = ()) -> dict[Path, str]:
    """One name for each path: its stem, with a number where several share it or it is taken (lower case)."""
    names: dict[Path, str] = {}
    taken = set(taken)
    counts: dict[str, int] = {}
    for path in paths:
        # File systems allow 255 bytes, of which a number and a temporary suffix take some.
        stem = os.fsencode(path.stem)[:200].decode(errors="ignore") or "image"
        number = counts.get(stem.lower(), 0) + 1
        name = f"{stem}.png" if number == 1 else f"{stem}-{number}.png"
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.png"
        counts[stem.lower()] = number
        taken.add(name.lower())
        names[path] = name
    return names


def _sheet(shown: Sequence[_Seen], results: Sequence[Reconstruction]) -> Pixels:
    columns = [("original", np.concatenate([part.original for part in shown]))]
    corrupted = [part.corrupted for part in shown if part.corrupted is not None]
    if corrupted:
        columns.append(("corrupted", np.concatenate(corrupted)))
    columns.append(
        ("restored" if corrupted else "reconstruction", np.concatenate([p.restored for p in shown]))
    )
    captions = [_caption(result) for result in results[: len(columns[0][1])]]
    return contact_sheet(columns, captions=captions)


def _caption(result: Reconstruction) -> str:
    before = "" if result.corrupted_psnr_db is None else f"{result.corrupted_psnr_db:.1f} to "
    return f"{before}{result.psnr_db:.1f} dB  {result.ssim:.2f}"


def _write_table(path: Path, results: Sequence[Reconstruction]) -> None:
    rows: list[list[object]] = [["path", "psnr_db", "ssim", "corrupted_psnr_db", "file"]]
    for result in results:
        corrupted = "" if result.corrupted_psnr_db is None else f"{result.corrupted_psnr_db:.4f}"
        rows.append([result.path, f"{result.psnr_db:.4f}", f"{result.ssim:.4f}", corrupted, result.file])
    write_bytes(path, csv_bytes(rows))
