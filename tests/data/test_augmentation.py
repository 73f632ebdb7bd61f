"""Patches come from random places at several scales, and flips turn half of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoencode.data import augmentation
from autoencode.data.augmentation import horizontal_flip, random_patch
from autoencode.data.loader import local_batch

IMAGES = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_a_patch_is_cut_from_a_random_place_and_is_the_same_in_a_local_batch() -> None:
    rows, columns = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
    images = torch.stack([rows, columns, torch.zeros_like(rows)]).float().expand(300, 3, 20, 30)
    patches = random_patch(images, 16, torch.Generator().manual_seed(0))
    tops, lefts = patches[:, 0, 0, 0], patches[:, 1, 0, 0]
    assert torch.equal(patches[:, 0] - tops[:, None, None], images[:, 0, :16, :16])
    assert torch.equal(patches[:, 1] - lefts[:, None, None], images[:, 1, :16, :16])
    assert (tops.unique().tolist(), lefts.unique().tolist()) == (list(range(5)), list(range(15)))
    local = local_batch(300, 1, 3)
    part = random_patch(images[local.positions], 16, torch.Generator().manual_seed(0), local)
    assert torch.equal(part, patches[local.positions])
    larger = torch.rand(300, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    scaled = random_patch(larger, 16, torch.Generator().manual_seed(0), scaled=True)
    part = random_patch(larger[local.positions], 16, torch.Generator().manual_seed(0), local, scaled=True)
    assert torch.equal(part, scaled[local.positions])


def test_a_patch_larger_than_the_image_is_the_image() -> None:
    assert torch.equal(random_patch(IMAGES, 64, torch.Generator()), IMAGES)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_scaled_patch_is_the_average_of_a_larger_one(scale: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "SCALES", (scale,))
    images = torch.rand(20, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    for patch, image in zip(random_patch(images, 16, torch.Generator(), scaled=True), images, strict=True):
        means = image.unfold(1, scale, 1).unfold(2, scale, 1).mean((-1, -2))  # around every place
        side = 16 * scale
        found = [
            torch.allclose(patch, means[:, top : top + side : scale, left : left + side : scale], atol=1e-6)
            for top in range(41 - side)
            for left in range(49 - side)
        ]
        assert sum(found) == 1


def test_every_scale_is_drawn_as_often() -> None:
    # Averaging white noise over f x f values divides its deviation by f.
    images = torch.randn(300, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    patches = random_patch(images, 16, torch.Generator().manual_seed(0), scaled=True)
    factors = (1 / patches.flatten(1).std(1)).round().int().tolist()
    assert sorted(set(factors)) == [1, 2, 4]
    assert min(map(factors.count, (1, 2, 4))) > 75


def test_a_small_image_is_mirrored_where_it_has_not_enough_for_a_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augmentation, "SCALES", (4,))
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = random_patch(image, 16, torch.Generator(), scaled=True)
    small = image[0].unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2)).numpy()
    expected = np.pad(small, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_an_image_that_is_hardly_larger_than_the_patch_is_not_averaged() -> None:
    plain = random_patch(IMAGES, 17, torch.Generator().manual_seed(0))
    assert torch.equal(random_patch(IMAGES, 17, torch.Generator().manual_seed(0), scaled=True), plain)


def test_a_flip_turns_half_of_the_images_around() -> None:
    images = torch.rand(400, 3, 2, 4)
    flipped = horizontal_flip(images, torch.Generator().manual_seed(0))
    turned = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert sum(turned) + sum(kept) == 400
    assert 160 < sum(turned) < 240
