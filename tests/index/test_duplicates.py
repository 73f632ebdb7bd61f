"""Copies and near-duplicates that are known to be there, and none that are not."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import holds

from autoencode import ConfigError, Pack, Preprocessing, Run, build_index, train
from autoencode.data.preprocessing import read_image
from autoencode.index.duplicates import (
    NearDuplicates,
    NearPair,
    duplicates_sheet,
    exact_duplicates,
    nearest_pairs,
)
from autoencode.index.neighbours import NearestNeighbours, fit_vector_space


@pytest.fixture(scope="module")
def reduced(tiny_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model that starts at principal components: its codes say where things are from the first step."""
    out = tmp_path_factory.mktemp("runs") / "best"
    return train(tiny_pack.path, out, preset="best", epochs=1, code_size=12, widths=(4, 8), batch_size=8)


def test_pictures_saved_again_smaller_or_cropped_are_found_and_others_are_not(
    reduced: Run, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    originals = [path for path in sorted(folder.rglob("*.png")) if int(path.stem) % 10 not in (3, 7)][::5]
    wanted = set()
    for number, path in enumerate(originals):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        copy = path.with_name(f"{path.stem}-copy.png")
        width, height = picture.size
        if number % 3 == 0:
            copy = copy.with_suffix(".jpg")
            picture.save(copy, quality=60)
        elif number % 3 == 1:
            picture.resize((round(0.7 * width), round(0.7 * height)), Image.Resampling.BICUBIC).save(copy)
        else:
            box = (0.01 * width, 0.01 * height, 0.99 * width, 0.99 * height)
            picture.resize((width, height), Image.Resampling.BICUBIC, box).save(copy)
        wanted.add(frozenset((path, copy)))
    assert len(wanted) >= 6
    found = build_index(folder, tmp_path / "i", reduced.folder).near_duplicates()
    assert {frozenset((pair.first, pair.second)) for pair in found.near} == wanted
    assert found.exact == []
    assert [pair.score for pair in found.near] == sorted((pair.score for pair in found.near), reverse=True)


def test_files_of_the_same_bytes_are_groups_and_one_of_them_takes_part(
    reduced: Run, photos: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    path = sorted(folder.iterdir())[0]
    copies = [Path(shutil.copy(path, path.with_name(f"zz{number}.png"))) for number in range(2)]
    index = build_index(folder, tmp_path / "i", reduced.folder)
    assert exact_duplicates(index.entries, folder) == [[path, *copies]]
    everything = index.near_duplicates(threshold=-1)
    assert len(everything.near) == 16 * 15 // 2
    assert not {pair.first for pair in everything.near} & set(copies)


def test_the_nearest_pairs_are_kept_and_the_others_counted() -> None:
    codes = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    distances = np.linalg.norm(codes[:, None].astype(np.float64) - codes, axis=2)
    order = sorted((distances[i, j], i, j) for i in range(40) for j in range(i + 1, 40))
    pairs, more = nearest_pairs(NearestNeighbours(fit_vector_space(codes, "l2"), codes, None), 1.5, 10)
    assert [pair[:2] for pair in pairs] == [(i, j) for _, i, j in order[:10]]
    assert more == sum(distance <= 1.5 for distance, _, _ in order) - 10


def test_a_threshold_that_no_score_can_have_is_rejected(reduced: Run, photos: Path, tmp_path: Path) -> None:
    index = build_index(photos, tmp_path / "i", reduced.folder)
    with pytest.raises(ConfigError, match=r"threshold is 2.*from -1 to 1"):
        index.near_duplicates(2)
    with pytest.raises(ConfigError, match="limit of pairs is 0"):
        index.near_duplicates(limit=0)
    distances = build_index(photos, tmp_path / "i", reduced.folder, distance="l2")
    assert distances.near_duplicate_threshold > 0
    with pytest.raises(ConfigError, match="from 0"):
        distances.near_duplicates(-0.5)


@pytest.mark.parametrize(
    ("groups", "pairs", "shown"),
    [(9, 9, (3, 3)), (9, 1, (5, 1)), (1, 9, (1, 5)), (9, 0, (6, 0)), (0, 2, (0, 2))],
)
def test_both_kinds_are_among_the_first(groups: int, pairs: int, shown: tuple[int, int]) -> None:
    pair = NearPair(Path("a"), Path("b"), 0.9)
    found = NearDuplicates([[Path("a"), Path("c")]] * groups, [pair] * pairs, 0, 0.9)
    assert tuple(map(len, found.head(6))) == shown


def test_a_sheet_of_pairs_shows_copies_and_near_ones(trained: Run, photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos / "coast", tmp_path / "coast"))
    first = sorted(folder.iterdir())[0]
    shutil.copy(first, folder / "zz.png")
    index = build_index(folder, tmp_path / "i", trained.folder)
    found = index.near_duplicates(threshold=-1, limit=2)
    sheet = duplicates_sheet(found, index.preprocessing)
    for path in (first, found.near[1].first, found.near[1].second):
        assert holds(sheet, read_image(path, index.preprocessing).repeat(4, 0).repeat(4, 1))


def test_a_sheet_without_a_pair_is_an_error(tiny_size: Preprocessing) -> None:
    with pytest.raises(ConfigError, match="no pair to draw"):
        duplicates_sheet(NearDuplicates([], [], 0, 0.9), tiny_size)
