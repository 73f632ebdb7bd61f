"""Clean images -> corrupted images, for denoising autoencoders (the loss is always against the clean ones).

A corruption is one entry of `CORRUPTIONS`: the command line, errors, the reference and the web page are made
from it. It is a function of the images, an amount and random numbers; `loader.random_seed` makes the seed of
those of (seed, step), so that a corruption can be repeated.

Shapes: B batch, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from autoencode.errors import ConfigError
from autoencode.pixels import to_float, to_pixels

# Help lists the corruptions and must not wait for torch: functions that need more of it than the methods of a
# tensor import it themselves.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch
    from torch import Tensor

    from autoencode.data.loader import LocalBatch


class Draws:
    """Random numbers for the images of one process.

    They are drawn for the whole batch, of which the process keeps its local batch: an image meets the same
    chance whatever the world size.

    Args:
        images: (B, 3, H, W), for their number, type and device.
        generator: the source, on the device of the images.
        local: which part of a batch the images are; None for all of it.
    """

    def __init__(self, images: Tensor, generator: torch.Generator, local: LocalBatch | None) -> None:
        self._images, self._generator = images, generator
        self._count, self._part = (
            (len(images), slice(None)) if local is None else (local.batch_size, local.positions)
        )

    def uniform(self) -> Tensor:
        """Return a number in [0, 1) for each image: (B,)."""
        return self._images.new_empty(self._count).uniform_(generator=self._generator)[self._part]

    def normal(self) -> Tensor:
        """Return standard normal noise for each image value: (B, 3, H, W)."""
        return self._whole_batch().normal_(generator=self._generator)[self._part]

    def bernoulli(self, probability: float) -> Tensor:
        """Return 1 with this probability for each image value, and 0 otherwise: (B, 3, H, W)."""
        return self._whole_batch().bernoulli_(probability, generator=self._generator)[self._part]

    def _whole_batch(self) -> Tensor:
        # Not empty_like: numbers would be drawn in the order of the images' memory format.
        return self._images.new_empty((self._count, *self._images.shape[1:]))


class CorruptionKind(NamedTuple):
    """One way to corrupt images.

    Attributes:
        parameter: name of its amount, as errors show it.
        allowed: amounts that can be used, in words that follow the parameter.
        allows: whether an amount can be used; never called with a NaN.
        meaning: its effect, in words that follow its name and an amount.
        offers: amounts that the web page offers, with a few words each; the last one is the example.
        apply: images (B, 3, H, W), amount and random numbers to corrupted images, a new tensor.
        in_training_only: whether it is left out when a model is evaluated.
        largest: greatest amount for images of (height, width) pixels, where that depends on them.
    """

    parameter: str
    allowed: str
    allows: Callable[[float], bool]
    meaning: str
    offers: Sequence[tuple[float, str]]
    apply: Callable[[Tensor, float, Draws], Tensor]
    in_training_only: bool = False
    largest: Callable[[int, int], float] = lambda height, width: math.inf


def _gaussian(images: Tensor, deviation: float, draws: Draws) -> Tensor:
    return images + deviation * draws.normal()


def _dropout(images: Tensor, rate: float, draws: Draws) -> Tensor:
    """Drop each value with this probability and divide the rest by 1 - rate (Srivastava et al. 2014)."""
    return images * draws.bernoulli(1 - rate).div_(1 - rate)


def _rotate(images: Tensor, degrees: float, draws: Draws) -> Tensor:
    """Turn each image about its centre by an angle uniform in +-degrees; borders are reflected."""
    import torch
    import torch.nn.functional as F

    height, width = images.shape[-2:]
    angles = (2 * draws.uniform() - 1) * torch.deg2rad(torch.tensor(degrees))
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid works in coordinates of [-1, 1] along each side, so a turn scales by the aspect ratio.
    first = torch.stack([cosine, -sine * height / width, zero], dim=1)
    second = torch.stack([sine * width / height, cosine, zero], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _downscale(images: Tensor, factor: float, draws: Draws) -> Tensor:
    import torch.nn.functional as F

    height, width = images.shape[-2:]
    size = (max(1, height // int(factor)), max(1, width // int(factor)))
    small = F.interpolate(images, size=size, mode="area")
    # Bicubic overshoots at edges; an image never does.
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def _mask(images: Tensor, share: float, draws: Draws) -> Tensor:
    """Fill a random rectangle of each image with grey, 0.5, like the random erasing of Zhong et al. 2020."""
    import torch

    height, width = images.shape[-2:]
    shape, down, across = draws.uniform(), draws.uniform(), draws.uniform()
    # Its shape differs from that of the image by a factor of 2 at most; its height is such that it is not
    # wider than the image.
    tall = (height * (share * 4 ** (shape - 0.5)).sqrt()).round().clamp(math.ceil(share * height), height)
    wide = (share * height * width / tall).round().clamp(1, width)
    top, left = (down * (height - tall + 1)).floor()[:, None], (across * (width - wide + 1)).floor()[:, None]
    rows, columns = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    in_rows = (rows >= top) & (rows < top + tall[:, None])
    in_columns = (columns >= left) & (columns < left + wide[:, None])
    return images.masked_fill(in_rows[:, None, :, None] & in_columns[:, None, None, :], 0.5)


def _jpeg(images: Tensor, quality: float, draws: Draws) -> Tensor:
    """Write each image as a JPEG file and read it again; values outside [0, 1] are clipped."""
    import numpy as np
    from PIL import Image

    pixels = to_pixels(images.cpu())
    for index in range(len(pixels)):
        file = io.BytesIO()
        # With 4:2:0, which is Pillow's default so far: damage is to be the same with every version of it.
        Image.fromarray(pixels[index]).save(file, "JPEG", quality=int(quality), subsampling="4:2:0")
        pixels[index] = np.asarray(Image.open(file))
    return to_float(pixels).to(images.device)


CORRUPTIONS: dict[str, CorruptionKind] = {
    "gaussian": CorruptionKind(
        "STANDARD_DEVIATION",
        "above 0 and at most 10",  # ten times the range of pixels: an image is lost in noise long before
        lambda amount: 0 < amount <= 10,
        "adds noise of that standard deviation; the result is not clipped to [0, 1]",
        [(0.1, "add a little noise"), (0.3, "add much noise")],
        _gaussian,
    ),
    "dropout": CorruptionKind(
        "RATE",
        "above 0 and below 1",
        lambda amount: 0 < amount < 1,
        "sets that share of the values to 0 and rescales the rest, in training only",
        [(0.3, "lose 30 % of its values")],
        _dropout,
        in_training_only=True,
    ),
    "rotate": CorruptionKind(
        "DEGREES",
        "above 0 and at most 180",
        lambda amount: 0 < amount <= 180,
        "turns by a random angle of up to that many degrees either way; borders are reflected",
        [(15, "turn it by up to 15°")],
        _rotate,
    ),
    "downscale": CorruptionKind(
        "FACTOR",
        "a whole number from 2",
        lambda amount: amount >= 2 and amount % 1 == 0,
        "averages squares of that side in pixels and enlarges again, for super-resolution",
        [(2, "make it half as large"), (4, "make it a quarter as large")],
        _downscale,
        largest=min,
    ),
    "mask": CorruptionKind(
        "SHARE",
        "above 0 and below 1",
        lambda amount: 0 < amount < 1,
        "fills a random rectangle of that share of the image's area with grey (0.5), for inpainting",
        [(0.25, "hide a quarter of it")],
        _mask,
    ),
    "jpeg": CorruptionKind(
        "QUALITY",
        "a whole number from 1 to 95",
        lambda amount: 1 <= amount <= 95 and amount % 1 == 0,
        "compresses as a JPEG file of that quality does, which shows in blocks of 8x8 pixels",
        [(10, "compress it hard")],
        _jpeg,
    ),
}


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt images, with an amount.

    Args:
        name: a name in `CORRUPTIONS`.
        amount: its number, such as a standard deviation.

    Raises:
        ConfigError: there is no corruption of that name, or its amount is out of range.
    """

    name: str
    amount: float

    def __post_init__(self) -> None:
        kind = CORRUPTIONS.get(self.name)
        if kind is None or math.isnan(self.amount) or not kind.allows(self.amount):
            raise _unusable(str(self), self.name)

    def __str__(self) -> str:
        return f"{self.name}:{self.amount:g}"


def example(name: str) -> str:
    """Return how a corruption is written, with an amount of some effect: "gaussian:0.3"."""
    return f"{name}:{CORRUPTIONS[name].offers[-1][0]:g}"


def parse_corruptions(texts: Iterable[str]) -> tuple[Corruption, ...]:
    """Read corruptions as the command line gives them: `["gaussian:0.3", "rotate:15"]`.

    Raises:
        ConfigError: a text is not NAME:AMOUNT, there is no such corruption, or its amount is out of range.
    """
    corruptions = []
    for text in texts:
        name, _, amount = text.partition(":")
        try:
            value = float(amount)
        except ValueError as err:
            raise _unusable(text, name) from err
        corruptions.append(Corruption(name, value))
    return tuple(corruptions)


def check_size(corruptions: Iterable[Corruption], height: int, width: int) -> None:
    """Reject corruptions that images of (height, width) pixels cannot have.

    Raises:
        ConfigError: an amount is too large for the images, such as a factor that leaves less than a pixel.
    """
    for corruption in corruptions:
        kind = CORRUPTIONS[corruption.name]
        if corruption.amount > (largest := kind.largest(height, width)):
            raise ConfigError(
                f"Cannot corrupt by {corruption}: for images of {height}x{width} the {kind.parameter} is at "
                f"most {largest:g}."
            )


def _unusable(text: str, name: str) -> ConfigError:
    names = [name] if name in CORRUPTIONS else list(CORRUPTIONS)
    choices = [
        f"{name}:{CORRUPTIONS[name].parameter}, {CORRUPTIONS[name].allowed}, for instance {example(name)}"
        for name in names
    ]
    return ConfigError(f"Cannot corrupt by {text}. Use {'; '.join(choices)}.")


def corrupt(
    images: Tensor,
    corruptions: Sequence[Corruption],
    generator: torch.Generator,
    *,
    training: bool,
    local: LocalBatch | None = None,
) -> Tensor:
    """Apply corruptions in the order given.

    Args:
        images: (B, 3, H, W) in [0, 1]; not changed.
        corruptions: none returns the images themselves.
        generator: the source of randomness, on the device of the images.
        training: False leaves dropout out, as a dropout layer does at evaluation.
        local: which part of a batch the images are; None for all of it.

    Returns:
        (B, 3, H, W); noise is not clipped to [0, 1].
    """
    draws = Draws(images, generator, local)
    for corruption in corruptions:
        kind = CORRUPTIONS[corruption.name]
        if training or not kind.in_training_only:
            images = kind.apply(images, corruption.amount, draws)
    return images


def horizontal_flip(images: Tensor, generator: torch.Generator, local: LocalBatch | None = None) -> Tensor:
    """Turn each of the images (B, 3, H, W) left to right with probability one half.

    Args:
        images: not changed.
        generator: as for `corrupt`.
        local: as for `corrupt`.
    """
    flipped = Draws(images, generator, local).uniform() < 0.5
    return images.flip(3).where(flipped[:, None, None, None], images)
