"""Judge the files of a folder as they come."""

from __future__ import annotations

import csv
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autoencode.atomic import append_line, check_output, csv_bytes, plain_cell, write_bytes
from autoencode.data.preprocessing import Limits
from autoencode.data.sources import find_images
from autoencode.errors import ConfigError, ImageError, ImageFolderError
from autoencode.outliers.inspection import (
    COLUMNS,
    Verdict,
    attainable_rate,
    draw,
    judge,
    picture_name,
    table_row,
)
from autoencode.untrusted import TEXT_BYTES, read_file

if TYPE_CHECKING:
    from autoencode.outliers.normal import NormalImages


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
    most_rounds: int | None = None,
) -> Iterator[Verdict | tuple[Path, str]]:
    """Judge the files of a folder as they come, each once.

    The table says which files were judged, so that a new start goes on after them. A file is judged once two
    looks find it of one size and age: until then, it may be being written.

    Args:
        normal, fpr, maps, only_outliers, limits: see `inspect_images`.
        folder: searched with its sub-folders.
        out: the .csv table, to which a line is appended for each file.
        interval_s: seconds between looks.
        most_rounds: looks, after which it ends; None looks until it is stopped.

    Yields:
        The verdict on each new file, or its path and why it cannot be used.

    Raises:
        ConfigError: the rate needs more normal images, or `out` is not a .csv table of this kind.
        ImageFolderError: the folder is missing.
        OutputError: `out` or `maps` cannot be written.
    """
    rate, folder, out, limits = attainable_rate(normal, fpr), Path(folder), Path(out), limits or Limits()
    if not folder.is_dir():
        raise ImageFolderError(f"There is no folder {folder}. Make it, and give the command again.")
    judged, before = _judged(out), dict[Path, tuple[int, int]]()
    for round_ in itertools.count():
        now = {path: _age(path) for path in _new_images(folder, judged)}
        for path, age in now.items():
            if age is None or before.get(path) != age:
                continue
            judged.add(str(path))
            try:
                verdict, picture = judge(normal, path, rate, limits)
            except ImageError as err:
                append_line(out, _line([path, *("",) * (len(COLUMNS) - 1)]))
                yield path, str(err)
                continue
            if maps is not None and (verdict.outlier or not only_outliers):
                draw(Path(maps), picture_name(len(judged), path, folder), verdict, picture)
            append_line(out, _line(table_row(verdict, normal.threshold(rate))))
            yield verdict
        before = {path: age for path, age in now.items() if age is not None}
        if most_rounds is not None and round_ + 1 >= most_rounds:
            return
        time.sleep(interval_s)


def _judged(out: Path) -> set[str]:
    """Return the paths in a table of `watch_images`, which is begun if it is not there."""
    check_output(out, (".csv",))
    if not out.exists():
        write_bytes(out, csv_bytes([COLUMNS]))
    # A crash may have cut the last line short: the file is judged again.
    whole, _, rest = read_file(out, TEXT_BYTES).rpartition(b"\n")
    if rest:
        write_bytes(out, whole + b"\n")
    header, *rows = csv.reader(whole.decode(errors="surrogateescape").splitlines())
    if tuple(header) != COLUMNS:
        raise ConfigError(f"{out} is another table. Give a new name to --out.")
    return {str(plain_cell(row[0])) for row in rows if row}


def _new_images(folder: Path, judged: set[str]) -> list[Path]:
    try:
        return [path for path in find_images(folder) if str(path) not in judged]
    except ImageFolderError:  # nothing has come yet
        return []


def _age(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _line(row: list[object]) -> str:
    return csv_bytes([row]).decode(errors="surrogateescape").rstrip("\r\n")
