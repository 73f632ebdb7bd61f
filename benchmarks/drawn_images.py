"""Generate synthetic training images for the bundled restorer: its weights then carry no third-party rights.

    python benchmarks/drawn_images.py FOLDER [--count 3200] [--first 0]
    autoencode train FOLDER --preset restore --size 256 --epochs 14 --init random --out RUN

Each image is of opaque shapes that cover each other, as leaves on the ground do. Such images have what
natural ones have at any scale: edges, occlusion, and a spectrum that falls with the square of the frequency
(Lee, Mumford & Huang 2001). A denoiser trained on them is nearly as good on photographs as one trained on
photographs (Achddou, Gousseau & Ladjal 2021), and more so if shapes have textures and what lies behind is out
of focus (Achddou, Gousseau & Ladjal 2025, VibrantLeaves). Image n is the same wherever drawing begins.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]

SIDE_PX = 256
DRAWN_PX = 2 * SIDE_PX  # drawn without anti-aliasing, and averaged down
TEXTURES, SHARING = 24, 40  # textures that so many images in a row share: they take longer than an image

# The probabilities, sizes and contrasts below were chosen by eye, for images as diverse as photographs, and
# measured on none. docs/log.md has what a first choice lacked.


class Style(NamedTuple):
    """What the shapes of a layer have in common.

    Attributes:
        rng: the source of all that is random.
        textures: (DRAWN_PX, DRAWN_PX) each; a shape has a part of one.
        colours: (N, 3), of which each shape has one.
        contrast: standard deviation of the strength of textures.
    """

    rng: np.random.Generator
    textures: list[Array]
    colours: Array
    contrast: float


def image(number: int, textures: list[Array]) -> NDArray[np.uint8]:
    """Draw image `number`: (SIDE_PX, SIDE_PX, 3) levels."""
    rng = np.random.default_rng([1, number])
    colours, contrast = palette(rng), rng.choice([0.0, 0.03, 0.08, 0.15, 0.25])
    canvas = np.empty((DRAWN_PX, DRAWN_PX, 3), np.float32)
    canvas[:] = colours[0]
    smallest, largest = rng.choice([2, 3, 6, 12, 25, 40]), rng.choice([100, 200, 400])
    # A disk whose radius has a density that falls with the cube has a mean area of about
    # 2 pi smallest^2 ln(largest / smallest). So disks have three times the area of the canvas in all and,
    # as they lie at random, cover 1 - exp(-3) of it, 95 %.
    covering = 1.5 * DRAWN_PX**2 / (np.pi * smallest**2 * np.log(largest / smallest))
    count = int(min(6000, covering)) + 20
    cover(canvas, Style(rng, textures, colours, contrast), count, (smallest, largest))
    if rng.random() < 0.6:  # that was far away and out of focus
        canvas = blurred(canvas, rng.exponential(4))
        colours = np.concatenate([colours, palette(rng)])
        count = max(10, int(count * rng.uniform(0.05, 0.7)))
        near = rng.choice([2, 3, 6, 12]), rng.choice([40, 100, 250])
        cover(canvas, Style(rng, textures, colours, contrast), count, near)
    down, across = np.mgrid[-1 : 1 : DRAWN_PX * 1j, -1 : 1 : DRAWN_PX * 1j].astype(np.float32)
    light = 1 + rng.normal(0, 0.15) * across + rng.normal(0, 0.15) * down
    canvas = blurred(
        canvas * light[..., None], rng.choice([0, 0.5, 1, 1.6, 3], p=[0.45, 0.2, 0.15, 0.1, 0.1])
    )
    small = canvas.reshape(SIDE_PX, 2, SIDE_PX, 2, 3).mean((1, 3)).clip(0, 1)
    return np.rint(small ** np.exp(rng.normal(0, 0.3)) * 255).astype(np.uint8)


def cover(canvas: Array, style: Style, count: int, radii: tuple[float, float]) -> None:
    """Paint `count` shapes over the canvas (H, W, 3), with radii whose density falls with their cube."""
    rng = style.rng
    at_smallest, at_largest = (float(radius) ** -2 for radius in radii)
    sizes = (at_smallest + rng.random(count) * (at_largest - at_smallest)) ** -0.5
    if rng.random() < 0.3:
        sizes = np.sort(sizes)[::-1]  # small shapes lie on large ones
    for radius in sizes:
        across, down = outline(rng, radius)
        across, down = across + rng.uniform(0, canvas.shape[1]), down + rng.uniform(0, canvas.shape[0])
        colour = style.colours[rng.integers(len(style.colours))]
        # On a shape of a few pixels a texture would be noise.
        contrast = abs(rng.normal(0, style.contrast)) if radius > 4 and rng.random() < 0.75 else 0.0
        paint(canvas, (across, down), style, colour, contrast)


def paint(canvas: Array, corners: tuple[Array, Array], style: Style, colour: Array, contrast: float) -> None:
    """Paint one shape, given by its corners (x, y), in a colour with a slope of light and a texture."""
    (across, down), rng = corners, style.rng
    left, top = (max(0, int(side.min())) for side in (across, down))
    right, bottom = min(canvas.shape[1], int(across.max()) + 2), min(canvas.shape[0], int(down.max()) + 2)
    width, height = right - left, bottom - top
    if width < 1 or height < 1:
        return
    drawn = Image.new("1", (width, height))
    ImageDraw.Draw(drawn).polygon(list(zip(across - left, down - top, strict=True)), fill=1)
    inside = np.asarray(drawn)
    part = canvas[top:bottom, left:right]
    if not contrast and min(width, height) < 12:
        part[inside] = colour
        return
    slope = rng.normal(0, 0.12, 2).astype(np.float32)
    light = slope[0] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    light = light + slope[1] * np.linspace(-1, 1, width, dtype=np.float32)
    texture = style.textures[rng.integers(len(style.textures))]
    y, x = (rng.integers(0, DRAWN_PX - side + 1) for side in (height, width))
    light = light + contrast * texture[y : y + height, x : x + width]
    tint = 1 + rng.normal(0, 0.25, 3)
    part[inside] = colour + np.multiply.outer(light[inside], tint)


def outline(rng: np.random.Generator, radius: float) -> tuple[Array, Array]:
    """Return the corners (N,), (N,) of a shape around 0, in x and in y, turned at random."""
    kind = rng.choice(["ellipse", "rectangle", "polygon", "blob", "stroke"], p=[0.3, 0.14, 0.14, 0.28, 0.14])
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    if kind == "ellipse":
        x, y = np.cos(angles), np.sin(angles) * np.exp(-abs(rng.normal(0, 0.5)))
    elif kind == "rectangle":
        x, y = np.array([-1.0, 1, 1, -1]), np.array([-1.0, -1, 1, 1]) * np.exp(-abs(rng.normal(0, 0.8)))
    elif kind == "polygon":
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        reach = rng.uniform(0.5, 1, len(angles))
        x, y = reach * np.cos(angles), reach * np.sin(angles)
    elif kind == "blob":
        waves = [
            rng.normal(0, 0.5 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi))
            for k in range(2, rng.integers(4, 12))
        ]
        reach = (1 + np.sum(waves, axis=0)).clip(0.1, 2) / 1.3
        x, y = reach * np.cos(angles), reach * np.sin(angles)
    else:  # a bent line that becomes thinner, like grass, hair or writing
        along = np.linspace(-1, 1, 12)
        half = max(0.8 / radius, rng.uniform(0.01, 0.12)) * (1 - rng.uniform(0, 1) * np.abs(along))
        bend = rng.normal(0, 0.5) * along**2
        x, y = 1.3 * np.concatenate([along, along[::-1]]), np.concatenate([bend + half, (bend - half)[::-1]])
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = radius * np.cos(turn), radius * np.sin(turn)
    return (cos * x - sin * y).astype(np.float32), (sin * x + cos * y).astype(np.float32)


def palette(rng: np.random.Generator) -> Array:
    """Return the colours of an image (N, 3): any brightness, and most of them close to grey."""
    count = rng.integers(3, 40)
    light = rng.beta(rng.uniform(0.6, 2), rng.uniform(0.6, 2), count)
    spread = rng.gamma(1.2, rng.choice([0.01, 0.03, 0.06, 0.12, 0.2])) + 1e-3
    red, blue = (rng.normal(0, 0.7 * spread, 2) + rng.normal(0, spread, (count, 2))).T
    return (
        np.stack([light + red, light - 0.5 * red - 0.2 * blue, light + blue], 1).clip(0, 1).astype(np.float32)
    )


def texture(rng: np.random.Generator) -> Array:
    """Return a texture (DRAWN_PX, DRAWN_PX) of mean 0 and variance about 1, stretched in one direction."""
    frequency = np.fft.fftfreq(DRAWN_PX)
    angle, stretch = rng.uniform(0, np.pi), np.exp(rng.normal(0, 0.6))
    along = np.cos(angle) * frequency[:, None] + np.sin(angle) * frequency
    beside = np.cos(angle) * frequency - np.sin(angle) * frequency[:, None]
    distance = np.hypot(along * stretch, beside / stretch)
    distance[0, 0] = 1
    spectrum = rng.normal(size=distance.shape) + 1j * rng.normal(size=distance.shape)
    noise = np.fft.ifft2(spectrum * distance ** -rng.uniform(0.2, 3)).real
    noise = (noise - noise.mean()) / noise.std()
    kind = rng.choice(["cloud", "spots", "ridges", "waves", "stripes"], p=[0.4, 0.2, 0.2, 0.1, 0.1])
    if kind == "spots":
        noise = np.tanh(4 * noise)
    elif kind == "ridges":
        noise = np.abs(noise) - 0.8
    elif kind != "cloud":
        y, x = np.mgrid[:DRAWN_PX, :DRAWN_PX] / DRAWN_PX
        phase = rng.uniform(8, 100) * (np.cos(angle) * y + np.sin(angle) * x)
        noise = np.sin(2 * np.pi * phase + rng.uniform(0.3, 2.5) * noise)
        noise = np.sign(noise) if kind == "stripes" else noise
    return noise.clip(-3, 3).astype(np.float32)


def blurred(canvas: Array, sigma: float) -> Array:
    """Return the canvas (H, W, 3) under a Gaussian blur of `sigma` pixels."""
    return canvas if sigma < 0.05 else gaussian_filter(canvas, (sigma, sigma, 0))


def main() -> None:
    """Generate the images that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=3200)
    parser.add_argument("--first", type=int, default=0, help="number of the first, for several processes")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    shared, textures = -1, []
    for number in range(given.first, given.first + given.count):
        if number // SHARING != shared:
            shared = number // SHARING
            rng = np.random.default_rng([0, shared])
            textures = [texture(rng) for _ in range(TEXTURES)]
        Image.fromarray(image(number, textures)).save(given.folder / f"{number:06d}.png", compress_level=1)


if __name__ == "__main__":
    main()
