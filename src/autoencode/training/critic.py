"""The critic of the perceptual phase: it tells decoded images from real ones, and pulls the decoder.

Features of a pretrained network leave a decoder soft, as it decodes the mean of what a code can stand for. A
critic learns what single images look like (Goodfellow et al. 2014), patch by patch (Isola et al. 2017). Its
pull is weighted by the gradient of the other terms (Esser et al. 2021, equation 7). It also sees images of
codes between those of the batch, so that samples become as sharp as reconstructions. Large images are judged
at several scales, by a network for each (Wang, Liu et al. 2018, section 3.2).

Shapes: B batch, D code size, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencode.data.loader import random_seed
from autoencode.models.convolutions import CHANNELS
from autoencode.models.detail import DetailConvolution
from autoencode.training.adversarial import adversarial_loss, discriminator_loss

if TYPE_CHECKING:
    from autoencode.data.loader import LocalBatch
    from autoencode.training.runtime import Runtime

# Size of the pull relative to the gradient of the other terms, and its start and rise from 0 as fractions of
# the phase: the critic learns first. docs/log.md has other values.
RATIO, START, RISE = 0.8, 0.1, 0.1

_WIDTHS = (32, 32, 64, 128)  # of its convolutions: the first keeps the size of images, each other halves it
_RATE, _DECAYS = 1e-3, (0.5, 0.99)  # of Adam
_PENALTY = 1.0  # on the squared slope at real images (Mescheder et al. 2018, equation 9)
_PENALISED_EVERY = 4  # steps, as the slope of a slope takes as long as the rest of a step
_SHIFT = 8  # images are shifted by up to this fraction of a side
_SEEN_PX = 112  # side of the squares it sees of larger images, whose time would grow with their area
_SMALLEST_PX = 64  # shorter side of the smallest scale, at least


class Critic:
    """A network that judges patches, with its optimiser.

    Args:
        height: H of the images; at least 2.
        width: W of them; at least 2.
        runtime: its device and precision.
        seed: of its initial weights.

    Attributes:
        network: a network for each of `scales`, (B, 3, H, W), about in [-1, 1], to logits (B, 1, h, w) of
            patches, above 0 for "real".
        optimizer: its optimiser.
    """

    def __init__(self, height: int, width: int, runtime: Runtime, seed: int) -> None:
        self.runtime = runtime
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network = nn.ModuleList(_network(min(height, width)) for _ in scales(height, width))
        runtime.model_to_device(self.network)
        self.optimizer = torch.optim.Adam(self.network.parameters(), _RATE, _DECAYS)

    def judge(
        self, real: Tensor, decoded: Tensor, local: LocalBatch, step: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of the critic's loss, as of the mean over the whole batch; return the pull.

        That loss is the sum over scales of hinge losses and penalties.

        Args:
            real: originals, (B, 3, H, W).
            decoded: (N, 3, H, W), N a multiple of B; no gradient flows into their graph.
            local: position of the originals in the batch.
            step: of the phase, from 0.
            seed: of the run.

        Returns:
            The gradient of the decoder's loss, summed over scales, by `decoded`, of their shape; and the mean
            hinge loss of a scale, a scalar, 2 where the critic tells nothing apart.
        """
        decoded = decoded.detach().requires_grad_()
        shown = _changed(real, local, random_seed("real", seed, step))
        changed = _changed(decoded, local, random_seed("decoded", seed, step))
        with self.runtime.autocast():
            judged = self._logits(changed)
        pulling = torch.stack([adversarial_loss(one) for one in judged]).sum()
        (pull,) = torch.autograd.grad(pulling, decoded, retain_graph=True)
        penalty = real.new_zeros(())
        if step % _PENALISED_EVERY:
            with self.runtime.autocast():
                logits = self._logits(shown)
        else:
            shown = [one.requires_grad_() for one in shown]
            logits = self._logits(shown)  # in fp32, as a slope is to be differentiated
            penalty = _PENALISED_EVERY * _PENALTY / 2 * _squared_slope(logits, shown)
        losses = torch.stack([discriminator_loss(*pair) for pair in zip(logits, judged, strict=True)])
        (local.weight * (losses.sum() + penalty)).backward()  # type: ignore[no-untyped-call]
        return pull, losses.detach().mean()

    def _logits(self, images: list[Tensor]) -> list[Tensor]:
        """Judge images at each scale: (B, 3, h, w), about in [0, 1], each to (B, 1, h', w')."""
        return [judge(2 * one - 1).float() for judge, one in zip(self.network, images, strict=True)]


def scales(height: int, width: int) -> list[int]:
    """Return the factors by which images are averaged down, to be judged at each: 1, 2, 4 and so on.

    A code has the same length at any size, so the decoder of a large image also misses coarse structure,
    which exceeds the patches of 40 pixels that a network judges. Scans and enlarged images have little detail
    in single pixels.

    Args:
        height: H of the images, at least 2.
        width: W of them, at least 2.
    """
    most = max(1, min(height, width) // _SMALLEST_PX)
    return [2**power for power in range(most.bit_length())]


def ratio_at(step: int, steps: int) -> float:
    """Size of the pull at a step, relative to the gradient of the other terms; 0 before it joins.

    Args:
        step: steps taken before this one, from 0.
        steps: of the whole phase.
    """
    return RATIO * min(1.0, max(0.0, (step / steps - START) / RISE))


def between(codes: Tensor, step: int, seed: int) -> Tensor:
    """Return as many codes that lie between pairs of these, with the same mean and covariance in expectation.

    Args:
        codes: (B, D) of a whole batch.
        step: of the phase; decides the pairs, and the place of each code between its two.
        seed: of the run.
    """
    generator = torch.Generator().manual_seed(random_seed("between", seed, step))
    partners = torch.randperm(len(codes), generator=generator).to(codes.device)
    angles = (torch.rand(len(codes), 1, generator=generator) * math.pi / 2).to(codes.device)
    mean = codes.mean(0)
    return mean + angles.cos() * (codes - mean) + angles.sin() * (codes[partners] - mean)


def _network(side: int) -> nn.Sequential:
    layers: list[nn.Module] = [DetailConvolution(CHANNELS, _WIDTHS[0], padding=1), nn.LeakyReLU(0.2)]
    # Each halves the image, whose shorter side is left with a value at least.
    widths = _WIDTHS[: 1 + int(math.log2(side))]
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))


def _squared_slope(logits: list[Tensor], images: list[Tensor]) -> Tensor:
    """Return the squared norm of the slope of the mean logit of an image, summed over scales, as a mean."""
    summed = torch.stack([one.mean((1, 2, 3)).sum() for one in logits]).sum()
    slopes = torch.autograd.grad(summed, images, create_graph=True)
    return torch.stack([slope.square().sum((1, 2, 3)).mean() for slope in slopes]).sum()


def _changed(images: Tensor, local: LocalBatch, seed: int) -> list[Tensor]:
    """Return images of other colours and shifted, at each of `scales`; differentiable.

    Few images are then not learnt by heart.

    As Zhao et al. 2020, with less of each: brightness by up to 0.25, saturation by half, contrast by 0.3.
    """
    generator = torch.Generator().manual_seed(seed)
    # Drawn for the whole batch, so that they are the same for any number of processes.
    copies = len(images) // (local.end - local.first)
    drawn = torch.rand(copies, local.batch_size, 3, generator=generator)[:, local.positions].flatten(0, 1)
    brightness, saturation, contrast = drawn.to(images.device)[:, :, None, None, None].unbind(1)
    images = images + 0.5 * brightness - 0.25
    grey = images.mean(1, keepdim=True)
    images = grey + (0.5 + saturation) * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (0.7 + 0.6 * contrast) * (images - mean)
    beyond = [side // _SHIFT for side in images.shape[2:]]
    padded = F.pad(images, (beyond[1], beyond[1], beyond[0], beyond[0]), value=0.5)
    found = []
    for factor in scales(*images.shape[2:]):
        seen = [min(side, factor * _SEEN_PX) // factor * factor for side in images.shape[2:]]
        y, x = (
            int(torch.randint(whole - part + 1, (), generator=generator))
            for whole, part in zip(padded.shape[2:], seen, strict=True)
        )
        square = padded[:, :, y : y + seen[0], x : x + seen[1]]
        found.append(F.avg_pool2d(square, factor) if factor > 1 else square)
    return found
