"""The perceptual phase of a run: a second decoder learns to match features of a pretrained network.

The mean squared error asks for the mean of all images that a code can stand for, and that is blurred.
Features of a network that was trained on photographs distinguish sharp images from blurred ones (Johnson et
al. 2016). They are compared as by Zhang et al. 2018, equation 1, with equal weights. A critic adds what they
do not ask for, detail (see `critic`). The encoder is frozen, so that codes, indexes and scores stay as they
are; the first decoder, of the lower squared error, is kept. After each epoch validation images decide how
much of what the second adds is drawn: perception is bought with error (Blau & Michaeli 2018), and between
two decoders the least error for the distance to real images is on the line between their images (Freirich
et al. 2021). A decoder of few images may learn these by heart: it is left out where it takes validation
images further from the originals.

Shapes: B batch, C channels, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.data.augmentation import random_patch
from autoencode.data.loader import random_seed
from autoencode.metrics.latents import in_fp64
from autoencode.models.backbones import BACKBONE
from autoencode.models.convolutions import Enlargement
from autoencode.models.detail import Refinement, parts_of_detail
from autoencode.training.adversarial import SMALLEST_NORM
from autoencode.training.critic import Critic, between, ratio_at, scales
from autoencode.training.losses import LOG_FLOOR, mse_loss
from autoencode.training.presets import FEW_IMAGES

if TYPE_CHECKING:
    from autoencode.configuration import DecoderName
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
# colours in place. With 15 the PSNR is 0.04 dB higher, and KID worse (docs/results.md).
_WEIGHT = 50.0
STEP_IMAGES = 16  # of a batch that one step takes: half as many images come as far in as many steps
# How much lower the PSNR of sharp validation images may be than that of faithful ones, dB. Detail that a code
# does not know costs as much error as it adds energy, so a limit has to be chosen: faces have 0.43 of the
# KID of a model without it, instead of 0.35 with all of the detail, which costs 0.9 dB (docs/results.md).
LOSS_DB = 0.46
# Weight of coarse detail relative to fine: at equal error, fine detail is more visible. At the same loss
# and the same KID, sharpness is 0.50 instead of 0.45 with equal weights.
_COARSE_SHARE = 0.3
# Batches of the first phase that take as long as one of this phase; estimates the time left at first.
COST = 7.0


# The views of each micro-batch, with its position in the batch.
Parts = Iterable[tuple["Views", "LocalBatch"]]


@dataclass
class PerceptualPhase:
    """The second decoder while it is trained.

    Attributes:
        model: a frozen copy of the trained model; its `sharp_decoder` is `decoder`, or None where that takes
            validation images further from the originals than the first.
        decoder: the one that is trained.
        optimizer: of its weights.
        critic: judges its images.
        seed: of the run.
        batch_size: images in a batch of the run.
        runtime: of the run.
        faithful_distance: perceptual distance of validation images by the first decoder; None before it is
            measured.
        step: batches learnt from.
        scale: factor on the perceptual distance, found at the first step; 0 before it.
    """

    model: Autoencoder
    decoder: ImageDecoder
    optimizer: torch.optim.Optimizer
    critic: Critic
    seed: int
    batch_size: int
    runtime: Runtime
    faithful_distance: float | None = None
    step: int = 0
    scale: float = 0.0

    def learn(
        self,
        clean: Tensor,
        local: LocalBatch,
        parts: Callable[[Tensor, LocalBatch, int], Parts],
        batches: int,
        processes: Processes,
    ) -> Tensor:
        """Learn from a batch, in steps of at most `STEP_IMAGES` images.

        Args:
            clean: images of this process, (B, 3, H, W).
            local: their position in the batch.
            parts: makes the micro-batches of some of them, given these, their position and the step.
            batches: of the whole phase.
            processes: those that share the batch.

        Returns:
            (4,) float64: loss of the decoder, squared error, perceptual distance and loss of the critic,
            summed over the images of all processes.
        """
        most, count = (-(-size // STEP_IMAGES) for size in (self.batch_size, local.batch_size))
        sums = self.runtime.zeros(4)
        for number in range(count):
            step, (own, chosen) = self.step * most + number, local.strided(number, count)
            sums += self._step(partial(parts, clean[own], chosen, step), step, batches * most, processes)
        self.step += 1
        return sums

    def _step(self, parts: Callable[[], Parts], step: int, steps: int, processes: Processes) -> Tensor:
        """Take one step of the decoder, whose rate is a cosine down to 0, and of the critic."""
        critic, runtime = self.critic, self.runtime
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * _RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimizer in (self.optimizer, critic.optimizer):
            optimizer.zero_grad(set_to_none=True)
        codes = self._codes(parts, processes)
        mixed = between(codes, step, self.seed)
        if not self.scale:
            self._set_scale(parts, codes, processes)
        sums, norms = runtime.zeros(4), [torch.zeros_like(self.decoder.last_weight) for _ in range(2)]
        pulled: list[tuple[Tensor, Tensor, Tensor]] = []
        for views, local in parts():
            with runtime.autocast():
                decoded = self.decoder(torch.cat([codes[local.positions], mixed[local.positions]])).float()
            restored = decoded[: len(views.target)].detach().requires_grad_()
            error, distance = self._terms(restored, views.target, local, step)
            loss = error + self.scale * distance
            (by_rest,) = torch.autograd.grad(loss, restored)
            by_rest = local.weight * torch.cat([by_rest, torch.zeros_like(by_rest)])
            by_critic, judged = critic.judge(views.target, decoded, local, step, self.seed)
            pulled.append((decoded, by_rest, local.weight * by_critic))
            # Where the image is painted, before it is refined: there both gradients reach the whole decoder.
            for total, gradient in zip(norms, pulled[-1][1:], strict=True):
                total += torch.autograd.grad(decoded, self.decoder.last_weight, gradient, retain_graph=True)[
                    0
                ]
            sums += in_fp64(torch.stack([loss, error, distance, judged]).detach()) * local.counted
        measured = processes.total(sums)
        # Measured in this step: a mean over earlier steps let the error of emoji double (docs/log.md).
        rest, pull = (processes.total(total).norm() for total in norms)
        weight = ratio_at(step, steps) * rest / (pull + SMALLEST_NORM)
        for decoded, by_rest, by_critic in pulled:
            decoded.backward(by_rest + weight * by_critic)  # type: ignore[no-untyped-call]
        for module, optimizer in ((self.decoder, self.optimizer), (critic.network, critic.optimizer)):
            processes.sum_gradients(module.parameters())
            optimizer.step()
        return measured

    @torch.no_grad()
    def _codes(self, parts: Callable[[], Parts], processes: Processes) -> Tensor:
        """Return the codes of the whole batch, (B, D), in every process."""
        codes = None
        for views, local in parts():
            with self.runtime.autocast():
                posterior = self.model.posterior(views.seen)
                own = posterior.mean if views.noise is None else posterior.sample(views.noise)
            if codes is None:
                codes = own.new_zeros(local.batch_size, own.shape[1], dtype=torch.float32)
            codes[local.positions] += own * bool(local.counted)
        assert codes is not None
        return processes.total(codes)

    @torch.no_grad()
    def _set_scale(self, parts: Callable[[], Parts], codes: Tensor, processes: Processes) -> None:
        """Weight the perceptual distance by what both terms are at first, means over all scales."""
        first = self.runtime.zeros(2)
        for views, local in parts():
            with self.runtime.autocast():
                decoded = self.decoder(codes[local.positions]).float()
            for number in range(len(scales(*decoded.shape[2:]))):
                first += in_fp64(self._terms(decoded, views.target, local, number)) * local.counted
        error, distance = processes.total(first).tolist()
        self.scale = _WEIGHT * error / max(distance, 1e-9)

    def _terms(self, decoded: Tensor, target: Tensor, local: LocalBatch, step: int) -> Tensor:
        """Return squared error and perceptual distance of a micro-batch, means over its images, (2,).

        Each step compares large images at another of their `scales`.
        """
        pairs = torch.cat([decoded, target], dim=1)
        factors = scales(*pairs.shape[2:])
        if (factor := factors[step % len(factors)]) > 1:
            pairs = F.avg_pool2d(pairs, factor)
        pairs = _enlarged(pairs)
        if max(pairs.shape[2:]) > COMPARED_PX:
            seed = random_seed("squares", self.seed, step)
            pairs = random_patch(pairs, COMPARED_PX, torch.Generator(pairs.device).manual_seed(seed), local)
        distance = perceptual_distances(*pairs.chunk(2, dim=1)).mean()
        return torch.stack([mse_loss(target, decoded), distance])

    def detail_terms(self, views: Views) -> Tensor:
        """Return the moments from which the detail is chosen, means over images, (3, 3) float64.

        They are the products, each with each, of the error of faithful images and of the fine and the coarse
        part of the detail, divided by the squared error of the faithful image, as a decibel counts the same
        for all images. Images are those of codes without noise.
        """
        with self.runtime.autocast():
            codes = self.model.posterior(views.seen).mean
            faithful = self.model.images_of(codes, "faithful").clamp(0, 1)
            sharp = self.decoder(codes).float().clamp(0, 1)
        parts = torch.stack([views.target - faithful, *parts_of_detail(faithful, sharp)]).flatten(2)
        products = torch.einsum("ibn,jbn->bij", parts, parts) / parts.shape[2]
        errors = products[:, 0, 0].clamp_min(LOG_FLOOR)
        return in_fp64((products / errors[:, None, None]).mean(0))

    def choose_detail(self, terms: Tensor) -> None:
        """Draw as much detail as costs at most `LOSS_DB` of the mean PSNR, fine before coarse.

        The model then draws it, until `decide_whether_kept`.

        The limit is one on the mean ratio of squared errors, whose logarithm is no less than the mean loss.

        Args:
            terms: (3, 3), means of those of `detail_terms`.
        """
        most = terms[0, 0].item() * 10 ** (LOSS_DB / 10)
        missing = terms.new_tensor([1.0, 0.0, 0.0])  # the error of what is drawn, as a sum of the three
        for part in ((0.0, 1.0, _COARSE_SHARE), (0.0, 0.0, 1 - _COARSE_SHARE)):
            added = terms.new_tensor(part)
            error, known, energy = (
                (one @ terms @ other).item()
                for one, other in ((missing, missing), (missing, added), (added, added))
            )
            # With a share t of this part the error is error - 2 t known + t^2 energy.
            share = (known + math.sqrt(known**2 + energy * max(most - error, 0.0))) / max(energy, 1e-12)
            share = min(max(share, 0.0), 1.0) if energy > 0 else 1.0
            missing = missing - share * added
            if share < 1:
                break
        assert self.decoder.detail is not None
        self.decoder.detail.copy_(-missing[1:])
        self.model.sharp_decoder = self.decoder

    def validate(self, views: Views, decoder: DecoderName = "sharp") -> Tensor:
        """Return the mean squared error and the mean perceptual distance of reconstructions, (2,) float64."""
        with self.runtime.autocast():
            decoded = self.model.images_of(self.model.posterior(views.seen).mean, decoder).clamp(0, 1)
        distance = perceptual_distances(decoded, views.target).mean()
        return in_fp64(torch.stack([mse_loss(views.target, decoded), distance]))

    def decide_whether_kept(self, distance: float, images: int) -> bool:
        """Give the model the second decoder, or none where that learnt few images by heart.

        Args:
            distance: perceptual distance of validation images by the second decoder.
            images: the number of training images. Above `FEW_IMAGES` it is kept at any distance: detail that
                a code does not know raises the distance of each image, and lowers that of the whole set.

        Returns:
            Whether it is kept: if images are many, or the distance is below that of the first decoder.
        """
        assert self.faithful_distance is not None
        is_kept = images > FEW_IMAGES or distance < self.faithful_distance
        self.model.sharp_decoder = self.decoder if is_kept else None
        return is_kept

    def measures(self, means: Tensor) -> Record:
        """Name the means of an epoch, (4,), as in `learn`.

        The perceptual distance is a mean over steps, which take the scales in turn, so from 128 pixels on it
        does not compare with that of `validate`, which measures images at their own size.
        """
        loss, error, distance, judged = means.tolist()
        record: Record = {"train_perceptual_loss": loss, "train_sharp_mse": error}
        return record | {"train_perceptual": distance, "critic_loss": judged}


def begin(
    model: Autoencoder, seed: int, batch_size: int, runtime: Runtime, *, is_refined: bool = True
) -> PerceptualPhase:
    """Return the phase before its first step: the second decoder draws what the first does.

    Args:
        model: the trained model, which stays as it is.
        seed, batch_size, runtime: of the run.
        is_refined: whether the second decoder ends with a `Refinement`.
    """
    own = copy.deepcopy(model).requires_grad_(False).eval()
    second = copy.deepcopy(own.decoder).requires_grad_(True)
    second.detail = torch.ones(2, device=second.last_weight.device)
    if is_refined:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(random_seed("refinement", seed))
            second.refinement = Refinement()
        runtime.model_to_device(second)
    own.sharp_decoder = second
    groups = own.groups_of(second, second.linear)
    optimizer = torch.optim.AdamW(groups, _RATE, betas=(0.5, 0.99), weight_decay=0.01)
    size = own.preprocessing
    critic = Critic(size.height, size.width, runtime, random_seed("critic", seed))
    return PerceptualPhase(own, second, optimizer, critic, seed, batch_size, runtime)


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
    height, width = images.shape[2:]
    if min(height, width) >= COMPARED_PX:
        return images
    return _enlargement(height, width, images.device)(images)  # type: ignore[no-any-return]


@lru_cache(maxsize=4)
def _enlargement(height: int, width: int, device: torch.device) -> Enlargement:
    factor = COMPARED_PX / min(height, width)
    size = round(height * factor), round(width * factor)
    with torch.inference_mode(mode=False):  # kept: validation may ask first, and training next
        return Enlargement((height, width), size).to(device)
