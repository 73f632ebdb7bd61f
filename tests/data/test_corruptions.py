"""Corruptions against their own definition, and against torch's dropout and Pillow's rotation."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image

from autoencode import Pack
from autoencode.data.augmentation import horizontal_flip, random_shift
from autoencode.data.corruptions import (
    CORRUPTIONS,
    Corruption,
    check_size,
    corrupt,
    example,
    parse_corruptions,
)
from autoencode.data.damage import convolved
from autoencode.data.loader import LocalBatch, batches, local_batch
from autoencode.errors import ConfigError
from autoencode.pixels import to_float, to_pixels

IMAGES = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def apply(*texts: str, training: bool = True, seed: int = 0, images: torch.Tensor = IMAGES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return corrupt(images, parse_corruptions(texts), generator, training=training)


def test_gaussian_noise_has_the_mean_and_deviation_asked_for_and_is_not_clipped() -> None:
    noise = apply("gaussian:0.3", images=torch.full((32, 3, 32, 32), 0.9)) - 0.9
    assert noise.mean().item() == pytest.approx(0, abs=0.005)
    assert noise.std().item() == pytest.approx(0.3, rel=0.01)
    assert (noise + 0.9).max() > 1


def test_dropout_rescales_the_rest_as_torch_does() -> None:
    ones = torch.ones(64, 3, 32, 32)
    found = apply("dropout:0.3", images=ones)
    assert set(found.unique().tolist()) == set(F.dropout(ones, 0.3).unique().tolist())
    assert (found == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)


def test_dropout_is_off_outside_training() -> None:
    assert apply("dropout:0.3", training=False) is IMAGES


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_a_function_of_the_images_and_the_seed_and_leaves_the_images_alone(name: str) -> None:
    images = IMAGES.clone()
    found = apply(example(name), images=images, seed=3)
    assert torch.equal(images, IMAGES)
    assert (found.shape, found.dtype) == (IMAGES.shape, IMAGES.dtype)
    assert not torch.equal(found, IMAGES)
    assert torch.equal(found, apply(example(name), seed=3))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_memory_format_of_the_images_does_not_change_the_corruption(name: str) -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(apply(example(name)), apply(example(name), images=last))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_is_offered_can_be_used_and_reads_as_it_is_written(name: str) -> None:
    for amount, words in CORRUPTIONS[name].page_choices:
        assert str(Corruption(name, amount)) == f"{name}:{amount:g}"
        assert words


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("blur", "downscale", "jpeg")])
def test_another_seed_gives_another_corruption(name: str) -> None:
    assert not torch.equal(apply(example(name), seed=3), apply(example(name), seed=4))


def test_the_memory_format_of_the_images_does_not_change_the_noise() -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        apply("gaussian:0.3", "dropout:0.5"), apply("gaussian:0.3", "dropout:0.5", images=last)
    )


def test_rotation_is_that_of_pillow_in_the_middle_of_an_oblong_image() -> None:
    rows, columns = np.mgrid[0:64, 0:96]
    smooth = (np.stack([rows * 2, columns * 2, rows + columns], -1)).astype(np.uint8)
    images = torch.from_numpy(smooth).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(5)
    angle = (2 * torch.rand(1, generator=torch.Generator().manual_seed(5)).item() - 1) * 30
    found = corrupt(images, [Corruption("rotate", 30)], generator, training=True)[0].permute(1, 2, 0) * 255
    either_way = [
        np.asarray(Image.fromarray(smooth).rotate(turn, Image.Resampling.BILINEAR), np.float32)
        for turn in (angle, -angle)
    ]
    middle = (slice(20, 44), slice(32, 64))
    errors = [np.abs(found.numpy()[middle] - turned[middle]).max() for turned in either_way]
    assert min(errors) < 1.5 < max(errors)


def test_downscaling_averages_areas_before_it_enlarges() -> None:
    flat = torch.full((1, 3, 16, 16), 0.2)
    torch.testing.assert_close(apply("downscale:4", images=flat), flat)
    checks = (torch.arange(16)[:, None] + torch.arange(16)[None]) % 2
    grey = apply("downscale:2", images=checks.float().expand(1, 3, 16, 16))
    torch.testing.assert_close(grey, torch.full_like(grey, 128 / 255))


def test_the_small_image_that_is_enlarged_is_one_of_8_bits() -> None:
    averaged = F.avg_pool2d(IMAGES, 4)
    small = to_float(to_pixels(averaged))
    assert not torch.equal(small, averaged)
    expected = F.interpolate(small, IMAGES.shape[-2:], mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(apply("downscale:4"), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.001, 0.1, 0.25, 0.6, 0.99])
def test_a_mask_fills_one_rectangle_of_that_share_of_the_area_with_grey(share: float) -> None:
    images = torch.rand(300, 3, 32, 48).clamp(0, 0.49)
    found = apply(f"mask:{share}", images=images)
    masked = (found == 0.5).all(1)
    assert torch.equal(found, torch.where(masked[:, None], 0.5, images))
    tall, wide = masked.any(2).sum(1), masked.any(1).sum(1)
    for each, height, width in zip(masked, tall, wide, strict=True):
        row, column = each.any(1).nonzero()[0], each.any(0).nonzero()[0]
        assert each[row : row + height, column : column + width].all()
    assert torch.equal(masked.sum((1, 2)), tall * wide)
    assert (tall * wide - max(1, share * 32 * 48)).abs().le(tall / 2).all()


def test_masks_lie_anywhere_and_are_of_several_shapes() -> None:
    masked = (apply("mask:0.25", images=torch.zeros(300, 3, 32, 48)) == 0.5).all(1)
    assert masked.any(0).any(0)[[0, -1]].all()
    assert masked.any(0).any(1)[[0, -1]].all()
    heights = masked.any(2).sum(1)
    assert heights.min() < 16 < heights.max()


def test_jpeg_is_what_a_file_of_that_quality_holds_whatever_the_seed(tmp_path: Path) -> None:
    images = to_float(skimage.data.chelsea()[None, :96, :160])
    Image.fromarray(to_pixels(images)[0]).save(tmp_path / "a.jpg", quality=10)
    found = apply("jpeg:10", images=images, seed=1)
    assert np.array_equal(to_pixels(found)[0], np.asarray(Image.open(tmp_path / "a.jpg")))
    assert torch.equal(found, apply("jpeg:10", images=images, seed=2))


def test_jpeg_damages_less_at_a_higher_quality_and_clips_noise() -> None:
    images = to_float(skimage.data.chelsea()[None, :96, :160])
    errors = [(apply(f"jpeg:{quality}", images=images) - images).abs().mean() for quality in (1, 10, 50, 95)]
    assert errors == sorted(errors, reverse=True)
    white = torch.full((1, 3, 16, 16), 1.7)
    torch.testing.assert_close(apply("jpeg:50", images=white), torch.ones_like(white))


@pytest.mark.parametrize(
    "text", ["", "haze:2", "gaussian", "gaussian:x", "gaussian:-1", "gaussian:nan", "gaussian:inf",
             "gaussian:11", "dropout:1", "rotate:181", "downscale:1.5", "downscale:1", "mask:0", "mask:1",
             "jpeg:0", "jpeg:96", "jpeg:9.5",
             "gaussian:0.3-", "gaussian:0-11", "poisson:0-10", "jpeg:0-10", "blur:1-nan", "blur:21", "mask:0"]
)  # fmt: skip
def test_what_cannot_be_used_is_rejected_with_what_can(text: str) -> None:
    with pytest.raises(ConfigError, match="Use "):
        parse_corruptions([text])


def test_a_corruption_reads_as_it_is_written() -> None:
    assert [str(c) for c in parse_corruptions(["gaussian:0.30", "downscale:4"])] == [
        "gaussian:0.3",
        "downscale:4",
    ]
    chain = ["gaussian:0.001-0.5/jpeg:5-50/downscale:1-4", "blur:1e-1-2"]
    assert list(map(str, parse_corruptions(chain))) == [chain[0], "blur:0.1-2"]


def test_a_range_is_written_from_its_least_to_its_greatest() -> None:
    with pytest.raises(ConfigError, match=r"Cannot corrupt by gaussian:0\.5-0\.3: the least"):
        parse_corruptions(["gaussian:0.5-0.3"])


def test_each_image_draws_its_amount_uniformly_from_a_range() -> None:
    noise = apply("gaussian:0-0.6", images=torch.full((400, 3, 16, 16), 0.5)) - 0.5
    deviations = noise.flatten(1).std(1) / 0.6
    assert scipy.stats.kstest(deviations.numpy(), "uniform").pvalue > 0.01
    lost = (apply("dropout:0-0.8", images=torch.ones(400, 3, 16, 16)) == 0).float().flatten(1).mean(1) / 0.8
    assert scipy.stats.kstest(lost.numpy(), "uniform").pvalue > 0.01


def test_a_range_of_whole_numbers_draws_both_ends_and_what_is_between_them_equally_often() -> None:
    images = torch.rand(300, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = apply("downscale:1-4", images=images)
    every = [images, *(apply(f"downscale:{factor}", images=images) for factor in (2, 3, 4))]
    same = torch.stack([(found - one).abs().amax((1, 2, 3)) < 1e-6 for one in every], 1)
    assert torch.equal(same.sum(1), torch.ones(300, dtype=torch.int64))
    assert scipy.stats.chisquare(same.sum(0).numpy()).pvalue > 0.01


def test_each_image_draws_one_of_the_alternatives() -> None:
    images = torch.full((300, 3, 16, 16), 0.2)
    found = apply("mask:0.2/gaussian:0.1/downscale:2", images=images)
    masked = (found == 0.5).any(1).any(1).any(1)
    unchanged = (found - images).abs().amax((1, 2, 3)) < 1e-6
    kinds = torch.stack([masked, unchanged, ~masked & ~unchanged]).sum(1)
    assert scipy.stats.chisquare(kinds.numpy()).pvalue > 0.01
    assert not unchanged[masked].any()


def test_poisson_noise_has_the_variance_of_counted_photons() -> None:
    images = torch.full((64, 3, 32, 32), 0.5)
    counts = apply("poisson:20", images=images) * 20
    assert torch.equal(counts, counts.round())
    assert counts.mean().item() == pytest.approx(10, rel=0.01)
    assert counts.var().item() == pytest.approx(10, rel=0.02)


def test_clipped_noise_is_that_of_a_file_of_8_bits() -> None:
    noise = apply("clipped-noise:0.1", images=torch.full((32, 3, 32, 32), 0.5)) - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    found = apply("clipped-noise:0.3", images=torch.ones(32, 3, 32, 32))
    assert torch.equal(to_float(to_pixels(found)), found)
    # The mean of what is left of noise of deviation s that is cut off at 0 is s / sqrt(2 pi) below it.
    assert 1 - found.mean().item() == pytest.approx(0.3 / math.sqrt(2 * math.pi), rel=0.02)


def test_camera_noise_has_the_deviation_asked_for_before_it_is_softened_less_by_jpeg() -> None:
    images = torch.full((32, 3, 64, 64), 0.5)
    noise = apply("camera-noise:0.1", images=images) - 0.5
    brightness = noise.mean(1).flatten(1).std(1)
    assert 0.03 < brightness.min() < brightness.max() < 0.12
    # Softened in part of the images: neighbours are then alike.
    alike = (noise[..., 1:] * noise[..., :-1]).flatten(1).mean(1) / noise.square().flatten(1).mean(1)
    assert alike.min() < 0.2
    assert alike.max() > 0.6


def test_salt_and_pepper_sets_that_share_to_black_and_white_in_equal_numbers() -> None:
    images = torch.full((64, 3, 32, 32), 0.5)
    found = apply("salt-and-pepper:0.1", images=images)
    assert set(found.unique().tolist()) == {0, 0.5, 1}
    for value in (0, 1):
        assert (found == value).float().mean().item() == pytest.approx(0.05, rel=0.1)
    whole = ((found != 0.5).sum(1) % 3 == 0).flatten(1).all(1)  # of these images no pixel is lost in part
    assert 20 <= whole.sum() <= 44


def test_a_blur_is_the_gaussian_filter_of_scipy() -> None:
    for sigma in (0.4, 1.0, 2.5):
        expected = scipy.ndimage.gaussian_filter(
            IMAGES.numpy(),
            (0, 0, sigma, sigma),
            mode="mirror",
            radius=(0, 0, math.ceil(4 * sigma), math.ceil(4 * sigma)),
        )
        blurred = convolved(IMAGES, sigma)
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)
        assert torch.equal(apply(f"blur:{sigma}"), to_float(to_pixels(blurred)))


def test_a_blur_can_be_wider_than_the_image() -> None:
    assert apply("blur:20").std(dim=(2, 3)).max() < 0.1


def test_the_size_is_checked_for_every_alternative_and_the_end_of_a_range() -> None:
    check_size(parse_corruptions(["gaussian:0.1/downscale:2-8"]), 8, 16)
    with pytest.raises(ConfigError, match="at most 8"):
        check_size(parse_corruptions(["gaussian:0.1/downscale:2-9"]), 8, 16)


@pytest.mark.parametrize(
    "text",
    ["gaussian:0-0.5", "jpeg:5-50", "mask:0-0.5", "rotate:0-30", "blur:0-2/downscale:1-4/poisson:5-90"],
)
def test_an_image_draws_the_same_in_a_local_batch_as_in_the_batch(text: str) -> None:
    chain = parse_corruptions([text, "gaussian:0-0.1"])

    def part(local: LocalBatch) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return corrupt(IMAGES[local.positions], chain, generator, training=True, local=local)

    parts = [part(local_batch(len(IMAGES), rank, 3)) for rank in range(3)]
    torch.testing.assert_close(torch.cat(parts), apply(text, "gaussian:0-0.1"))


def test_an_image_meets_the_same_chance_in_a_local_batch_as_in_the_batch(tiny_pack: Pack) -> None:
    images = next(batches(tiny_pack, tiny_pack.rows(), 7))
    chain = parse_corruptions(["gaussian:0.3", "dropout:0.2", "rotate:20"])

    def damaged(part: slice, **local: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        flipped = horizontal_flip(images[part], generator, *local.values())  # type: ignore[arg-type]
        moved = random_shift(flipped, 2, generator, *local.values())  # type: ignore[arg-type]
        return corrupt(moved, chain, generator, training=True, **local)  # type: ignore[arg-type]

    parts = [
        damaged(local.positions, local=local) for local in (local_batch(7, rank, 3) for rank in range(3))
    ]
    np.testing.assert_allclose(torch.cat(parts), damaged(slice(None)), atol=1e-6)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_meets_the_same_corruption_in_a_local_batch_as_in_the_batch(name: str) -> None:
    chain = parse_corruptions([example(name)])

    def part(local: LocalBatch) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return corrupt(IMAGES[local.positions], chain, generator, training=True, local=local)

    torch.testing.assert_close(
        torch.cat([part(local_batch(len(IMAGES), rank, 3)) for rank in range(3)]), apply(example(name))
    )


def test_an_unknown_corruption_is_rejected_with_all_there_are() -> None:
    with pytest.raises(ConfigError, match="Cannot corrupt by haze:2") as error:
        Corruption("haze", 2)
    assert all(f"{name}:{kind.parameter}" in str(error.value) for name, kind in CORRUPTIONS.items())
