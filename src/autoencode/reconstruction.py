"""Originals beside their reconstructions, with PSNR and SSIM, and how well a model removes corruptions.

Shapes: B batch, H height, W width. Pixels are (B, H, W, 3) in 0..255.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import check_output, claim_folder, cut_name, make_folder, write_bytes
from autoencode.csv_files import csv_bytes
from autoencode.data.corruptions import check_size, corrupt, parse_corruptions
from autoencode.data.file_names import FileNames
from autoencode.data.loader import random_seed
from autoencode.data.preprocessing import WRITABLE, Limits, read_chunks, save_image
from autoencode.data.sources import expanded
from autoencode.errors import OutputError
from autoencode.figures import SHEET_IMAGES, contact_sheet, png
from autoencode.metrics.images import psnr, ssim
from autoencode.models.model_file import as_model
from autoencode.pixels import to_float, to_pixels
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.configuration import DecoderName
    from autoencode.data.pack import Pack, Progress
    from autoencode.models.autoencoder import Autoencoder

TABLE_NAME = "reconstructions.csv"
SHEET_NAME = "reconstructions.png"
IMAGES_NAME = "images"

CHUNK = 64  # images in memory at once: 50 MB each of pixels, floats and codes at 256x256

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Reconstruction:
    """How close the reconstruction of one image is.

    Attributes:
        path: the image file.
        psnr_db: peak signal-to-noise ratio of the reconstruction against the clean image, dB.
        ssim: structural similarity of the two, at most 1.
        corrupted_psnr_db: the same ratio for the image that the model saw; None without corruptions.
        file: name of the reconstruction in the folder of images, "" if none was written.
    """

    path: Path
    psnr_db: float
    ssim: float
    corrupted_psnr_db: float | None
    file: str


@dataclass(frozen=True)
class Reconstructions:
    """Results of `reconstruct`.

    Attributes:
        results: one per usable image, in the order given.
        skipped: the other images, each with the reason.
        sheet: pixels (H, W, 3) of the contact sheet of the first few.
    """

    results: list[Reconstruction]
    skipped: list[tuple[Path, str]]
    sheet: Pixels

    def _repr_png_(self) -> bytes:
        return png(self.sheet)


def reconstruct(
    model: Autoencoder | str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path | None = None,
    *,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    decoder: DecoderName = "sharp",
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Reconstructions:
    """Encode and decode images, and measure how close the results are to the images.

    Args:
        model: from `load_model`, or its path.
        images: image files, and folders of them.
        out: a folder for the contact sheet, the table and the reconstructions as PNG files; made here.
            Files that an earlier call wrote are replaced, as listed in its table. None writes nothing.
        corruptions: damage to the images before the model sees them, such as ("gaussian:0.3",).
        seed: of the corruptions.
        decoder: see `Autoencoder.decode`.
        limits: the largest files and images to accept.
        progress: called with (images done, images in total).

    Raises:
        ModelFileError: there is no usable model at the path.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        ConfigError: a corruption cannot be used, or the sheet in `out` is one of the images.
        OutputError: `out` is not empty and holds no earlier reconstructions, or cannot be written.
    """
    model = as_model(model)
    paths = expanded(images)
    check_size(parse_corruptions(corruptions), model.preprocessing.height, model.preprocessing.width)
    folder = None if out is None else Path(out)
    names = _file_names(paths) if folder is None else _prepared(folder, paths)
    results: list[Reconstruction] = []
    skipped = list(paths.skipped)
    shown: list[ReconstructedPixels] = []
    chunks = read_chunks(paths, CHUNK, model.preprocessing, limits or Limits(), skipped)
    for number, (usable, pixels) in enumerate(chunks):
        start = number * CHUNK
        if usable:
            made = reconstruct_pixels(
                model, pixels, corruptions=corruptions, seed=seed, position=start, decoder=decoder
            )
            if len(results) < SHEET_IMAGES:
                shown.append(made.head(SHEET_IMAGES - len(results)))
            for index, path in enumerate(usable):
                if folder is not None:
                    save_image(folder / IMAGES_NAME / names[path], made.reconstructed[index])
                results.append(made.result(index, path, names[path] if folder else ""))
        if progress:
            progress(min(start + CHUNK, len(paths)), len(paths))
    sheet = _sheet(shown, results)
    if folder is not None:
        save_image(folder / SHEET_NAME, sheet)
        _write_table(folder / TABLE_NAME, results)
    return Reconstructions(results, skipped, sheet)


class ReconstructedPixels(NamedTuple):
    """Images in memory, corrupted if that was asked for, and what a model makes of them.

    Attributes:
        original: pixels (B, H, W, 3) before any corruption.
        corrupted: pixels (B, H, W, 3) given to the model.
        reconstructed: pixels (B, H, W, 3) that it decoded.
        psnr_db: of `reconstructed` against the clean images, B numbers in dB; infinite for equal images.
        ssim: structural similarity of the same two, B numbers.
        corrupted_psnr_db: of `corrupted` against the clean images; None if these are the same.
    """

    original: Pixels
    corrupted: Pixels
    reconstructed: Pixels
    psnr_db: list[float]
    ssim: list[float]
    corrupted_psnr_db: list[float] | None

    def head(self, count: int) -> ReconstructedPixels:
        """Return the first `count` images."""
        return ReconstructedPixels(*(None if part is None else part[:count] for part in self))  # type: ignore[arg-type]

    def result(self, index: int, path: Path, file: str) -> Reconstruction:
        """Return the numbers of one image as a line of the table."""
        before = None if self.corrupted_psnr_db is None else self.corrupted_psnr_db[index]
        return Reconstruction(path, self.psnr_db[index], self.ssim[index], before, file)


def reconstruct_pixels(
    model: Autoencoder,
    pixels: Pixels,
    *,
    clean: Pixels | None = None,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    position: int = 0,
    decoder: DecoderName = "sharp",
) -> ReconstructedPixels:
    """Pass images that are in memory through a model, corrupted first if corruptions are given.

    Args:
        model: from `load_model`.
        pixels: (B, H, W, 3) of the model's size.
        clean: the images without damage, of the same shape, to compare with; the default is `pixels` itself.
        corruptions: as for `reconstruct`.
        seed: of the corruptions.
        position: of the first image among those of the same seed, so that chunks get different corruptions.
        decoder: see `Autoencoder.decode`.

    Raises:
        ConfigError: a corruption cannot be used, or not on images of this size.
    """
    chain = parse_corruptions(corruptions)
    check_size(chain, model.preprocessing.height, model.preprocessing.width)
    generator = torch.Generator().manual_seed(random_seed("reconstruct", seed, position))
    corrupted = corrupt(to_float(pixels), chain, generator, training=True)
    reconstructed = model.reconstruct(corrupted, decoder)
    target = to_float(pixels if clean is None else clean)
    return ReconstructedPixels(
        pixels,
        to_pixels(corrupted) if chain else pixels,
        to_pixels(reconstructed),
        psnr(reconstructed, target).tolist(),
        ssim(reconstructed, target).tolist(),
        psnr(corrupted, target).tolist() if chain or clean is not None else None,
    )


def validation_sheet(model: Autoencoder, pack: Pack) -> Pixels:
    """Draw held-out images of a pack beside their reconstructions: (H, W, 3), to look at after training.

    The images are of the validation split or, if it is empty, of the one that `held_out` returns instead.
    """
    pixels = pack.pixels(pack.held_out("validation").rows[:SHEET_IMAGES])
    made = reconstruct_pixels(model, pixels, corruptions=model.training_corruptions)
    return _sheet([made], [made.result(index, Path(), "") for index in range(len(pixels))])


def _prepared(out: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """Make the folder, clear it of an earlier result, and return the name of the file for each path.

    A folder with other content is rejected; files that the earlier table does not name are kept.
    """
    claim_folder(out, TABLE_NAME, "reconstructions", next(iter(paths), None))
    check_output(out / SHEET_NAME, WRITABLE, paths)
    make_folder(out / IMAGES_NAME)
    if (out / IMAGES_NAME).resolve() in {folder.resolve() for folder in {path.parent for path in paths}}:
        raise OutputError(
            f"{out / IMAGES_NAME} holds input images and would be cleared. Choose another --out."
        )
    earlier = _written_before(out / TABLE_NAME)
    theirs = {path.name.lower() for path in (out / IMAGES_NAME).iterdir()} - {e.lower() for e in earlier}
    names = _file_names(paths, theirs)
    # Written before any file changes: if the command is stopped, the folder is recognised as ours and it can
    # be repeated.
    planned = [Reconstruction(path, math.nan, math.nan, None, name) for path, name in names.items()]
    left = [Reconstruction(Path(), math.nan, math.nan, None, e) for e in earlier - set(names.values())]
    _write_table(out / TABLE_NAME, planned + left)
    for name in earlier:
        (out / IMAGES_NAME / name).unlink(missing_ok=True)
    return names


def _written_before(table: Path) -> set[str]:
    """Return the names of the files that an earlier call wrote, as listed in its table."""
    try:
        text = read_file(table, TEXT_BYTES, inside=table.parent).decode(errors="surrogateescape")
    except FileNotFoundError:
        return set()
    except OSError as err:
        raise OutputError(f"{table}: {err.strerror or err}. Choose another --out.") from err
    try:
        names = {row.get("file") or "" for row in csv.DictReader(io.StringIO(text, newline=""))}
    except csv.Error as err:  # a cell of 131,072 letters or more
        raise OutputError(f"{table} is damaged: {err}. Choose another --out.") from err
    # A table edited by hand must not lead to files elsewhere: the files are about to be deleted.
    return {name for name in names if name.endswith(".png") and Path(name).name == name}


def _file_names(paths: Sequence[Path], taken: Iterable[str] = ()) -> dict[Path, str]:
    """Return a file name for each path: its stem, numbered if several paths share it or it is `taken`."""
    names = FileNames(taken)
    return {path: names.free(f"{cut_name(path.stem) or 'image'}.png") for path in paths}


def _sheet(shown: Sequence[ReconstructedPixels], results: Sequence[Reconstruction]) -> Pixels:
    columns = [("original", np.concatenate([part.original for part in shown]))]
    is_corrupted = shown[0].corrupted_psnr_db is not None
    if is_corrupted:
        columns.append(("corrupted", np.concatenate([part.corrupted for part in shown])))
    name = "restored" if is_corrupted else "reconstruction"
    columns.append((name, np.concatenate([part.reconstructed for part in shown])))
    return contact_sheet(columns, captions=[_caption(result) for result in results[: len(columns[0][1])]])


def _caption(result: Reconstruction) -> str:
    before = "" if result.corrupted_psnr_db is None else f"{result.corrupted_psnr_db:.1f} to "
    return f"{before}{result.psnr_db:.1f} dB  {result.ssim:.2f}"


def _write_table(path: Path, results: Sequence[Reconstruction]) -> None:
    rows: list[list[object]] = [["path", "psnr_db", "ssim", "corrupted_psnr_db", "file"]]
    for result in results:
        corrupted = "" if result.corrupted_psnr_db is None else f"{result.corrupted_psnr_db:.4f}"
        rows.append([result.path, f"{result.psnr_db:.4f}", f"{result.ssim:.4f}", corrupted, result.file])
    write_bytes(path, csv_bytes(rows))
