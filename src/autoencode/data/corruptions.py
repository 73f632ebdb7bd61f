"""Clean images -> corrupted images, for denoising autoencoders (the loss is always against the clean ones).

Shapes: B batch, H height, W width. Images are (B, 3, H, W) in [0, 1]. Every corruption is a function of the
images and a generator; `batches.random_seed` makes that generator's seed of (seed, step). Where several
processes share a batch, each draws for the whole of it and keeps its part: an image meets the same chance
however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.data.loader import Share, share_of
from autoencode.errors import ConfigError

Name = Literal["gaussian", "dropout", "rotate", "downscale"]

_MEANING: dict[str, str] = {
    "gaussian": "gaussian:STANDARD_DEVIATION, above 0, for instance gaussian:0.3",
    "dropout": "dropout:RATE, above 0 and below 1, for instance dropout:0.3",
    "rotate": "rotate:DEGREES, above 0 and up to 180, for instance rotate:15",
    "downscale": "downscale:FACTOR, a whole number from 2, for instance downscale:4",
}


@dataclass(frozen=True)
class Corruption:
    """One way to damage an image.

    Args:
        name: "gaussian" adds noise of mean 0 (not clipped: pixels may leave [0, 1]); "dropout" sets values
            to 0 and rescales the rest, in training only; "rotate" turns by a random angle; "downscale"
            shrinks by area averaging and enlarges again with bicubic interpolation.
        amount: standard deviation; rate; largest angle in degrees; factor.

    Raises:
        ConfigError: no such corruption, or an amount it cannot have.
    """

    name: Name
    amount: float

    def __post_init__(self) -> None:
        allowed = {
            "gaussian": 0 < self.amount < float("inf"),
            "dropout": 0 < self.amount < 1,
            "rotate": 0 < self.amount <= 180,
            "downscale": self.amount >= 2 and self.amount % 1 == 0,
        }
        # Comparisons with a NaN are false, so a NaN is rejected here too.
        if self.name not in allowed or not allowed[self.name]:
            raise _unusable(str(self), self.name)

    def __str__(self) -> str:
        return f"{self.name}:{self.amount:g}"


def parse_corruptions(texts: Iterable[str]) -> tuple[Corruption, ...]:
    """Read corruptions as the command line gives them: `["gaussian:0.3", "rotate:15"]`.

    Raises:
        ConfigError: one of them cannot be read, or has an amount it cannot have.
    """
    corruptions = []
    for text in texts:
        name, _, amount = text.partition(":")
        try:
            value = float(amount)
        except ValueError as err:
            raise _unusable(text, name) from err
        corruptions.append(Corruption(name, value))  # type: ignore[arg-type]
    return tuple(corruptions)


def check_size(corruptions: Iterable[Corruption], height: int, width: int) -> None:
    """Reject what images of this size cannot have done to them.

    Raises:
        ConfigError: an image would be downscaled to less than a pixel.
    """
    for corruption in corruptions:
        if corruption.name == "downscale" and corruption.amount > min(height, width):
            raise ConfigError(
                f"Cannot corrupt by {corruption}: images of {height}x{width} can be downscaled by a factor "
                f"of at most {min(height, width)}."
            )


def _unusable(text: str, name: str) -> ConfigError:
    choices = [_MEANING[name]] if name in _MEANING else list(_MEANING.values())
    return ConfigError(f"Cannot corrupt by {text}. Use {'; '.join(choices)}.")


def corrupt(
    images: Tensor,
    corruptions: Sequence[Corruption],
    generator: torch.Generator,
    *,
    training: bool,
    share: Share | None = None,
) -> Tensor:
    """Apply corruptions in the order given.

    Args:
        images: (B, 3, H, W) in [0, 1]; not changed.
        corruptions: what to do; an empty sequence returns the images themselves.
        generator: the source of randomness, on the device of the images.
        training: False leaves dropout out, as a dropout layer does at evaluation.
        share: which part of a batch the images are; by default all of it.
    """
    share = share or share_of(len(images), 0, 1)
    for corruption in corruptions:
        if corruption.name == "gaussian":
            noise = _batch_like(images, share).normal_(generator=generator)[share.part]
            images = images + corruption.amount * noise
        elif corruption.name == "dropout":
            images = _dropout(images, corruption.amount, generator, share) if training else images
        elif corruption.name == "rotate":
            images = _rotate(images, corruption.amount, generator, share)
        else:
            images = _downscale(images, int(corruption.amount))
    return images


def mirror(images: Tensor, generator: torch.Generator, share: Share | None = None) -> Tensor:
    """Mirror each of the images (B, 3, H, W) left to right with probability one half; `share` as above."""
    mirrored = _uniform(images, generator, share or share_of(len(images), 0, 1)) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _uniform(images: Tensor, generator: torch.Generator, share: Share) -> Tensor:
    """(B,) in [0, 1), one for each of the images."""
    return torch.rand(share.whole, generator=generator, device=images.device)[share.part]


def _batch_like(images: Tensor, share: Share) -> Tensor:
    """(whole, 3, H, W) to fill with random numbers, in one order whatever the memory format of the images."""
    return images.new_empty((share.whole, *images.shape[1:]))


def _dropout(images: Tensor, rate: float, generator: torch.Generator, share: Share) -> Tensor:
    """Drop each value with this probability and divide the rest by 1 - rate (Srivastava et al. 2014)."""
    keep = _batch_like(images, share).bernoulli_(1 - rate, generator=generator)[share.part]
    return images * keep.div_(1 - rate)


def _rotate(images: Tensor, degrees: float, generator: torch.Generator, share: Share) -> Tensor:
    """Turn each image about its centre by an angle uniform in +-degrees; borders are reflected."""
    height, width = images.shape[-2:]
    draws = _uniform(images, generator, share)
    angles = (2 * draws - 1) * torch.deg2rad(torch.tensor(degrees))
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid works in coordinates of [-1, 1] along each side, so a turn scales by the aspect ratio.
    first = torch.stack([cosine, -sine * height / width, zero], dim=1)
    second = torch.stack([sine * width / height, cosine, zero], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _downscale(images: Tensor, factor: int) -> Tensor:
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(max(1, height // factor), max(1, width // factor)), mode="area")
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)
