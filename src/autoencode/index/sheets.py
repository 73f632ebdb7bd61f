"""Pictures of what a search found: each query first, then its neighbours; near-duplicates in pairs.

Pixels are (H, W, 3) in 0..255.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.data.preprocessing import read_image
from autoencode.errors import ConfigError, ImageError
from autoencode.figures import contact_sheet, image_grid

if TYPE_CHECKING:
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.index.base import Neighbours
    from autoencode.index.duplicates import NearDuplicates

MOST_QUERIES, MOST_PAIRS = 24, 48  # a sheet of more is looked at by nobody
COLUMNS = 11
_GREY, _WHITE = 224, 255

Pixels = NDArray[np.uint8]


def neighbours_sheet(
    results: list[Neighbours], preprocessing: Preprocessing, limits: Limits | None = None
) -> Pixels:
    """Draw the first few queries, framed, each before its neighbours; a grey square where a file is gone.

    Args:
        results: from `Index.search` for files.
        preprocessing: how the files become pixels.
        limits: the largest files and pictures to read.

    Raises:
        ConfigError: there is no result that has a file as its query.
    """
    grids = []
    for result in results[:MOST_QUERIES]:
        if result.query is None:
            continue
        paths = [result.query, *(near.path for near in result.found)]
        pictures = [_picture(path, preprocessing, limits) for path in paths]
        scores = [f"{near.score:.3f}" for near in result.found]
        captions = [
            text if is_read else "gone"
            for text, (_, is_read) in zip([result.query.name, *scores], pictures, strict=True)
        ]
        pixels = np.stack([picture for picture, _ in pictures])
        grids.append(image_grid(pixels, captions=captions, columns=COLUMNS, highlight_first=True))
    if not grids:
        raise ConfigError("There is no result to draw.")
    return _stacked(grids)


def duplicates_sheet(
    found: NearDuplicates, preprocessing: Preprocessing, limits: Limits | None = None
) -> Pixels:
    """Draw pairs side by side: two of each group of exact copies, then near ones, nearest first.

    Raises:
        ConfigError: there is no pair.
    """
    groups, near = found.first(MOST_PAIRS)
    pairs = [(*_two(group, found.gone), "same bytes") for group in groups]
    pairs += [(pair.first, pair.second, f"{pair.score:.4f}") for pair in near]
    if not pairs:
        raise ConfigError("There is no pair to draw.")
    first, second = (
        np.stack([_picture(path, preprocessing, limits)[0] for path in side])
        for side in ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    )
    captions = [f"{text}{' (gone)' * bool({one, other} & found.gone)}" for one, other, text in pairs]
    return contact_sheet([("first", first), ("second", second)], captions=captions)


def _two(group: list[Path], gone: frozenset[Path]) -> tuple[Path, Path]:
    """The first two files of a group, those that are there before those that are gone."""
    first, second, *_ = sorted(group, key=lambda path: path in gone)
    return first, second


def _picture(path: Path, preprocessing: Preprocessing, limits: Limits | None) -> tuple[Pixels, bool]:
    try:
        return read_image(path, preprocessing, limits), True
    except ImageError:
        return np.full((preprocessing.height, preprocessing.width, 3), _GREY, np.uint8), False


def _stacked(grids: list[Pixels]) -> Pixels:
    sheet = np.full((sum(map(len, grids)), max(grid.shape[1] for grid in grids), 3), _WHITE, np.uint8)
    top = 0
    for grid in grids:
        sheet[top : top + len(grid), : grid.shape[1]] = grid
        top += len(grid)
    return sheet
