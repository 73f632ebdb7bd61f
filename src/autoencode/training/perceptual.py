"""The perceptual phase of a run: a second decoder, which learns to match features of a pretrained network.

The mean squared error asks for the mean of all images that a code can stand for, and that is blurred.
Features of a network that was trained on photographs distinguish sharp images from blurred ones (Johnson et
al. 2016). They are compared as by Zhang et al. 2018, equation 1, with equal weights. The encoder is frozen,
so that codes, indexes and scores stay as they are; the first decoder, of the lower squared error, is kept.

Shapes: B batch, C channels, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.data.augmentation import random_patch
from autoencode.data.loader import random_seed
from autoencode.metrics.latents import in_fp64
from autoencode.models.backbones import BACKBONE
from autoencode.training.losses import mse_loss

if TYPE_CHECKING:
    from autoencode.data.loader import LocalBatch
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.models.convolutions import ImageDecoder
    from autoencode.training.distributed import Processes
    from autoencode.training.objective import Views
    from autoencode.training.run import Record
    from autoencode.training.runtime import Runtime

BLOCKS = (0, 2, 4, 10)  # of EfficientNet-Lite0: shallow ones know edges and texture, deep ones parts
COMPARED_PX = 112  # side of the squares that are compared
_RATE = 1e-3  # 2e-3 comes about as far in half the steps of 6e-4, 4e-3 diverges (docs/log.md)
# Size of the perceptual term relative to the squared error, where the phase starts: the pixels only keep
# colours in place. With 15 the PSNR is .04 dB higher, and KID worse (docs/results.md).
_WEIGHT = 50.0
# A step takes as long as so many of the steps before, for the time left until it is known.
COST = 5.0


# The views of each micro-batch, with its position in the batch.
Parts = Callable[[], Iterable[tuple["Views", "LocalBatch"]]]


@dataclass
class PerceptualPhase:
    """The second decoder while it is trained.

    Attributes:
        model: a copy of the trained model, frozen but for its `sharp_decoder`.
        optimizer: of the weights of that decoder.
        step: optimiser steps taken.
        seed: of the run.
        scale: factor on the perceptual distance, found at the first step; 0 before it.
    """

    model: Autoencoder
    optimizer: torch.optim.Optimizer
    seed: int
    step: int = 0
    scale: float = 0.0

    @property
    def decoder(self) -> ImageDecoder:
        """The decoder that is trained."""
        assert self.model.sharp_decoder is not None
        return self.model.sharp_decoder

    def step_once(self, parts: Parts, steps: int, runtime: Runtime, processes: Processes) -> Tensor:
        """Take one of `steps` optimiser steps; the rate is a cosine from the highest down to 0.

        Args:
            parts: gives the views of each micro-batch of this process, each time it is called.
            steps: of the whole phase.
            runtime: of the run.
            processes: those that share the batch.

        Returns:
            (4,) float64: loss, squared error and perceptual distance, summed over all images; and a 0.
        """
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * self.step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * rate
        self.optimizer.zero_grad(set_to_none=True)
        if not self.scale:
            with torch.no_grad():
                first = [self._terms(*part, runtime) * part[1].counted for part in parts()]
            error, distance = processes.total(torch.stack(first).sum(0)).tolist()
            self.scale = _WEIGHT * error / max(distance, 1e-9)
        sums = runtime.zeros(4)
        for views, local in parts():
            error, distance = self._terms(views, local, runtime)
            loss = error + self.scale * distance
            (local.weight * loss).backward()
            found = torch.stack([loss, error, distance, torch.zeros_like(loss)])
            sums += in_fp64(found.detach()) * local.counted
        measured = processes.total(sums)
        processes.sum_gradients(self.decoder.parameters())
        self.optimizer.step()
        self.step += 1
        return measured

    def _terms(self, views: Views, local: LocalBatch, runtime: Runtime) -> Tensor:
        """Return squared error and perceptual distance of a micro-batch, means over its images, (2,)."""
        with runtime.autocast():
            with torch.no_grad():
                posterior = self.model.posterior(views.seen)
                codes = posterior.mean if views.noise is None else posterior.sample(views.noise)
            decoded = self.decoder(codes)
        pairs = _enlarged(torch.cat([decoded.float(), views.target], dim=1))
        if max(pairs.shape[2:]) > COMPARED_PX:
            seed = random_seed("squares", self.seed, self.step)
            pairs = random_patch(pairs, COMPARED_PX, torch.Generator(pairs.device).manual_seed(seed), local)
        distance = perceptual_distances(*pairs.chunk(2, dim=1)).mean()
        return torch.stack([mse_loss(views.target, decoded), distance])

    def validate(self, views: Views, runtime: Runtime) -> Tensor:
        """Return the mean squared error and the mean perceptual distance of reconstructions, (2,) float64."""
        with runtime.autocast():
            decoded = self.decoder(self.model.posterior(views.seen).mean)
        decoded = decoded.float().clamp(0, 1)
        distance = perceptual_distances(decoded, views.target).mean()
        return in_fp64(torch.stack([mse_loss(views.target, decoded), distance]))

    def measures(self, means: Tensor) -> Record:
        """Name the means of an epoch, (4,), as in `step_once`."""
        loss, error, distance, _ = means.tolist()
        return {"train_perceptual_loss": loss, "train_sharp_mse": error, "train_perceptual": distance}


def begin(model: Autoencoder, seed: int) -> PerceptualPhase:
    """Return the phase before its first step: the second decoder is a copy of the first."""
    own = copy.deepcopy(model).requires_grad_(False).eval()
    own.sharp_decoder = copy.deepcopy(own.decoder).requires_grad_(True)
    groups = own.groups_of(own.sharp_decoder, own.sharp_decoder.linear)
    optimizer = torch.optim.AdamW(groups, _RATE, betas=(0.9, 0.99), weight_decay=0.01)
    return PerceptualPhase(own, optimizer, seed)


def perceptual_distances(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the perceptual distance of each pair of images, (B,), at least 0; differentiable in the first.

    The mean over `BLOCKS`, and over the places of their maps, of the squared distance of features of length
    1 (Zhang et al. 2018, equation 1, without its learned weights).

    Args:
        ours: (B, 3, H, W) in [0, 1].
        theirs: of the same shape.
    """
    ours, theirs = _enlarged(ours.float()), _enlarged(theirs.float())
    with torch.no_grad():
        wanted = BACKBONE.feature_maps(theirs.clamp(0, 1), BLOCKS)
    total = ours.new_zeros(len(ours))
    for mine, other in zip(BACKBONE.feature_maps(ours, BLOCKS), wanted, strict=True):
        # |a - b|^2 = 2 - 2 a.b of vectors of length 1.
        total = total + (2 - 2 * F.cosine_similarity(mine.float(), other.float(), dim=1)).mean((1, 2))
    return total / len(BLOCKS)


def _enlarged(images: Tensor) -> Tensor:
    """Return images whose shorter side is at least COMPARED_PX."""
    factor = COMPARED_PX / min(images.shape[2:])
    if factor <= 1:
        return images
    size = [round(side * factor) for side in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
