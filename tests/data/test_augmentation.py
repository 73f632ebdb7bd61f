"""Patches come from random places at several scales, and flips turn half of the images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autoencode.data import augmentation
from autoencode.data.augmentation import horizontal_flip, random_patch, random_shift
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
def test_a_scaled_patch_is_between_the_average_and_every_other_pixel_of_a_larger_one(
    scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmentation, "SCALES", (scale,))
    images = torch.rand(20, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    side, weights = 16 * scale, []
    for patch, image in zip(random_patch(images, 16, torch.Generator(), scaled=True), images, strict=True):
        larger = image.unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4)  # at every place
        blocks = larger.unfold(3, scale, scale).unfold(4, scale, scale)
        mean, one = blocks.mean((-1, -2)), blocks[..., scale // 2, scale // 2]
        # The weight that comes closest to the patch at each place.
        weight = ((patch - mean) * (one - mean)).sum((2, 3, 4)) / (one - mean).square().sum((2, 3, 4))
        weight = weight.nan_to_num()[..., None, None, None]
        errors = (torch.lerp(mean, one, weight) - patch).abs().amax((2, 3, 4)).flatten()
        assert int((errors < 1e-5).sum()) == 1
        weights.append(float(weight.flatten()[errors.argmin()]))
    if scale > 1:
        assert 0 <= min(weights) < 0.2 < 0.8 < max(weights) <= 1


def test_half_of_the_patches_are_of_the_smallest_scale() -> None:
    ramp = torch.arange(64.0).expand(300, 3, 64, 64)  # so many levels a pixel as it was made smaller
    patches = random_patch(ramp, 16, torch.Generator().manual_seed(0), scaled=True)
    factors = patches[:, 0, 0].diff(dim=1).mean(1).round().int().tolist()
    assert sorted(set(factors)) == [1, 2, 4]
    assert min(map(factors.count, (1, 2))) > 55
    assert 130 < factors.count(4) < 170


def test_a_small_image_is_mirrored_where_it_has_not_enough_for_a_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(augmentation, "SCALES", (4,))
    # Equal within blocks of four, so that an average is one of them.
    blocks = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    image = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = random_patch(image, 16, torch.Generator(), scaled=True)
    expected = np.pad(blocks[0].numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect")
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


def test_each_shift_is_as_likely_as_any_other_and_border_pixels_are_repeated() -> None:
    images = torch.rand(2_000, 3, 6, 9)
    shifted = random_shift(images, 2, torch.Generator().manual_seed(0))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    found = np.zeros((5, 5), int)
    for down in range(5):
        for across in range(5):
            wanted = padded[:, :, down : down + 6, across : across + 9]
            found[down, across] = (shifted.numpy() == wanted).all((1, 2, 3)).sum()
    assert found.sum() == 2_000
    assert found.min() > 50
    assert found.max() < 115


def test_a_shift_of_zero_leaves_images_unchanged() -> None:
    assert torch.equal(random_shift(IMAGES, 0, torch.Generator().manual_seed(0)), IMAGES)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_shifted_images_lie_in_memory_as_the_images_do(memory_format: torch.memory_format) -> None:
    images = IMAGES.contiguous(memory_format=memory_format)
    shifted = random_shift(images, 1, torch.Generator().manual_seed(0))
    assert shifted.is_contiguous(memory_format=memory_format)
