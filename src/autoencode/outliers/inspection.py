"""Judge images by normal ones, all at once or as they come: a verdict, a box and a heat map for each.

Shapes: N images judged, h, w rows and columns of a heat map.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects, label

from autoencode.atomic import (
    TABLES,
    append_line,
    atomic_file,
    check_output,
    csv_bytes,
    cut_name,
    make_folder,
    plain_cell,
    write_bytes,
)
from autoencode.data.listing import Paths
from autoencode.data.preprocessing import Limits, check_usable, save_image
from autoencode.data.sources import expanded, find_images
from autoencode.errors import ConfigError, ImageError, ImageFolderError
from autoencode.outliers.conformal import attainable_fpr, most_flagged
from autoencode.outliers.find import COLUMNS, Box, Outliers, Verdict, cells, row_of
from autoencode.outliers.ground_truth import compare, draw_curves, masks_of
from autoencode.outliers.normal import BATCH, NormalImages
from autoencode.outliers.patches import Picture, read_in_shape
from autoencode.outliers.scores import AUTO
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.data.pack import Progress

_HEAT_UNIT = 1 / 4096  # of a 16-bit map: 1, the upper end of normal patches, is 4096


def inspect_images(
    normal: NormalImages,
    images: str | Path | Iterable[str | Path] | None = None,
    out: str | Path | None = None,
    *,
    fpr: float | None = None,
    maps: str | Path | None = None,
    only_outliers: bool = False,
    masks: Any = None,  # noqa: ANN401 - see `masks_of`
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Outliers:
    """Judge images by normal ones.

    Args:
        normal: from `fit_normal` or `load_normal`.
        images: image files, and folders of them; None judges the normal images themselves, each against the
            others.
        out: a table, .csv or .json. None writes none.
        fpr: the false positive rate, in (0, 1): at most this share of normal images is called an outlier, on
            average. The default depends on their number, see `attainable_fpr`.
        maps: a folder that gets two pictures of each image: NAME-overlay.png, the whole image with the heat
            map over it, and NAME-map.png, the map in 16 bits, 4096 at the upper end of normal patches.
        only_outliers: leave the other images out of `maps`.
        masks: masks of the defects, to which the heat maps are compared: a folder, or a table or data frame
            with columns `path` and `mask`; see `ground_truth.masks_of`. Precision and recall are drawn beside
            the table, see `curves_path`.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: the rate needs more normal images, `out` is no table or one of the images, or the masks
            do not belong to the images.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` or `maps` cannot be written.
    """
    rate = attainable_rate(normal, fpr)
    if images is None and not normal.paths:
        raise ConfigError("Normal images from a file are not there to be judged: give images to judge.")
    paths = expanded(images) if images is not None else Paths(normal.paths)
    out, limits = None if out is None else Path(out), limits or Limits()
    if out is not None:
        check_output(out, TABLES, paths)
    matched = None if masks is None else masks_of(masks, paths)
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    verdicts, skipped = list[Verdict](), list[tuple[Path, str]]()
    for number, (path, found) in enumerate(judge(normal, paths, rate, limits), 1):
        if isinstance(found, str):
            skipped.append((path, found))
        else:
            verdict, picture = found
            verdicts.append(verdict)
            if maps is not None and (verdict.outlier or not only_outliers):
                draw(Path(maps), picture_name(number, path, root), verdict, picture)
        if progress:
            progress(number, len(paths))
    check_usable(len(verdicts), paths, skipped)
    verdicts.sort(key=lambda one: -one.score)
    result = Outliers(
        verdicts,
        [*skipped, *(normal.skipped if images is None else paths.skipped)],
        AUTO,
        "conformal",
        rate,
        normal.fpr_bound(rate),
        normal.threshold(rate),
        normal.calibration,
        are_alike=normal.are_alike,
        passing=normal.passing,
        notes=tuple(filter(None, (normal.note, _limit(normal, rate) if images is None else None))),
        agreement=None if matched is None else compare(verdicts, matched, limits),
    )
    if out is not None:
        result.write(out)
        if result.agreement is not None:
            draw_curves(result.agreement, curves_path(out))
    return result


def _limit(normal: NormalImages, rate: float) -> str:
    count = len(normal.calibration)
    return (
        f"at {rate:.2%}, at most {most_flagged(count, rate)} of {count:,} images that judge each other can "
        "be called outliers: go by their order."
    )


def curves_path(table: Path) -> Path:
    """Return the path of the figure that belongs to a table: beside it, `<name>-curves.png`."""
    return table.with_name(f"{table.stem}-curves.png")


def attainable_rate(normal: NormalImages, fpr: float | None) -> float:
    """Return the false positive rate to keep to, see `attainable_fpr`."""
    return attainable_fpr(
        len(normal.calibration), fpr, found="normal images; there are {images:,}", advice="Give more"
    )


def judge(
    normal: NormalImages, paths: Sequence[Path], rate: float, limits: Limits
) -> Iterator[tuple[Path, tuple[Verdict, Picture] | str]]:
    """Yield each image with the verdict on it and its pixels, or with the reason why it cannot be used.

    Args:
        normal: the normal images.
        paths: the images.
        rate: the false positive rate.
        limits: the largest files and pictures to accept.
    """
    for start in range(0, len(paths), BATCH):
        read: list[tuple[Path, Picture | str]] = []
        for path in paths[start : start + BATCH]:
            try:
                read.append((path, read_in_shape(path, limits, normal.value_range)))
            except ImageError as err:
                read.append((path, str(err)))
        measured = iter(normal.measure_all([one for _, one in read if not isinstance(one, str)]))
        for path, one in read:
            if isinstance(one, str):
                yield path, one
                continue
            score, heat = next(measured)
            p_value = float(normal.p_values(np.array([score]))[0])
            box, area = _region(heat, one)
            small = np.minimum(heat, np.finfo(np.float16).max).astype(np.float16)
            outlier, size = p_value <= rate, (one.height, one.width)
            yield path, (Verdict(path, score, rate / p_value, p_value, outlier, box, area, small, size), one)


def picture_name(number: int, path: Path, root: Path) -> str:
    """Return the name of the pictures of an image: images of different folders may have one name."""
    absolute = path.absolute()
    parts = (
        absolute.relative_to(root.absolute()).parts[-3:] if absolute.is_relative_to(root.absolute()) else ()
    )
    return cut_name(f"{number:05d}-{Path('-'.join(parts) or path.name).stem}")


def _region(heat: NDArray[np.floating[Any]], picture: Picture) -> tuple[Box | None, float]:
    """Return the box around the hottest place, and the share of the image that is as hot."""
    if heat.max() <= 1:
        return None, 0.0
    # Halfway between the upper end of normal patches and the peak. The whole region beyond the end is much
    # larger than a defect: patches overlap. On 14 cracks of Kolektor the boxes had 3.8 times the area of
    # those around the masks, with a median IoU of 0.16; halfway they have 1.8 times the area and 0.24.
    hot = heat > (1 + heat.max()) / 2
    regions, _ = label(hot)
    rows, columns = find_objects(regions)[regions.flat[heat.argmax()] - 1]
    down, across = picture.height / heat.shape[0], picture.width / heat.shape[1]
    left, top = round(columns.start * across), round(rows.start * down)
    box = Box(left, top, round(columns.stop * across) - left, round(rows.stop * down) - top)
    return box, float(hot.mean())


def draw(folder: Path, name: str, verdict: Verdict, picture: Picture) -> None:
    """Write NAME-overlay.png and NAME-map.png."""
    from matplotlib import colormaps  # imported late: it takes a while

    assert verdict.heat is not None
    make_folder(folder, verdict.path)
    pixels = picture.pixels[-1]
    size = pixels.shape[1::-1]
    heat = np.asarray(Image.fromarray(verdict.heat.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    # Transparent up to the upper end of normal patches, so that what is normal stays visible.
    strength = np.clip((heat - 0.8) / 0.8, 0, 1)[..., None]
    colours = colormaps["inferno"](np.clip(heat / 2.5, 0, 1))[..., :3] * 255
    overlay = pixels * (1 - 0.6 * strength) + colours * 0.6 * strength
    full = Image.fromarray(overlay.round().astype(np.uint8)).resize((picture.width, picture.height))
    save_image(folder / f"{name}-overlay.png", np.asarray(full))
    levels = np.clip(heat / _HEAT_UNIT, 0, 65535).round().astype(np.uint16)
    deep = Image.fromarray(levels).resize((picture.width, picture.height), Image.Resampling.NEAREST)
    with atomic_file(folder / f"{name}-map.png") as file:
        deep.save(file, "PNG")


def watch_images(
    normal: NormalImages,
    folder: str | Path,
    out: str | Path,
    *,
    fpr: float | None = None,
    maps: str | Path | None = None,
    only_outliers: bool = False,
    limits: Limits | None = None,
    interval_s: float = 1.0,
    patience_s: float = 30.0,
    most_rounds: int | None = None,
) -> Iterator[Verdict | tuple[Path, str]]:
    """Judge the files of a folder as they come, each once.

    The table says which files were judged, so that a new start goes on after them. A file is judged once two
    looks find it of one size and age: until then, it may be being written. One that cannot be read then is
    tried again whenever it changes, also after a row has said that it cannot be read.

    Args:
        normal, fpr, maps, only_outliers, limits: see `inspect_images`.
        folder: searched with its sub-folders.
        out: the .csv table, to which a line is appended for each file.
        interval_s: seconds between looks.
        patience_s: seconds without a change after which a row says that a file cannot be read.
        most_rounds: looks, after which it ends; None looks until it is stopped.

    Yields:
        The verdict on each new file; the path of one that cannot be read, once, with the reason.

    Raises:
        ConfigError: the rate needs more normal images, or `out` is not a .csv table of this kind.
        ImageFolderError: the folder is missing.
        OutputError: `out` or `maps` cannot be written.
    """
    rate, folder, out, limits = attainable_rate(normal, fpr), Path(folder), Path(out), limits or Limits()
    if not folder.is_dir():
        raise ImageFolderError(f"There is no folder {folder}. Make it, and give the command again.")
    (judged, reported), threshold = _judged(out), normal.threshold(rate)
    watched = dict[Path, _Watched]()
    for round_ in itertools.count():
        now = {path: _age(path) for path in _new_images(folder, judged)}
        for path, age in now.items():
            one, name = watched.get(path), _written(path)
            if one is None or one.age != age:
                watched[path] = _Watched(age, time.monotonic())
                continue
            # Until its row is written it is tried at every look: some network drives do not tell of changes.
            if age is None or (one.is_tried and name in reported):
                continue
            [(_, found)] = judge(normal, [path], rate, limits)
            if isinstance(found, str):
                watched[path] = one._replace(is_tried=True)
                if name not in reported and time.monotonic() - one.since >= patience_s:
                    reported.add(name)
                    append_line(out, _line(row_of((path, found), threshold)))
                    yield path, found
                continue
            verdict, picture = found
            judged.add(name)
            if maps is not None and (verdict.outlier or not only_outliers):
                draw(Path(maps), picture_name(len(judged), path, folder), verdict, picture)
            append_line(out, _line(row_of(verdict, threshold)))
            yield verdict
        watched = {path: one for path, one in watched.items() if path in now and _written(path) not in judged}
        if most_rounds is not None and round_ + 1 >= most_rounds:
            return
        time.sleep(interval_s)


class _Watched(NamedTuple):
    """A file without a verdict: its size and age, since when (in monotonic seconds), and if it was tried."""

    age: tuple[int, int] | None
    since: float
    is_tried: bool = False


def _judged(out: Path) -> tuple[set[str], set[str]]:
    """Return the paths in a table of `watch_images`, as `_written`: those with a verdict, and the others.

    The table is begun if it is not there.
    """
    check_output(out, (".csv",))
    content = read_file(out, TEXT_BYTES) if out.exists() else b""
    header = csv_bytes([COLUMNS])
    if header.startswith(content):  # nothing, or what a crash left of the first line
        write_bytes(out, header)
        return set(), set()
    # A crash may have cut the last row short, also in a name of two lines: the file is judged again.
    whole = content[: content.rfind(b"\n") + 1]
    while whole.count(b'"') % 2:
        whole = whole[: whole.rfind(b"\n", 0, -1) + 1]
    try:
        rows = list(csv.reader(io.StringIO(whole.decode(errors="surrogateescape"), newline="")))
    except csv.Error:  # a cell of 131,072 letters or more
        rows = []
    if not rows or tuple(rows[0]) != COLUMNS:
        raise ConfigError(f"{out} is another table. Give a new name to --out.")
    if whole != content:
        write_bytes(out, whole)
    known = [(str(plain_cell(row[0])), bool(row[-1])) for row in rows[1:] if row]
    judged, unread = ({name for name, has_error in known if has_error is which} for which in (False, True))
    return judged, unread


def _written(path: Path) -> str:
    """Return a path as a table has it, where names that are not UTF-8 are escaped."""
    return str(path).encode(errors="backslashreplace").decode()


def _new_images(folder: Path, judged: set[str]) -> list[Path]:
    try:
        return [path for path in find_images(folder) if _written(path) not in judged]
    except ImageFolderError:  # nothing has come yet
        return []


def _age(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        # A link that leads nowhere is judged, which names it; another file may have been taken away.
        return (0, 0) if path.is_symlink() else None
    return found.st_size, found.st_mtime_ns


def _line(row: dict[str, Any]) -> str:
    return csv_bytes([cells(row)]).decode(errors="surrogateescape").rstrip("\r\n")
