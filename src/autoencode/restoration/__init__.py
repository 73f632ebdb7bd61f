"""Image files restored at their full size, by a model of kind restorer.

Results are written one by one beside a table of what decided each: a call that is made again does only what
is left to do.

Shapes: H height, W width, C channels. Levels are (H, W, C) in 0..255 or 0..65535.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from autoencode import notebook
from autoencode.atomic import (
    append_line,
    claim_folder,
    cut_name,
    exclusive,
    parse_json,
    remove_temporaries,
)
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.data.pictures import Picture, read_picture
from autoencode.data.preprocessing import Limits, check_usable, save_image
from autoencode.data.sources import expanded
from autoencode.errors import ImageError, OutputError
from autoencode.figures import contact_sheet
from autoencode.metrics.images import psnr
from autoencode.models.model_file import load_restorer
from autoencode.models.restorer import Restorer
from autoencode.pixels import to_float, to_pixels
from autoencode.restoration.picture import Measured, check_arguments
from autoencode.restoration.tiles import restore_levels
from autoencode.training.runtime import Runtime, choose_runtime
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.data.listing import Paths
    from autoencode.data.pack import Pack, Progress
    from autoencode.data.pictures import Levels

TABLE_NAME = "restored.jsonl"
COMPARISONS_NAME = "comparisons"
SHEET_NAME = "restored.png"  # of a run
SHEET_IMAGES = 24  # nobody looks through a longer sheet

_CROP = 384  # side of the 1:1 crop of a comparison: two fit on any screen


@dataclass(frozen=True)
class Restoration:
    """How one image was restored.

    Attributes:
        path: the image file.
        file: name of the result in the folder.
        noise: root mean square of what was removed, in [0, 1]: for an image whose damage is noise about its
            standard deviation.
        psnr_db: peak signal-to-noise ratio against the clean image in dB; None without a clean image.
        ssim: structural similarity to the clean image, at most 1; None without one.
        damaged_psnr_db: the same ratio before restoring.
    """

    path: Path
    file: str
    noise: float
    psnr_db: float | None = None
    ssim: float | None = None
    damaged_psnr_db: float | None = None


@dataclass(frozen=True)
class Restorations:
    """Results of `restore`.

    Attributes:
        results: one per usable image, in the order given; those that an earlier call had finished, too.
        skipped: the other images, each with the reason.
        kept: how many of the results an earlier call had finished.
    """

    results: list[Restoration]
    skipped: list[tuple[Path, str]]
    kept: int

    def _repr_html_(self) -> str:
        rows = ((one.noise, one.psnr_db, one.path) for one in self.results)
        return notebook.table(f"{len(self.results):,} images restored", ("removed", "PSNR dB", "path"), rows)


def restore(
    model: Restorer | str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    scale: int = 1,
    amount: float = 1.0,
    clean: str | Path | None = None,
    compare: bool = False,
    limits: Limits | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Restorations:
    """Restore image files at their full size, each into a file of its own kind (see `data.pictures`).

    A call that was stopped goes on where it was when it is made again: an image that was finished with the
    same model and arguments, and has not changed since, is kept.

    Args:
        model: from `load_restorer`, or its path.
        images: image files, and folders of them.
        out: a folder for the results and their table, made here; not one with images that are restored.
        scale: enlarge each side by this whole factor; needs a model trained with `downscale`.
        amount: how much of what the model removes is removed, from 0 (nothing) to 1 (all of it).
        clean: the same images without damage, to measure against: one file, or a folder with files of the
            same names.
        compare: also write, for each image, a picture of it before and after, with a part at 1:1.
        limits: the largest files and images to accept.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...
        progress: called with (images done, images in total).

    Raises:
        ModelFileError: there is no usable restorer at the path.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        ConfigError: an argument cannot be used.
        OutputError: `out` is not empty and holds no earlier results, holds images that are to be restored, or
            cannot be written. What was finished before is kept.
    """
    loaded = model if isinstance(model, Restorer) else load_restorer(model)
    folder, paths = Path(out), expanded(images)
    check_arguments(loaded, scale, amount)
    runtime = choose_runtime(device)
    runtime.model_to_device(loaded)
    if folder.resolve() in {path.parent.resolve() for path in paths}:
        raise OutputError(f"{folder} holds images that are to be restored. Choose another --out.")
    claim_folder(folder, TABLE_NAME, "restored images", next(iter(paths), None))
    busy = f"{folder} is being written by another process."
    with exclusive(folder, busy, OutputError):
        remove_temporaries(folder)
        measured = None if clean is None else Path(clean)
        job = _Job(loaded, runtime, folder, scale, amount, measured, compare, limits or Limits())
        return job.run(paths, progress or (lambda done, total: None))


@dataclass(frozen=True)
class _Job:
    """One call of `restore`; the folder is locked."""

    model: Restorer
    runtime: Runtime
    folder: Path
    scale: int
    amount: float
    clean: Path | None
    compare: bool
    limits: Limits

    def run(self, paths: Paths, progress: Progress) -> Restorations:
        """Restore what is not finished."""
        results: list[Restoration] = []
        skipped: list[tuple[Path, str]] = []
        finished = self._finished()
        keys = {path: self._key(path) for path in paths}
        names = {finished[key].file.lower() for key in keys.values() if key in finished}
        kept = 0
        for number, path in enumerate(paths, start=1):
            if keys[path] in finished:
                results.append(finished[keys[path]])
                kept += 1
            else:
                try:
                    results.append(self._restored(path, names))
                    self._note(keys[path], results[-1])
                except ImageError as err:
                    skipped.append((path, str(err)))
            progress(number, len(paths))
        check_usable(len(results), paths, skipped)
        return Restorations(results, [*skipped, *paths.skipped], kept)

    def _restored(self, path: Path, names: set[str]) -> Restoration:
        picture = read_picture(path, self.limits)
        measured = Measured(self._clean_levels(path, picture))
        levels = restore_levels(
            self.model,
            picture.levels,
            scale=self.scale,
            amount=self.amount,
            runtime=self.runtime,
            seen=measured.add,
        )
        restored = picture.with_levels(levels)
        name = _free_name(picture.name_of(path), names)
        if self.compare:
            sheet = _comparison(picture, restored)
            save_image(self.folder / COMPARISONS_NAME / f"{name}.png", sheet)
        restored.save(self.folder / name)
        before_db, after_db, similarity = measured.against_clean() or (None, None, None)
        return Restoration(path, name, measured.noise, after_db, similarity, before_db)

    def _clean_levels(self, path: Path, picture: Picture) -> Levels | None:
        """Return what the result should be.

        Raises:
            ImageError: there is no such image, or it cannot be compared.
        """
        if self.clean is None:
            return None
        found = self._clean_files
        clean = found.get(f"{path.parent.name}/{path.name}") or found.get(path.name)
        clean = clean if self.clean.is_dir() else self.clean
        if clean is None:
            raise ImageError(f"no clean image of its name is in {self.clean}")
        try:
            levels = read_picture(clean, self.limits).levels
        except ImageError as err:
            raise ImageError(f"its clean image {clean}: {err}") from err
        height, width, channels = picture.levels.shape
        wanted = (height * self.scale, width * self.scale, channels)
        if levels.shape != wanted or channels == 4:
            raise ImageError(
                f"its clean image {clean} is {_size(levels.shape)}, and {_size(wanted)} is needed"
            )
        return levels

    @functools.cached_property
    def _clean_files(self) -> Mapping[str, Path]:
        """The clean images, by their names and by those with their folders."""
        assert self.clean is not None
        files = list(expanded(self.clean))
        return {path.name: path for path in files} | {
            f"{path.parent.name}/{path.name}": path for path in files
        }

    def _key(self, path: Path) -> str:
        """Return what decides the result of a file, as text."""
        try:
            status = path.stat()
            version = [status.st_size, status.st_mtime_ns]
        except OSError:  # reading it will say what is wrong
            version = []
        clean = None if self.clean is None else str(self.clean)
        weights = self.model.digest, self.scale, self.amount, self.compare, clean
        return json.dumps([str(path.absolute()), *version, *weights])

    def _finished(self) -> dict[str, Restoration]:
        """Return the results that the table lists and the folder still has, by what decided them."""
        found: dict[str, Restoration] = {}
        table = self.folder / TABLE_NAME
        try:
            lines = read_file(table, TEXT_BYTES).decode(errors="replace").splitlines()
        except FileNotFoundError:
            # At once, so that a folder left by a kill is known as ours.
            append_line(table, "")
            lines = []
        for line in lines:
            try:
                value = parse_json(line)
                path = Path(value["restored"].pop("path"))
                found[value["of"]] = Restoration(path, **value["restored"])
            except (ValueError, KeyError, TypeError, AttributeError):  # cut short by a crash
                continue
        names = {path.name for path in self.folder.iterdir()}
        # Weights that were never saved have no digest to know them by.
        return {key: one for key, one in found.items() if one.file in names and self.model.digest}

    def _note(self, key: str, result: Restoration) -> None:
        numbers = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(result).items()
        }
        text = json.dumps({"of": key, "restored": {**numbers, "path": str(result.path)}})
        append_line(self.folder / TABLE_NAME, text)


def _free_name(name: str, taken: set[str]) -> str:
    """Return a name that no other result has, in lower case as file systems of other machines compare."""
    path, number = Path(name), 1
    while name.lower() in taken:
        number += 1
        name = f"{cut_name(path.stem)}-{number}{path.suffix}"
    taken.add(name.lower())
    return name


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} of {shape[2]} channels"


def _comparison(before: Picture, after: Picture) -> NDArray[np.uint8]:
    """Draw a picture before and after: all of it made small, and its middle pixel by pixel."""
    shown = before.image(), after.image()
    width, height = shown[1].size
    side = min(_CROP, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    columns = []
    for heading, image in zip(("before", "after"), shown, strict=True):
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        whole = ImageOps.pad(image, (side, side), color="white")
        crop = image.crop((left, top, left + side, top + side))
        columns.append((heading, np.stack([np.asarray(whole), np.asarray(crop)])))
    return contact_sheet(columns, rows_per_block=2)


def sheet_of_rows(model: Restorer, pack: Pack) -> NDArray[np.uint8]:
    """Draw held-out images of a pack clean, damaged as in training, and restored: (H, W, 3).

    The images are of the validation split or, if it is empty, of the one that `held_out` returns instead.
    """
    pixels = pack.pixels(pack.held_out("validation").rows[:SHEET_IMAGES])
    generator = torch.Generator().manual_seed(random_seed("restore", 0))
    clean = to_float(pixels)
    seen = corrupt(clean, parse_corruptions(model.training_corruptions), generator, training=False)
    restored = torch.cat([model.restore(one[None]).cpu() for one in seen])
    if not model.training_corruptions:  # self-supervised: nobody has the clean images
        return contact_sheet([("as it is", pixels), ("restored", to_pixels(restored))])
    before, after = psnr(seen.clamp(0, 1), clean).tolist(), psnr(restored, clean).tolist()
    captions = [f"{one:.1f} to {other:.1f} dB" for one, other in zip(before, after, strict=True)]
    columns = [("clean", pixels), ("damaged", to_pixels(seen)), ("restored", to_pixels(restored))]
    return contact_sheet(columns, captions=captions)
