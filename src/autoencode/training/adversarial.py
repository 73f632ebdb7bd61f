"""VAE/GAN: a discriminator distinguishes decoded from real images, and the decoder learns to fool it.

Larsen, Sønderby, Larochelle & Winther 2016, "Autoencoding beyond pixels using a learned similarity metric",
made stable and cheap: the pixel likelihood is kept beside the feature likelihood; spectral normalisation and
the hinge loss (Miyato et al. 2018); an adversarial term weighted by its gradient (Esser et al. 2021); and a
start at half of the steps, once the VAE has learned what it can alone. docs/log.md records the trials.

Shapes: B batch, C channels, H height, W width, D code size, h and w the sides of a grid of features. Images
are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from autoencode.models.convolutions import CHANNELS

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.runtime import Runtime

# The discriminator halves the image until the shorter side is at most this, doubling its channels from the
# first number to the second.
DEEPEST_SIDE, FIRST_WIDTH, LAST_WIDTH = 4, 24, 192

# Adam's step size and decays (docs/log.md has others).
RATE, DECAYS = 5e-4, (0.5, 0.99)

FEATURE_WEIGHT = 1.0  # of the features' likelihood beside the pixels', both nats per value
ADVERSARIAL_RATIO = 0.5  # norm of the adversarial gradient relative to that of the reconstruction's
SMALLEST_NORM = 1e-8

# Start of the discriminator, and the rise of its weight from 0, as fractions of the steps: earlier, it would
# learn to distinguish blobs.
START, RISE = 0.5, 0.1


class Judgement(NamedTuple):
    """The output of the discriminator.

    Attributes:
        logits: (B, 1, h, w), one per patch, above 0 for "real".
        features: of each level, shallow to deep, each (B, C, h, w).
    """

    logits: Tensor
    features: list[Tensor]


class Measures(NamedTuple):
    """The terms of one step, each a scalar tensor; see the functions of the same names."""

    discriminator_loss: Tensor
    adversarial_loss: Tensor
    feature_loss: Tensor


class Discriminator(nn.Module):
    """Convolutions of 4x4 with stride 2 and leaky ReLU, the matrix of each with spectral norm 1.

    Args:
        height: H; at least 2.
        width: W; at least 2.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        widths = [CHANNELS]
        side = min(height, width)
        while side > DEEPEST_SIDE or len(widths) == 1:
            widths.append(min(FIRST_WIDTH * 2 ** (len(widths) - 1), LAST_WIDTH))
            side //= 2
        self.levels = nn.ModuleList(
            spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            for inputs, outputs in pairwise(widths)
        )
        self.to_logits = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Judgement:
        """Judge images."""
        level, features = 2 * images - 1, []  # centred: spectral norms bound slopes, not offsets
        for convolution in self.levels:
            level = F.leaky_relu(convolution(level), 0.2)
            features.append(level)
        return Judgement(self.to_logits(level).float(), features)


def discriminator_loss(real: Tensor, decoded: Tensor) -> Tensor:
    """Hinge loss of the discriminator's logits; Miyato et al. 2018, equation (16)."""
    return F.relu(1 - real).mean() + F.relu(1 + decoded).mean()


def adversarial_loss(decoded: Tensor) -> Tensor:
    """Hinge loss of the decoder, from the logits of its images; Miyato et al. 2018, equation (17)."""
    return -decoded.mean()


def feature_loss(real: list[Tensor], restored: list[Tensor]) -> Tensor:
    """Negative log-likelihood of real images' features around restored ones', per value, up to a constant.

    Larsen et al. 2016, equations (7) and (8), with the maximum-likelihood variance instead of 1, as sigma2
    "auto" for pixels: then it is half the log of the mean squared error (Rybkin et al. 2021, equation (8)),
    and depends neither on the scale of the features nor on how many there are.

    Args:
        real: features of some levels, each (B, C, h, w); no gradient flows into them.
        restored: the same of the restored images.

    Returns:
        The mean over the levels, nats per value.
    """
    errors = [
        F.mse_loss(ours.float(), theirs.detach().float()) for theirs, ours in zip(real, restored, strict=True)
    ]
    return torch.stack([0.5 * torch.log(error + SMALLEST_NORM) for error in errors]).mean()


def ratio_at(step: int, steps: int) -> float:
    """Norm of the adversarial gradient at a step, relative to the reconstruction's; 0 before it joins.

    Args:
        step: steps taken before this one, from 0.
        steps: all the steps of the run.
    """
    joined = step + 1 - round(START * steps)
    return ADVERSARIAL_RATIO * min(1.0, max(0.0, joined / max(1, round(RISE * steps))))


class Adversary:
    """A discriminator trained beside a model, and its gradient for that model.

    Args:
        height: H of the images.
        width: W of them.
        runtime: its device and precision.
        seed: seed of its initial weights.

    Attributes:
        discriminator: the network, with the vectors of its spectral norms.
        optimizer: its optimiser, with moments.
        sums: (4,) float64: `Measures` summed over the images it has seen this epoch, and their number.
    """

    def __init__(self, height: int, width: int, runtime: Runtime, seed: int) -> None:
        self.runtime = runtime
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.discriminator = Discriminator(height, width)
        runtime.model_to_device(self.discriminator)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=RATE, betas=DECAYS)
        self.sums = torch.zeros(len(Measures._fields) + 1, dtype=torch.float64)

    def step(
        self, model: Autoencoder, clean: Tensor, restored: Tensor, loss: Tensor, seed: int, ratio: float
    ) -> None:
        """Add the gradients of one step to the model, and take one step of the discriminator.

        Args:
            model: the model in training.
            clean: the images, (B, 3, H, W).
            restored: their reconstructions, with graph.
            loss: the objective of the model, with graph.
            seed: seed of the codes drawn from N(0, I), whose images the discriminator sees as well.
            ratio: see `ratio_at`.
        """
        generator = torch.Generator(clean.device).manual_seed(seed)
        shape = (len(clean), model.config.code_size)
        noise = torch.randn(shape, generator=generator, device=clean.device)
        with self.runtime.autocast():
            samples = model.decoder(noise)
            # Detached leaves: one pass of the discriminator serves its own step and the model's gradient.
            decoded = torch.cat([restored, samples]).detach().requires_grad_()
            real, judged = self.discriminator(clean), self.discriminator(decoded)
        measures = Measures(
            discriminator_loss(real.logits, judged.logits),
            adversarial_loss(judged.logits),
            feature_loss(real.features, [level[: len(clean)] for level in judged.features]),
        )
        (by_feature,) = torch.autograd.grad(measures.feature_loss, decoded, retain_graph=True)
        (by_adversary,) = torch.autograd.grad(measures.adversarial_loss, decoded, retain_graph=True)
        _add_gradients(
            model, loss, (restored, samples), FEATURE_WEIGHT * by_feature[: len(clean)], by_adversary, ratio
        )
        self.optimizer.zero_grad(set_to_none=True)
        measures.discriminator_loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        # Weighted by images, as the last batch of an epoch may be smaller.
        sums = [term.detach() * len(clean) for term in measures]
        self.sums += torch.stack([*sums, torch.full_like(sums[0], len(clean))]).cpu()

    def take_measures(self) -> dict[str, float]:
        """Return the mean of each of `Measures` over the images of this epoch, if any, and reset the sums."""
        *sums, images = self.sums.tolist()
        self.sums.zero_()
        return {name: value / images for name, value in zip(Measures._fields, sums, strict=True) if images}


def _add_gradients(
    model: Autoencoder,
    loss: Tensor,
    images: tuple[Tensor, Tensor],
    by_feature: Tensor,
    by_adversary: Tensor,
    ratio: float,
) -> None:
    """Add the gradients of the weights of a model, as in Algorithm 1 of Larsen et al. 2016.

    The encoder follows the objective and the features alone; the adversarial term reaches the decoder only.
    Its weight is that of Esser et al. 2021, equation (7), times `ratio`: the ratio of the gradients' norms at
    the last layer.

    Args:
        model: the model.
        loss: its objective, with graph.
        images: reconstructions and samples, with graph, (B, 3, H, W) each.
        by_feature: gradient of the feature loss by the restored images.
        by_adversary: gradient of the adversarial loss by both, (2B, 3, H, W).
        ratio: norm of the adversarial gradient, relative to that of the other terms.
    """
    restored, last = images[0], model.decoder.last_weight
    (by_objective,) = torch.autograd.grad(loss, restored, retain_graph=True)
    (rest,) = torch.autograd.grad(restored, last, by_objective + by_feature, retain_graph=True)
    (adversarial,) = torch.autograd.grad(images, last, by_adversary.chunk(2), retain_graph=True)
    weight = ratio * rest.norm() / (adversarial.norm() + SMALLEST_NORM)
    torch.autograd.backward([loss, restored], [None, by_feature], retain_graph=True)
    torch.autograd.backward(images, (weight * by_adversary).chunk(2), inputs=list(model.decoder.parameters()))
