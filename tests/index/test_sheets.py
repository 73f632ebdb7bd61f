"""Sheets of what was found: what is where, and what is gone."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from autoencode import ConfigError, NearDuplicates, Neighbours, Run, build_index
from autoencode.data.preprocessing import read_image
from autoencode.index.sheets import duplicates_sheet, neighbours_sheet


def holds(sheet: np.ndarray, picture: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Whether the enlarged picture is somewhere on the sheet."""
    height, width = picture.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (height, width))
    corner = windows[:, :, :: height - 1, :: width - 1] == picture[:: height - 1, :: width - 1, 0]
    return any(
        (windows[y, x] == picture[..., 0]).all() for y, x in zip(*np.nonzero(corner.all((2, 3))), strict=True)
    )


def test_a_sheet_shows_the_query_its_neighbours_and_what_is_gone(
    trained: Run, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    index = build_index(trained.folder, folder, tmp_path / "i")
    paths = sorted(folder.iterdir())
    (found,) = index.search(paths[0], 3).results
    shown = [
        read_image(path, index.preprocessing) for path in (paths[0], *(near.path for near in found.found))
    ]
    found.found[1].path.unlink()
    sheet = neighbours_sheet([found], index.preprocessing)
    tiles = [picture.repeat(4, 0).repeat(4, 1) for picture in shown]
    assert [holds(sheet, tile) for tile in tiles] == [True, True, False, True]
    assert holds(sheet, np.full((128, 128, 3), 224, np.uint8))
    assert len(neighbours_sheet([found, found], index.preprocessing)) == 2 * len(sheet)


def test_a_sheet_of_pairs_shows_copies_and_near_ones(trained: Run, photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "zz.png")
    index = build_index(trained.folder, folder, tmp_path / "i")
    found = index.near_duplicates(threshold=-1, limit=2)
    sheet = duplicates_sheet(found, index.preprocessing)
    for path in (first, found.near[1].first, found.near[1].second):
        assert holds(sheet, read_image(path, index.preprocessing).repeat(4, 0).repeat(4, 1))


def test_nothing_to_draw_is_an_error(trained: Run, photos: Path, tmp_path: Path) -> None:
    index = build_index(trained.folder, photos, tmp_path / "i")
    with pytest.raises(ConfigError, match="no result to draw"):
        neighbours_sheet([Neighbours(None, ())], index.preprocessing)
    with pytest.raises(ConfigError, match="no pair to draw"):
        duplicates_sheet(NearDuplicates([], [], 0, 0.9), index.preprocessing)
