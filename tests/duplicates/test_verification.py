"""Pairs screened by guesses: those of copies stay, and next to none of other images."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from autoencode.duplicates.candidates import Candidates, find_candidates
from autoencode.duplicates.features import sketch_pixels
from autoencode.duplicates.verification import Verifier

COUNT = 600
RNG = np.random.default_rng(0)


def noises() -> NDArray[np.uint8]:
    """Return (600, 128, 128): outlines that many share, and details of their own."""
    values = np.zeros((COUNT, 32, 32))
    for sigma, share in ((5, 1.0), (0.75, 0.5)):
        made = gaussian_filter(RNG.normal(size=values.shape), (0, sigma, sigma))
        values += share * made / made.std((1, 2), keepdims=True)
    return (127 + 40 * values).clip(0, 255).astype(np.uint8).repeat(4, 1).repeat(4, 2)


@pytest.fixture(scope="module")
def screened() -> tuple[Candidates, set[tuple[int, int]]]:
    """Of 600 noises, the last 80 are a mirror image, a turn, the middle and a corner of the first 80."""
    images = noises()
    for row, part in (
        (0, np.s_[:, ::-1]),
        (1, np.s_[::-1, :]),
        (2, np.s_[16:-16, 16:-16]),
        (3, np.s_[32:, 32:]),
    ):
        for number in range(20):
            seen = images[row * 20 + number][part]
            seen = np.rot90(seen) if row == 1 else zoom(seen, 128 / len(seen), order=1)
            images[COUNT - 80 + row * 20 + number] = seen
    sketches = sketch_pixels(np.repeat(images[..., None], 3, -1), np.full((COUNT, 2), 128))
    # Descriptions that tell nothing: pairs found by them alone are other images.
    features = RNG.normal(size=sketches.features.shape).astype(np.float16)
    sketches.features[:] = features
    candidates = find_candidates(sketches)
    kept = Verifier(sketches, lambda row: images[row], is_thorough=False).screened(candidates)
    return candidates, {(one, other) for one, other in kept.tolist()}


@pytest.mark.parametrize("row", range(4), ids=["mirrored", "mirrored and turned", "middle", "corner"])
def test_copies_pass_the_screen(screened: tuple[Candidates, set[tuple[int, int]]], row: int) -> None:
    _, kept = screened
    planted = {(row * 20 + number, COUNT - 80 + row * 20 + number) for number in range(20)}
    assert len(planted & kept) >= 19


def test_other_pairs_do_not_pass_the_screen(screened: tuple[Candidates, set[tuple[int, int]]]) -> None:
    candidates, kept = screened
    assert len(candidates.pairs) > 400
    assert len(kept) < 80 + 0.1 * (len(candidates.pairs) - 80)


def test_a_guess_is_a_map_from_the_first_image_to_the_second(
    screened: tuple[Candidates, set[tuple[int, int]]],
) -> None:
    candidates, _ = screened
    # The middle of image 40, three quarters of a side, is all of its copy: points move away from the centre.
    (pair,) = np.flatnonzero((candidates.pairs == [40, COUNT - 40]).all(1))
    guesses = candidates.guesses[candidates.guessed == pair]
    wanted = np.array([[4 / 3, 0, 0], [0, 4 / 3, 0]])
    assert abs(guesses - wanted).max((1, 2)).min() < 0.1
