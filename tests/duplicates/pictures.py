"""Pictures in which every place can be told from every other."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = Image.Image


def texture(seed: int, height: int = 150, width: int = 200, *, fine: float = 1.0) -> Picture:
    """Noise of all scales in colour, as a photograph has: no two seeds have a detail in common."""
    generator = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(generator.normal(size=(3, height, width)))
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    pixels = np.fft.irfft2(spectrum / (0.01 + np.hypot(y, x)) ** (1.5 / fine), (height, width))
    pixels -= pixels.mean((1, 2), keepdims=True)
    return picture_of(127 + 50 * (pixels / pixels.std((1, 2), keepdims=True)).transpose(1, 2, 0))


def picture_of(pixels: NDArray[np.float64]) -> Picture:
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
