"""Restore image files at their full size by a model of kind restorer.

Results are written one by one beside a table of what decided each: a call that is made again does only what
is left to do.

Shapes: H height, W width, C channels. Levels are (H, W, C) in 0..255 or 0..65535.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from autoencode import notebook
from autoencode.atomic import claim_folder, exclusive, remove_temporaries, removed_if_empty
from autoencode.data.corruptions import corrupt, parse_corruptions
from autoencode.data.loader import random_seed
from autoencode.data.pictures import Picture, read_picture
from autoencode.data.preprocessing import Limits, check_usable, save_image
from autoencode.data.sources import expanded, paths_given, was_in_memory
from autoencode.errors import ImageError, OutputError
from autoencode.figures import SHEET_IMAGES, contact_sheet
from autoencode.metrics.images import psnr
from autoencode.models.model_file import load_restorer
from autoencode.models.restorer import Restorer
from autoencode.pixels import to_float, to_pixels
from autoencode.restoration.clean_images import CleanImages
from autoencode.restoration.picture import (
    DifferenceSums,
    check_arguments,
    check_enlarged,
    ssim_of_whole,
)
from autoencode.restoration.results import (
    COMPARISONS_NAME,
    LOG_NAME,
    Restoration,
    ResultNames,
    append_result,
    create_log,
    read_results,
    write_table,
)
from autoencode.restoration.tiles import restore_levels
from autoencode.training.runtime import Runtime, choose_runtime

if TYPE_CHECKING:
    from autoencode.data.listing import Paths
    from autoencode.data.pack import Pack, Progress
    from autoencode.data.pictures import Levels

SHEET_NAME = "restored.png"  # of a run

_CROP = 384  # side of the 1:1 crop of a comparison: two fit on any screen


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
        rows = ((one.removed_rms, one.psnr_db, one.path) for one in self.results)
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
            same names. An image is skipped if none of them has its name, or several have and none of these
            has its path.
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
    images = list(images) if isinstance(images, Iterator) else images
    folder, paths = Path(out), expanded(images)
    check_arguments(loaded, scale, amount)
    runtime = choose_runtime(device)
    runtime.model_to_device(loaded)
    folders = [path for path in paths_given(images) or () if path.is_dir()]
    into = {(folder / inner).resolve() for inner in ResultNames(paths, folders, ()).folders}
    if into & {one.resolve() for one in {path.parent for path in paths}}:
        raise OutputError(f"{folder} holds images that are to be restored. Choose another --out.")
    busy = f"{folder} is being written by another process."
    targets = None if clean is None else CleanImages(Path(clean), folders)
    with removed_if_empty(folder):
        claim_folder(folder, LOG_NAME, "restored images", next(iter(paths), None))
        with exclusive(folder, busy, OutputError):
            job = _Job(loaded, runtime, folder, scale, amount, targets, compare, limits or Limits())
            return job.run(paths, folders, progress or (lambda done, total: None))


@dataclass(frozen=True)
class _Job:
    """One call of `restore`; the folder is locked."""

    model: Restorer
    runtime: Runtime
    folder: Path
    scale: int
    amount: float
    clean: CleanImages | None
    compare: bool
    limits: Limits

    def run(self, paths: Paths, folders: Sequence[Path], progress: Progress) -> Restorations:
        """Restore what is not finished."""
        results: list[Restoration] = []
        skipped: list[tuple[Path, str]] = []
        # Weights that were never saved cannot be recognised.
        logged = read_results(self.folder)
        finished = logged if self.model.digest else {}
        keys = {path: self._inputs_and_settings(path) for path in paths}
        others = _of_other_images(logged, keys.values())
        outdated = {_original(key): one.comparison for key, one in logged.items() if one.comparison}
        staying = [*others, *(finished[key] for key in keys.values() if key in finished)]
        comparisons = {one.comparison for one in staying if one.comparison}
        names = ResultNames(paths, folders, [*(one.file for one in staying), *comparisons])
        for inner in {*names.folders, PurePosixPath(COMPARISONS_NAME), PurePosixPath()}:
            remove_temporaries(self.folder / inner)
        kept = 0
        progress(0, len(paths))  # the first image may take long
        for number, path in enumerate(paths, start=1):
            if keys[path] in finished:
                results.append(finished[keys[path]])
                kept += 1
            else:
                try:
                    results.append(self._restore_file(path, names))
                    append_result(self.folder, keys[path], results[-1])
                    comparisons.add(results[-1].comparison or "")
                    self._remove_outdated(outdated.get(_original(keys[path])), comparisons)
                except ImageError as err:
                    skipped.append((path, str(err)))
            progress(number, len(paths))
        check_usable(len(results), paths, skipped)
        skipped += paths.skipped
        write_table(self.folder, [*results, *others], skipped)
        return Restorations(results, skipped, kept)

    def _restore_file(self, path: Path, names: ResultNames) -> Restoration:
        picture = read_picture(path, self.limits)
        check_enlarged(picture.levels, self.scale, self.limits)
        clean = self._clean_levels(path, picture)
        differences = DifferenceSums(clean)
        levels = restore_levels(
            self.model,
            picture.levels,
            scale=self.scale,
            amount=self.amount,
            runtime=self.runtime,
            seen=differences.add,
        )
        restored = picture.with_levels(levels)
        name = names.take(path, picture.name_of(path))
        create_log(self.folder)
        comparison = names.take_comparison(name) if self.compare else None
        if comparison:
            save_image(self.folder / comparison, _before_and_after(picture, restored))
        restored.save(self.folder / name)
        result = Restoration(
            path,
            name,
            differences.removed_rms,
            has_more_frames=picture.has_more_frames,
            was_16_bit_colour=picture.was_16_bit_colour,
            comparison=comparison,
        )
        if clean is None:
            return result
        before_db, after_db = differences.psnr_db
        similarity = ssim_of_whole(levels, clean)
        return replace(result, psnr_db=after_db, ssim=similarity, corrupted_psnr_db=before_db)

    def _remove_outdated(self, comparison: str | None, in_use: Set[str]) -> None:
        """Delete the picture before and after of an earlier result, unless it is of another one now."""
        if comparison and comparison not in in_use:
            with contextlib.suppress(OSError):  # such as one that is open in a viewer
                (self.folder / comparison).unlink()

    def _clean_levels(self, path: Path, picture: Picture) -> Levels | None:
        """Return what the result should be, turned as the file of the picture has it.

        Raises:
            ImageError: there is no such image, or it cannot be compared.
        """
        if self.clean is None:
            return None
        clean = self.clean.of(path)
        try:
            levels = read_picture(clean, self.limits).levels_in(picture.turn)
        except ImageError as err:
            raise ImageError(f"its clean image {clean}: {err}") from err
        height, width, channels = picture.levels.shape
        wanted = (height * self.scale, width * self.scale, channels)
        if levels.shape != wanted or channels == 4:
            raise ImageError(
                f"its clean image {clean} is {_size(levels.shape)}, and {_size(wanted)} is needed"
            )
        return levels

    def _inputs_and_settings(self, path: Path) -> str:
        """Return all that decides the result of a file and what is measured of it, as text."""
        try:
            # "upright": results that were measured against an image turned otherwise are not kept.
            clean = None if self.clean is None else ["upright", *_version(self.clean.of(path))]
        except ImageError:  # the reason why this file is skipped when its turn comes
            clean = []
        settings = self.model.digest, self.scale, float(self.amount), self.compare
        return json.dumps([*_version(path), *settings, clean])


def _of_other_images(logged: Mapping[str, Restoration], keys: Iterable[str]) -> list[Restoration]:
    """Return the latest result of each other image file than those of the keys: they stay."""
    own = {_original(key) for key in keys}
    latest = {_original(key): one for key, one in logged.items()}
    return [one for path, one in latest.items() if path not in own and not was_in_memory(Path(path))]


def _original(key: str) -> str:
    """Return the path of the image that a key is of, one for all ways to write it."""
    path: str = json.loads(key)[0]
    return os.path.normcase(os.path.normpath(path))


def _version(path: Path) -> list[str | int]:
    """Return what tells a file from another one, and from an earlier content of its own."""
    try:
        status = path.stat()
    except OSError:  # reading it will say what is wrong
        return [str(path.absolute())]
    return [str(path.absolute()), status.st_size, status.st_mtime_ns]


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]} of {shape[2]} channels"


def _before_and_after(before: Picture, after: Picture) -> NDArray[np.uint8]:
    """Draw a picture before and after: all of it made small, and its middle pixel by pixel."""
    shown = before.image(), after.image()
    width, height = shown[1].size
    side = min(_CROP, height, width)
    top, left = (height - side) // 2, (width - side) // 2
    columns = []
    for heading, image in zip(("before", "after"), shown, strict=True):
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        whole = _fitted(image, side)
        crop = image.crop((left, top, left + side, top + side))
        columns.append((heading, np.stack([np.asarray(whole), np.asarray(crop)])))
    return contact_sheet(columns, rows_per_block=2)


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """Return an image of the longer side `side` in the middle of a white square.

    However long it is, it has a row and a column of pixels, which `ImageOps.pad` does not see to.
    """
    width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
    square = Image.new("RGB", (side, side), "white")
    corner = (side - width) // 2, (side - height) // 2
    square.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
    return square


def validation_sheet(model: Restorer, pack: Pack) -> NDArray[np.uint8]:
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
