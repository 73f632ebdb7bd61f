"""Candidates among drawings and noise: planted copies are among them, however the images are searched."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from autoencode.duplicates import candidates
from autoencode.duplicates.sketches import THUMBNAIL, Sketches
from autoencode.models.backbones import BACKBONE
from autoencode.models.efficientnet import LAST

COUNT, COPIED = 600, 60


@pytest.fixture(scope="module")
def sketches() -> Sketches:
    """600 blurred noises; the last 60 are mirrored copies of the first, with a little noise."""
    rng = np.random.default_rng(0)
    noise = gaussian_filter(rng.normal(size=(COUNT, THUMBNAIL, THUMBNAIL)), (0, 3, 3))
    thumbnails = 127 + 40 * noise / noise.std((1, 2), keepdims=True)
    features = rng.normal(size=(COUNT, BACKBONE.block_channels[LAST]))
    thumbnails[-COPIED:] = thumbnails[:COPIED, :, ::-1] + rng.normal(size=(COPIED, THUMBNAIL, THUMBNAIL))
    return Sketches(
        names=[str(number) for number in range(COUNT)],
        bytes=np.ones(COUNT, np.int64),
        times=np.zeros(COUNT, np.int64),
        digests=np.zeros((COUNT, 32), np.uint8),
        sizes=np.full((COUNT, 2), 100),
        thumbnails=thumbnails.clip(0, 255).astype(np.uint8),
        boxes=np.tile(np.array([-1, -1, 1, 1], np.float32), (COUNT, 1)),
        features=features.astype(np.float16),
        reasons=[""] * COUNT,
    )


@pytest.mark.parametrize("exact_limit", [5000, 100], ids=["every image compared", "nearest lists searched"])
def test_mirrored_copies_are_candidates(
    sketches: Sketches, exact_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "_EXACT_LIMIT", exact_limit)
    pairs = {tuple(pair) for pair in candidates.find_candidates(sketches).pairs.tolist()}
    planted = {(row, COUNT - COPIED + row) for row in range(COPIED)}
    assert planted <= pairs
    assert all(first < second for first, second in pairs)
