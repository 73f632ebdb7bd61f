"""Turn one image into another through the code: equation (3) of Kovenko & Bogach 2020.

Shapes: D code size, F frames. Codes are (F, D), pixels (F, H, W, 3) in 0..255.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import check_output
from autoencode.data.preprocessing import WRITABLE
from autoencode.errors import ConfigError, check_choice
from autoencode.figures import check_frames, is_animation, png, save_frames, strip
from autoencode.models.model_file import as_model
from autoencode.pixels import to_pixels

if TYPE_CHECKING:
    from autoencode.configuration import DecoderName, Interpolation
    from autoencode.data.preprocessing import Limits
    from autoencode.models.autoencoder import Autoencoder


# From one image to the next. The frames of a strip are seen side by side; those of an animation must move
# smoothly.
STRIP_FRAMES, ANIMATION_FRAMES = 9, 30
FRAMES_PER_SECOND = 20

# Sine of the angle below which two codes are so nearly parallel or opposite that they span no plane.
LEAST_SINE = 1e-4


@dataclass(frozen=True)
class Morph:
    """The frames of a morph.

    Attributes:
        pixels: (F, H, W, 3) in 0..255.
        codes: (F, D) float32, decoded to `pixels`.
        alphas: (F,) position of each frame: 0 at the first image, 1 at the second, 1.5 half-way to the third.
    """

    pixels: NDArray[np.uint8]
    codes: Tensor
    alphas: Tensor

    def _repr_png_(self) -> bytes:
        return png(strip(self.pixels))


def morph(
    model: Autoencoder | str | Path,
    images: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    frames: int | None = None,
    interpolation: Interpolation = "linear",
    ping_pong: bool = False,
    decoder: DecoderName = "sharp",
    limits: Limits | None = None,
) -> Morph:
    """Interpolate between the codes of images, in the order given, and decode the results.

    The frame at alpha between x1 and x2 is G(E(x1) (1 - alpha) + E(x2) alpha); at an image itself it is the
    image's reconstruction.

    Args:
        model: from `load_model`, or its path.
        images: two or more image files.
        out: a file for the frames: .gif and .webp are animations, other images a strip. None writes nothing.
        frames: from one image to the next, both included, at least 2. The default is 9, and 30 for an
            animation.
        interpolation: "linear" as in the equation, or "spherical": the direction of the code turns at
            constant speed and its length changes linearly, so that the middle is no closer to zero than
            the ends are.
        ping_pong: go back the same way and end with the first image, so that an animation loops.
        decoder: see `Autoencoder.decode`.
        limits: the largest files and images to accept.

    Raises:
        ModelFileError: there is no usable model at the path.
        ConfigError: there are fewer than two images or frames, or more frames than fit; the interpolation is
            unknown; or `out` has no known image extension, is one of the images, or exists and is not an
            image.
        ImageError: an image cannot be used; the message names it and the reason.
        OutputError: `out` cannot be written.
    """
    model = as_model(model)
    if len(images) < 2 or isinstance(images, str):
        raise ConfigError("A morph needs two or more images.")
    check_choice("interpolation", interpolation, INTERPOLATIONS)
    path = None if out is None else Path(out)
    if path is not None:
        check_output(path, WRITABLE, map(Path, images))
    if frames is None:
        frames = ANIMATION_FRAMES if path is not None and is_animation(path) else STRIP_FRAMES
    if frames < 2:
        raise ConfigError(f"A morph of {frames} frames has no room for both images; use 2 or more.")
    if path is not None:
        count = (len(images) - 1) * (frames - 1) * (2 if ping_pong else 1) + 1
        check_frames(path, count, model.preprocessing.height, model.preprocessing.width)
    codes, alphas = interpolated(model.encode(model.read(images, limits)), frames, interpolation)
    if ping_pong:
        codes, alphas = (torch.cat([part, part[:-1].flip(0)]) for part in (codes, alphas))
    made = Morph(to_pixels(model.decode(codes, decoder)), codes, alphas)
    if path is not None:
        save_frames(path, made.pixels, FRAMES_PER_SECOND)
    return made


def between(codes: Tensor, at: float, interpolation: Interpolation) -> Tensor:
    """Return the code (D,) at a position between codes (N, D): 0 is the first, N - 1 the last."""
    last = len(codes) - 1
    at = min(max(at, 0.0), float(last))
    leg = min(int(at), last - 1)
    return INTERPOLATIONS[interpolation](codes[leg], codes[leg + 1], torch.tensor([[at - leg]]))[0]


def in_square(codes: Tensor, x: float, y: float, interpolation: Interpolation) -> Tensor:
    """Return the code (D,) at a position in a square with codes (4, D) at its corners.

    Args:
        codes: of the corners at the top left, top right, bottom left and bottom right.
        x: from 0 at the left to 1 at the right.
        y: from 0 at the top to 1 at the bottom.
        interpolation: as for `morph`.
    """
    edges = torch.stack([between(codes[:2], x, interpolation), between(codes[2:], x, interpolation)])
    return between(edges, y, interpolation)


def interpolated(codes: Tensor, frames: int, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """Return codes from each of (N, D) to the next, (F, D), and their alphas (F,) from 0 to N - 1."""
    between = torch.linspace(0, 1, frames)
    mix = INTERPOLATIONS[interpolation]
    # Each image belongs to the leg that ends with it; the first leg also begins with one.
    legs = [mix(a, b, between[1:, None]) for a, b in pairwise(codes)]
    alphas = [leg + between[1:] for leg in range(len(legs))]
    return torch.cat([codes[:1], *legs]), torch.cat([torch.zeros(1), *alphas])


def _linear(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    return a * (1 - alpha) + b * alpha


def _spherical(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """Shoemake 1985, slerp, of the directions; the lengths are mixed linearly."""
    lengths = a.norm(), b.norm()
    if min(lengths) == 0:
        return _linear(a, b, alpha)
    first, second = a / lengths[0], b / lengths[1]
    # Exact for small angles too, unlike the arc cosine of the product.
    angle = 2 * torch.atan2((first - second).norm(), (first + second).norm())
    if angle.sin() < LEAST_SINE:
        return _linear(a, b, alpha)
    turned = (((1 - alpha) * angle).sin() * first + (alpha * angle).sin() * second) / angle.sin()
    turned_code: Tensor = turned * _linear(lengths[0], lengths[1], alpha)
    return turned_code


INTERPOLATIONS: dict[Interpolation, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": _linear,
    "spherical": _spherical,
}
