"""Draw what a search found as one picture: each query before its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from autoencode.data.preprocessing import read_image
from autoencode.errors import ConfigError, ImageError
from autoencode.figures import image_grid

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.index.base import Neighbours

_MOST_QUERIES = 24  # nobody looks through a longer sheet
_SHEET_COLUMNS = 11  # a query and the ten neighbours that a search gives by default
_GREY = 224


def neighbours_sheet(
    results: list[Neighbours], preprocessing: Preprocessing, limits: Limits | None = None
) -> NDArray[np.uint8]:
    """Draw the first 24 queries, framed, each before its neighbours; a grey square where a file is gone.

    Args:
        results: from `Index.search` for files.
        preprocessing: how the files become pixels.
        limits: the largest files and pictures to read.

    Returns:
        The sheet, (height, width, 3).

    Raises:
        ConfigError: no result has a file as its query.
    """
    grids = []
    for result in results[:_MOST_QUERIES]:
        if result.query is None:
            continue
        paths = [result.query, *(near.path for near in result.found)]
        pictures = [_picture_of(path, preprocessing, limits) for path in paths]
        captions = ["nothing close" if result.nothing_close else result.query.name]
        captions += [near.score_text(" / ", 3) for near in result.found]
        # A score under a grey square would look like that of a picture that is grey.
        captions = [
            text if is_read else "gone" for text, (_, is_read) in zip(captions, pictures, strict=True)
        ]
        pixels = np.stack([picture for picture, _ in pictures])
        grids.append(image_grid(pixels, captions=captions, columns=_SHEET_COLUMNS, highlight_first=True))
    if not grids:
        raise ConfigError("There is no result to draw.")
    width = max(grid.shape[1] for grid in grids)
    margins = [((0, 0), (0, width - grid.shape[1]), (0, 0)) for grid in grids]
    white = 255
    return np.concatenate(
        [np.pad(grid, margin, constant_values=white) for grid, margin in zip(grids, margins, strict=True)]
    )


def _picture_of(
    path: Path, preprocessing: Preprocessing, limits: Limits | None
) -> tuple[NDArray[np.uint8], bool]:
    """Return the pixels (H, W, 3) of a file and True; a grey square and False if it cannot be read."""
    try:
        return read_image(path, preprocessing, limits), True
    except ImageError:
        return np.full((preprocessing.height, preprocessing.width, 3), _GREY, np.uint8), False
