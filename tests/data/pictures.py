"""Small pictures, and how the tests encode and read them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.data.preprocessing import (
    Preprocessing,
)

SAME = Preprocessing(32, 48)  # of the pictures below, so that nothing is resized
EXTENSIONS = [".jpg", ".png", ".webp", ".gif", ".bmp", ".tif", ".avif", ".ppm"]


def picture(height: int = 32, width: int = 48, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth coloured picture without any symmetry."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    waves = [np.sin(5 * x + 3 * y * (c + 1) + seed + c) for c in range(3)]
    return np.asarray(127.5 + 120 * np.stack(waves, -1), np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def over_white(image: Image.Image) -> NDArray[np.uint8]:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB"))


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))
