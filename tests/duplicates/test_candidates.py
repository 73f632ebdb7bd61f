"""Candidates among drawings and noise: planted copies are among them, however the images are searched."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from autoencode.duplicates import candidates
from autoencode.duplicates.features import THUMBNAIL, Sketches
from autoencode.models.backbones import BACKBONE
from autoencode.models.efficientnet import LAST

COUNT, COPIED = 600, 60


def described(thumbnails: NDArray[np.uint8], features: NDArray[np.float64]) -> Sketches:
    count = len(thumbnails)
    return Sketches(
        names=[str(number) for number in range(count)],
        bytes=np.ones(count, np.int64),
        times=np.zeros(count, np.int64),
        digests=np.zeros((count, 32), np.uint8),
        sizes=np.full((count, 2), 100),
        thumbnails=thumbnails,
        boxes=np.tile(np.array([-1, -1, 1, 1], np.float32), (count, 1)),
        features=features.astype(np.float16),
        reasons=[""] * count,
    )


@pytest.fixture(scope="module")
def sketches() -> Sketches:
    """600 blurred noises; the last 60 are mirrored copies of the first, with a little noise."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(COUNT, THUMBNAIL, THUMBNAIL)), (0, 3, 3))
    thumbnails = 127 + 40 * noise / noise.std((1, 2), keepdims=True)
    features = rng.normal(size=(COUNT, BACKBONE.block_channels[LAST]))
    thumbnails[-COPIED:] = thumbnails[:COPIED, :, ::-1] + rng.normal(size=(COPIED, THUMBNAIL, THUMBNAIL))
    return described(thumbnails.clip(0, 255).astype(np.uint8), features)


@pytest.mark.parametrize("exact_limit", [5000, 100], ids=["every image compared", "nearest lists searched"])
def test_mirrored_copies_are_candidates(
    sketches: Sketches, exact_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_EXACT_LIMIT", exact_limit)
    pairs = {tuple(pair) for pair in candidates.find_candidates(sketches).pairs.tolist()}
    planted = {(row, COUNT - COPIED + row) for row in range(COPIED)}
    assert planted <= pairs
    assert all(first < second for first, second in pairs)


def test_a_part_of_a_page_is_a_candidate_though_all_pages_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of words in the same places: pages differ in the words alone, and so do the parts of them."""
    for search in ("THUMBNAIL", "WHITENED", "FEATURES"):
        monkeypatch.setattr(candidates, f"LEAST_{search}", 2)  # the windows have to find it
    rng, count = np.random.default_rng(1), 80
    pages = np.full((count, 256, 256), 255.0)
    for top in range(20, 236, 12):
        words = rng.random((count, 27)) < 0.7
        pages[:, top : top + 6, 20:236] = np.where(np.repeat(words, 8, 1), 60, 255)[:, None]
    parts = zoom(pages[:20, 32:-32, 32:-32], (1, 256 / 192, 256 / 192), order=1)
    images = np.concatenate([pages, parts])
    thumbnails = images.reshape(-1, THUMBNAIL, 8, THUMBNAIL, 8).mean((2, 4)).round().astype(np.uint8)
    made = described(thumbnails, rng.normal(size=(count + 20, BACKBONE.block_channels[LAST])))
    found = candidates.find_candidates(made)
    rows = [np.flatnonzero((found.pairs == [page, count + page]).all(1)) for page in range(20)]
    assert sum(map(len, rows)) >= 19
    # The part is the middle of the page: points of the page move away from its centre.
    guesses = [found.guesses[found.guessed == row[0]] for row in rows if len(row)]
    wanted = np.array([[4 / 3, 0, 0], [0, 4 / 3, 0]])
    assert all(abs(maps - wanted).max((1, 2)).min() < 0.01 for maps in guesses)
