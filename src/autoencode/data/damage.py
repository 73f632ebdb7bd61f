"""What each corruption does to images, and the random numbers it draws.

A function takes images (B, 3, H, W) in [0, 1], an amount for all of them or (B,) amounts, and random numbers.
It returns new images. `corruptions.CORRUPTIONS` has their names and the amounts they can have.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import copy
import io
import math
from typing import TYPE_CHECKING

from autoencode.pixels import rounded_to_8_bits, to_float, to_pixels

# Help lists the corruptions and must not wait for torch: functions that need more of it than the methods of a
# tensor import it themselves.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoencode.data.loader import LocalBatch

    Amount = float | Tensor  # one for all images, or (B,): one for each


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
        self._chosen: Tensor | slice = slice(None)

    def only(self, chosen: Tensor) -> Draws:
        """Return the numbers of some of the images, by their positions (N,) in the local batch."""
        part = copy.copy(self)
        part._chosen = chosen
        return part

    def apart(self) -> Draws:
        """Return numbers of a source of their own: how many are drawn from it changes no others."""
        import torch

        device = self._generator.device
        seed = int(torch.randint(2**62, (1,), generator=self._generator, device=device))
        part = copy.copy(self)
        part._generator = torch.Generator(device).manual_seed(seed)
        return part

    def uniform(self) -> Tensor:
        """Return a number in [0, 1) for each image: (B,)."""
        return self._own(self._images.new_empty(self._count).uniform_(generator=self._generator))

    def uniform_values(self) -> Tensor:
        """Return a number in [0, 1) for each image value: (B, 3, H, W)."""
        return self._own(self._whole_batch().uniform_(generator=self._generator))

    def normal(self) -> Tensor:
        """Return standard normal noise for each image value: (B, 3, H, W)."""
        return self._own(self._whole_batch().normal_(generator=self._generator))

    def bernoulli(self, probability: float) -> Tensor:
        """Return 1 with this probability for each image value, and 0 otherwise: (B, 3, H, W)."""
        return self._own(self._whole_batch().bernoulli_(probability, generator=self._generator))

    def generators(self) -> list[torch.Generator]:
        """Return a generator for each image, on the CPU, for numbers whose count depends on the image."""
        import torch

        # A number in [0, 1) of 32 bits has 24 random ones.
        seeds = (self.uniform().cpu().double() * 2**24).long().tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    def _own(self, numbers: Tensor) -> Tensor:
        return numbers[self._part][self._chosen]

    def _whole_batch(self) -> Tensor:
        # Not empty_like: numbers would be drawn in the order of the images' memory format.
        return self._images.new_empty((self._count, *self._images.shape[1:]))


def _of_values(amount: Amount) -> Amount:
    """Return an amount so that it can be multiplied with images: (B, 1, 1, 1) if there is one for each."""
    return amount if isinstance(amount, float | int) else amount[:, None, None, None]


def _each(amount: Amount, images: Tensor) -> list[float]:
    """Return an amount for each of the images."""
    return [float(amount)] * len(images) if isinstance(amount, float | int) else amount.tolist()


def gaussian(images: Tensor, deviation: Amount, draws: Draws) -> Tensor:
    """Add noise of that standard deviation; the result is not clipped to [0, 1]."""
    return images + _of_values(deviation) * draws.normal()


def clipped_noise(images: Tensor, deviation: Amount, draws: Draws) -> Tensor:
    """Add noise as files of 8 bits hold it: beyond black and white it is cut off, which shifts the means."""
    return rounded_to_8_bits(gaussian(images, deviation, draws))


def camera_noise(images: Tensor, deviation: Amount, draws: Draws) -> Tensor:
    """Add noise as photographs have it: more in brightness than in colour, softened, clipped, saved as JPEG.

    How much of each is drawn for each image. A network that knows only white noise takes this for detail.
    """
    import torch

    noise, colour, softness = draws.normal(), draws.uniform(), 1.2 * draws.uniform()
    noise = torch.lerp(noise[:, :1].expand_as(noise), noise, colour[:, None, None, None])
    noise = convolved(noise, softness)
    noise = noise / noise.flatten(1).std(1).clamp_min(1e-6)[:, None, None, None]
    quality = 98 - (49 * draws.uniform()).floor()
    return jpeg(images + _of_values(deviation) * noise, quality, draws)


def poisson(images: Tensor, photons: Amount, draws: Draws) -> Tensor:
    """Add Poisson noise with `photons` expected photons at white; fewer photons give more noise."""
    import torch

    found = torch.empty_like(images)
    for index, (white, generator) in enumerate(zip(_each(photons, images), draws.generators(), strict=True)):
        mean = images[index].cpu().clamp_min(0).contiguous() * white
        found[index] = torch.poisson(mean, generator=generator) / white
    return found


def salt_and_pepper(images: Tensor, fraction: Amount, draws: Draws) -> Tensor:
    """Set a fraction of the values to 0 or 1; in every other image of the pixels, as some sensors do."""
    import torch

    lost, white = draws.uniform_values(), draws.uniform_values()
    of_pixels = (draws.uniform() < 0.5)[:, None, None, None]
    lost, white = (torch.where(of_pixels, one[:, :1], one) for one in (lost, white))
    return torch.where(lost < _of_values(fraction), (white < 0.5).to(images.dtype), images)


def dropout(images: Tensor, rate: Amount, draws: Draws) -> Tensor:
    """Drop each value with this probability and divide the rest by 1 - rate (Srivastava et al. 2014)."""
    if isinstance(rate, float | int):
        return images * draws.bernoulli(1 - rate).div_(1 - rate)
    rate = rate[:, None, None, None]
    return images * (draws.uniform_values() >= rate) / (1 - rate)


def blur(images: Tensor, deviation: Amount, draws: Draws) -> Tensor:
    """Convolve each image with a Gaussian, as files of 8 bits hold the result.

    A network that sees blurred images before they are rounded learns to read from them what no file has.
    """
    return rounded_to_8_bits(convolved(images, deviation))


def convolved(images: Tensor, deviation: Amount) -> Tensor:
    """Convolve each image with a Gaussian of that standard deviation in pixels; borders are reflected."""
    import torch
    import torch.nn.functional as F

    blurred = torch.empty_like(images)
    for index, sigma in enumerate(_each(deviation, images)):
        # A Gaussian has less than 1 in 10,000 of its weight outside 4 of its deviations. An image must be
        # larger than what is reflected of it.
        radius = min(math.ceil(4 * sigma), min(images.shape[-2:]) - 1)
        offsets = torch.arange(-radius, radius + 1, device=images.device)
        weights = torch.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2).to(images.dtype)
        weights = (weights / weights.sum()).expand(3, 1, -1)
        padded = F.pad(images[index][None].contiguous(), [radius] * 4, mode="reflect")
        rows = F.conv2d(padded, weights[..., None], groups=3)
        blurred[index] = F.conv2d(rows, weights[..., None, :], groups=3)[0]
    return blurred


def rotate(images: Tensor, degrees: Amount, draws: Draws) -> Tensor:
    """Turn each image about its centre by an angle uniform in +-degrees; borders are reflected."""
    import torch
    import torch.nn.functional as F

    height, width = images.shape[-2:]
    angles = (2 * draws.uniform() - 1) * torch.deg2rad(torch.as_tensor(degrees))
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid works in coordinates of [-1, 1] along each side, so a turn scales by the aspect ratio.
    first = torch.stack([cosine, -sine * height / width, zero], dim=1)
    second = torch.stack([sine * width / height, cosine, zero], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def downscale(images: Tensor, factor: Amount, draws: Draws) -> Tensor:
    """Average squares of that side in pixels, in 8 bits as files hold the small image, and enlarge it."""
    import torch
    import torch.nn.functional as F

    height, width = images.shape[-2:]
    found = torch.empty_like(images)
    factors = torch.tensor(_each(factor, images))
    for value in sorted(set(map(int, factors.tolist()))):
        chosen = (factors == value).nonzero()[:, 0].to(images.device)
        size = (max(1, height // value), max(1, width // value))
        small = F.interpolate(images[chosen], size=size, mode="area")
        found[chosen] = enlarge(rounded_to_8_bits(small), height, width) if value > 1 else images[chosen]
    return found


def enlarge(images: Tensor, height: int, width: int) -> Tensor:
    """Enlarge images (B, 3, h, w) to (B, 3, height, width) as `downscale` does: bicubic, within [0, 1]."""
    import torch.nn.functional as F

    # Bicubic overshoots at edges, which an image never does.
    return F.interpolate(images, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def mask(images: Tensor, fraction: Amount, draws: Draws) -> Tensor:
    """Fill a rectangle of a fraction of each image with grey, 0.5: random erasing (Zhong et al. 2020)."""
    import torch

    height, width = images.shape[-2:]
    shape, down, across = draws.uniform(), draws.uniform(), draws.uniform()
    # Its shape differs from that of the image by a factor of 2 at most; its height is such that it is not
    # wider than the image.
    tall = (height * (fraction * 4 ** (shape - 0.5)).sqrt()).round()
    # In fp64, as fp32 rounds 0.1 * 30 to more than 3.
    least = (torch.as_tensor(fraction, dtype=torch.float64, device="cpu") * height).ceil()
    tall = tall.maximum(least.to(tall)).clamp_max(height)
    wide = (fraction * height * width / tall).round().clamp(1, width)
    top, left = (down * (height - tall + 1)).floor()[:, None], (across * (width - wide + 1)).floor()[:, None]
    rows, columns = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    in_rows = (rows >= top) & (rows < top + tall[:, None])
    in_columns = (columns >= left) & (columns < left + wide[:, None])
    return images.masked_fill(in_rows[:, None, :, None] & in_columns[:, None, None, :], 0.5)


def jpeg(images: Tensor, quality: Amount, draws: Draws) -> Tensor:
    """Write each image as a JPEG file and read it again; values outside [0, 1] are clipped."""
    import numpy as np
    from PIL import Image

    pixels = to_pixels(images.cpu())
    for index, each in enumerate(_each(quality, images)):
        file = io.BytesIO()
        # With 4:2:0, which is Pillow's default so far: damage is to be the same with every version of it.
        Image.fromarray(pixels[index]).save(file, "JPEG", quality=int(each), subsampling="4:2:0")
        pixels[index] = np.asarray(Image.open(file))
    return to_float(pixels).to(images.device)
