"""Pixels to images and back, against NumPy."""

import numpy as np
import torch

from autoencode.pixels import to_float, to_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), np.uint8)


def test_pixels_become_floats_of_their_255th_channels_first() -> None:
    images = to_float(PIXELS)
    assert (images.shape, images.dtype) == ((5, 3, 16, 32), torch.float32)
    expected = PIXELS.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(images.numpy(), expected)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_pixels_survive_the_way_there_and_back() -> None:
    every_value = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_pixels(to_float(every_value)), every_value)
    assert np.array_equal(to_pixels(to_float(PIXELS)), PIXELS)


def test_values_outside_the_range_are_clipped_and_the_others_rounded_to_the_nearest() -> None:
    values = torch.tensor([-1.0, 0.0019, 0.0021, 0.5, 0.9999, 2.0])
    pixels = to_pixels(values.reshape(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
