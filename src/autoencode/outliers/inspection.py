"""Judge images by normal ones, all at once or as they come: a verdict, a box and a heat map for each.

Shapes: N images judged, h, w rows and columns of a heat map.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autoencode.atomic import TABLES, append_line, check_output, write_bytes
from autoencode.csv_files import csv_bytes, plain_cell
from autoencode.data.listing import Paths
from autoencode.data.preprocessing import Limits, check_usable
from autoencode.data.sources import expanded, find_images
from autoencode.errors import ConfigError, ImageError, ImageFolderError, OutputError
from autoencode.outliers.conformal import attainable_fpr, in_percent, most_flagged
from autoencode.outliers.find import COLUMNS, Outliers, Verdict, cells, row_of
from autoencode.outliers.ground_truth import compare, draw_curves, left_over, masks_of
from autoencode.outliers.normal import BATCH, NormalImages
from autoencode.outliers.overlays import (
    begin_maps,
    draw,
    earlier_pictures,
    overlay_name,
    picture_name,
    region,
)
from autoencode.outliers.patches import Picture, read_in_shape
from autoencode.outliers.scores import AUTO
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.data.pack import Progress


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
            map and a box over it (see `overlays.coloured`), and NAME-map.png, the map in 16 bits, 4096 at the
            upper end of normal patches. Names begin with the rank of the image. The pictures that an earlier
            call wrote there are replaced.
        only_outliers: leave the other images out of `maps`.
        masks: masks of the defects, to which the heat maps are compared: a folder, or a table or data frame
            with columns `path` and `mask`; see `ground_truth.masks_of`. Precision and recall are drawn beside
            the table, see `curves_path`.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all); with `maps`, an image that is drawn counts again.

    Raises:
        ConfigError: the rate needs more normal images, `out` is no table or one of the images, or the masks
            do not belong to the images.
        ImageFolderError: a folder is missing or holds no image, or no image could be used.
        OutputError: `out` or `maps` cannot be written, or `maps` holds pictures of another run.
        KeyboardInterrupt: on Ctrl-C, with a sentence about what is written.
    """
    rate = attainable_rate(normal, fpr)
    if images is None and not normal.paths:
        raise ConfigError("Normal images from a file are not there to be judged: give images to judge.")
    paths = expanded(images) if images is not None else Paths(normal.paths)
    out, limits = None if out is None else Path(out), limits or Limits()
    if out is not None:
        check_output(out, TABLES, paths)
    maps = None if maps is None else Path(maps)
    if maps is not None:
        earlier_pictures(maps)  # before the work: a folder of another run is rejected
    matched = None if masks is None else masks_of(masks, paths)
    in_all = len(paths) * (1 if maps is None or only_outliers else 2)
    advance = None if progress is None else lambda done: progress(done, in_all)
    verdicts, skipped = _verdicts(normal, paths, rate, limits, advance)
    if maps is not None:
        verdicts = _with_overlays(verdicts, paths, only_outliers=only_outliers)
    notes = (
        normal.note,
        _limit(normal, rate) if images is None else None,
        None if matched is None else left_over(masks, matched),
    )
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
        notes=tuple(filter(None, notes)),
        agreement=None if matched is None else compare(verdicts, matched, limits),
    )
    if out is not None:
        _write(result, out)
    if maps is not None:
        drawn = None if progress is None else partial(_advance, progress, len(paths))
        _draw_all(maps, normal, verdicts, limits, out, drawn)
    return result


def _verdicts(
    normal: NormalImages, paths: Paths, rate: float, limits: Limits, advance: Callable[[int], None] | None
) -> tuple[list[Verdict], list[tuple[Path, str]]]:
    """Return the verdicts, the most anomalous first, and the files that cannot be used with the reason."""
    verdicts, skipped = list[Verdict](), list[tuple[Path, str]]()
    for number, (path, found) in enumerate(judge(normal, paths, rate, limits), 1):
        if isinstance(found, str):
            skipped.append((path, found))
        else:
            verdicts.append(found[0])
        if advance is not None:
            advance(number)
    check_usable(len(verdicts), paths, skipped)
    return sorted(verdicts, key=lambda one: -one.score), skipped


def _with_overlays(verdicts: Sequence[Verdict], paths: Paths, *, only_outliers: bool) -> list[Verdict]:
    """Return the verdicts, sorted by score, with the names of the overlays that are to be drawn."""
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    return [
        one
        if only_outliers and not one.outlier
        else dataclasses.replace(one, overlay=overlay_name(picture_name(rank, one.path, root)))
        for rank, one in enumerate(verdicts, 1)
    ]


def _write(result: Outliers, table: Path) -> None:
    result.write(table)
    if result.agreement is not None:
        draw_curves(result.agreement, curves_path(table))


def _advance(progress: Progress, before: int, done: int, total: int) -> None:
    progress(before + done, before + total)


def _draw_all(
    folder: Path,
    normal: NormalImages,
    verdicts: Sequence[Verdict],
    limits: Limits,
    table: Path | None,
    progress: Progress | None,
) -> None:
    """Draw the images that have the name of an overlay, after the table, in which they are named.

    Each is read again: names begin with the rank, which is known once all are judged, and the pixels of all
    would fill the memory.
    """
    drawn = [one for one in verdicts if one.overlay is not None]
    names = [str(one.overlay).removesuffix(overlay_name("")) for one in drawn]
    done = 0
    try:
        begin_maps(folder, names, (drawn or verdicts)[0].path)
        for verdict, name in zip(drawn, names, strict=True):
            with contextlib.suppress(ImageError):  # gone since it was judged
                draw(folder, name, verdict, read_in_shape(verdict.path, limits, normal.value_range))
            done += 1
            if progress is not None:
                progress(done, len(drawn))
    except KeyboardInterrupt:
        whole = "" if table is None else f"; the table {table} is whole"
        raise KeyboardInterrupt(
            f"{done} of {len(drawn)} maps written{whole}. Give the command again: it replaces them"
        ) from None


def _limit(normal: NormalImages, rate: float) -> str:
    count = len(normal.calibration)
    return (
        f"at {in_percent(rate)}, at most {most_flagged(count, rate)} of {count:,} images that judge each "
        "other can be called outliers: go by the order."
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
            box, area = region(heat, one.height, one.width)
            small = np.minimum(heat, np.finfo(np.float16).max).astype(np.float16)
            outlier, size = p_value <= rate, (one.height, one.width)
            yield path, (Verdict(path, score, rate / p_value, p_value, outlier, box, area, small, size), one)


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
        normal, fpr, maps, only_outliers, limits: see `inspect_images`; names of pictures begin with the
            number of files judged.
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
    if maps is not None and not judged and (earlier := earlier_pictures(Path(maps))):
        raise OutputError(
            f"{maps} holds pictures of another run, such as {earlier[0].name}. Give another folder."
        )
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
                drawn = picture_name(len(judged), path, folder)
                draw(Path(maps), drawn, verdict, picture)
                verdict = dataclasses.replace(verdict, overlay=overlay_name(drawn))
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
