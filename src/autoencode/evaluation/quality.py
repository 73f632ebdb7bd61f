"""The measurements on held-out images: closeness of reconstructions, neighbours, the code of a VAE.

Shapes: B batch, H height, W width, D code size, F features. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.corruptions import CorruptionStep, corrupt, parse_corruptions
from autoencode.data.loader import batches, random_seed
from autoencode.errors import ConfigError
from autoencode.index.neighbours import fit_vector_space
from autoencode.metrics.images import MEASURES
from autoencode.metrics.latents import (
    RunningVariance,
    active_units,
    bits_per_dimension,
    gaussian_log_likelihood,
    kl,
    kl_per_dimension,
)
from autoencode.metrics.retrieval import RetrievalQuality, retrieval_quality
from autoencode.metrics.statistics import Estimate, Interval, estimate

if TYPE_CHECKING:
    from autoencode.configuration import Split
    from autoencode.data.pack import Pack
    from autoencode.models.autoencoder import Autoencoder

BATCH = 64

# A sum of squared errors is the negative log-likelihood of a Gaussian of this variance; a sum of absolute
# errors is not that of any Gaussian.
SQUARED_ERROR_SIGMA2 = 0.5

LABELLED_VALUES = 25_000_000  # pixel values compared at most: 100 MB, 2,000 images of 64x64
# Below this share of active dimensions, most of the code is wasted.
FEW_ACTIVE = 0.1

Restore = Callable[[Tensor], Tensor]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class ImageQuality:
    """How close restored images are to the originals; None if no image has a finite value.

    Attributes:
        psnr_db: mean peak signal-to-noise ratio, dB, without identical images (infinite).
        ssim: mean structural similarity.
        mse: mean squared error of values in [0, 1].
        mae: mean absolute error of values in [0, 1].
        sharpness: median ratio of the variances of the Laplacian; below 1 is blurred.
    """

    psnr_db: Estimate | None
    ssim: Estimate | None
    mse: Estimate | None
    mae: Estimate | None
    sharpness: Estimate | None


@dataclass(frozen=True)
class CodeQuality:
    """How much information the code of a VAE carries, and how well its prior describes it.

    Attributes:
        elbo_nats: evidence lower bound of an image, nats; one draw from each posterior, and images decoded
            into [0, 1]. None if the model was not trained with a Gaussian likelihood.
        bits_per_dimension: the same as bits per value of the 8-bit image.
        kl_nats: KL of the posterior of an image from N(0, I), nats.
        active_units: code dimensions whose mean varies over the images (Burda et al. 2016).
        prior_gap_nats: KL of the aggregate posterior from N(0, I), nats, or None; see `CodeHealth`.
    """

    elbo_nats: Estimate | None
    bits_per_dimension: Estimate | None
    kl_nats: Estimate | None
    active_units: int
    prior_gap_nats: float | None


@dataclass(frozen=True)
class QuickEvaluation:
    """A first look at how good a model is.

    Attributes:
        images: number of images it was measured on.
        split: the split of the pack that they are from.
        quality: how close its reconstructions are.
        code: whether its code carries information; None for a plain autoencoder.
    """

    images: int
    split: Split
    quality: ImageQuality
    code: CodeHealth | None


@dataclass(frozen=True)
class HeldOutImages:
    """Images of a pack, clean and as the model sees them: with the same corruptions every time they are read.

    Attributes:
        pack: of the images.
        rows: (N,) of the pack, each once.
        corruptions: those that the model was trained to undo.
    """

    pack: Pack
    rows: NDArray[np.int64]
    corruptions: tuple[CorruptionStep, ...]

    @classmethod
    def for_model(cls, model: Autoencoder, pack: Pack, rows: NDArray[np.int64]) -> HeldOutImages:
        """Return images with the corruptions of a model's training."""
        return cls(pack, rows, parse_corruptions(model.training_corruptions))

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (clean, seen) batches."""
        for index, clean in enumerate(batches(self.pack, self.rows, BATCH)):
            # Seeded for each batch: the images are read several times, and PCA must see what the model saw.
            generator = torch.Generator().manual_seed(random_seed("evaluate", index))
            yield clean, corrupt(clean, self.corruptions, generator, training=True)

    def head(self, count: int) -> HeldOutImages:
        """Return the first `count`: a random sample, as rows are in the order of content digests."""
        return HeldOutImages(self.pack, self.rows[:count], self.corruptions)


def image_quality(
    images: HeldOutImages, restorers: Mapping[str, Restore], advance: Advance
) -> dict[str, ImageQuality]:
    """Compare clean images with the results of each of `restorers` on the images as the model sees them."""
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in restorers}
    for clean, seen in images.pairs():
        for name, restore in restorers.items():
            restored = restore(seen)
            # In fp64 from here: sums over thousands of images of small errors.
            values = torch.stack([measure.of(restored, clean) for measure in MEASURES.values()], dim=1)
            found[name].append(values.double().numpy())
        advance(len(clean))
    return {name: _quality(np.concatenate(parts)) for name, parts in found.items()}


def _quality(values: NDArray[np.float64]) -> ImageQuality:
    columns = zip(MEASURES.items(), values.T, strict=True)
    return ImageQuality(**{field: estimate(column, measure.summary) for (field, measure), column in columns})


@dataclass(frozen=True)
class CodeHealth:
    """Whether the code of a VAE carries information and fills its prior, by the posteriors of many images.

    Attributes:
        kl_nats: (D,) KL(q(t_j | x) || N(0, 1)) of each code dimension, nats, mean over the images; equation
            (7) of Kovenko & Bogach 2020 before its sum.
        mean_variance: (D,) variance over the images of the posterior mean of each dimension.
        prior_gap_nats: KL(N(m, S) || N(0, I)), nats, at least 0, where m and S are the mean and covariance of
            the aggregate posterior, the distribution of the codes of all images. At 0 samples from the prior
            are like the codes that the decoder knows, as far as two moments show. Corrected for the bias of
            an estimate from few images; None for D + 1 images or fewer, which do not determine S.
    """

    kl_nats: Tensor
    mean_variance: Tensor
    prior_gap_nats: float | None

    @property
    def active_units(self) -> int:
        """Number of dimensions whose mean has a variance above 0.01 over the images (Burda et al. 2016)."""
        return active_units(self.mean_variance)

    @property
    def warning(self) -> str | None:
        """One sentence if most of the code has collapsed onto the prior, else None."""
        return collapse_warning(self.active_units, len(self.mean_variance))


def collapse_warning(active: int, size: int) -> str | None:
    """Return one sentence if most of `size` code dimensions are not active, else None."""
    if active >= FEW_ACTIVE * size:
        return None
    return (
        f"{active} of {size} code dimensions carry information; "
        "try a smaller sigma2 (or auto), or a KL warm-up."
    )


def code_health(model: Autoencoder, batches: Iterable[Tensor]) -> CodeHealth:
    """Measure the code over images.

    Args:
        model: a VAE.
        batches: images (B, 3, H, W) in [0, 1], at least one; iterated once, in constant memory.

    Raises:
        ConfigError: the model is a plain autoencoder, or there is no image.
    """
    if not model.is_vae:
        raise ConfigError("Only the code of a VAE has a KL and a prior; this model is a plain autoencoder.")
    size = model.config.code_size
    kl = torch.zeros(size, dtype=torch.float64)
    means, codes = RunningVariance(), torch.zeros_like(kl)
    products = torch.zeros(size, size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(random_seed("code health"))
    for images in batches:
        posterior = model.encode_distribution(images)
        # Sums over all images are kept in fp64: a variance is a small difference of large sums.
        mean, log_variance = (part.double() for part in posterior if part is not None)
        kl += kl_per_dimension(mean, log_variance).sum(0)
        means.add(mean)
        # A draw from each posterior is a draw from the aggregate one; `_gap` knows the bias of draws.
        code = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).double()
        codes += code.sum(0)
        products += code.T @ code
    if not (count := means.count):
        raise ConfigError("A code is measured on images, and none were given.")
    centre = codes / count
    covariance = products / count - torch.outer(centre, centre)
    return CodeHealth(kl / count, means.variance, _gap(centre, covariance, count))


def gap_in_words(gap_nats: float | None) -> str:
    """Return a `prior_gap_nats` as text."""
    return "not measurable on so few images" if gap_nats is None else f"{gap_nats:.1f} nats"


def _gap(mean: Tensor, covariance: Tensor, count: int) -> float | None:
    """KL(N(m, S) || N(0, I)) without bias, given the mean and the covariance (divisor n) of n codes.

    For the true moments it is (tr S + m'm - D - log det S) / 2. With the moments of n draws the sum of the
    trace and m'm has no bias: the mean has in excess what the covariance lacks. The log-determinant has
    the bias sum_{i=1..D} digamma((n - i) / 2) + D log(2 / n), by the expectation for a Wishart matrix of
    n - 1 degrees of freedom (Bishop 2006, Pattern Recognition, eq. B.81).
    """
    size = len(mean)
    if count <= size + 1:  # the covariance is singular, and its log-determinant infinite
        return None
    half_degrees = (count - torch.arange(1, size + 1, dtype=torch.float64)) / 2
    bias = torch.digamma(half_degrees).sum() + size * math.log(2 / count)
    log_determinant = torch.linalg.slogdet(covariance).logabsdet - bias
    return max(0.0, float(0.5 * (covariance.trace() + mean @ mean - size - log_determinant)))


def code_quality(model: Autoencoder, images: HeldOutImages, advance: Advance) -> CodeQuality:
    """Measure the code of a VAE."""
    sigma2 = likelihood_variance(model)
    elbos, divergences = [], []
    generator = torch.Generator().manual_seed(random_seed("evaluate", "codes"))
    for clean, seen in images.pairs():
        posterior = model.encode_distribution(seen)
        mean, log_variance = posterior
        assert log_variance is not None
        divergences.append(kl(mean, log_variance).double())
        if sigma2 is not None:
            decoded = model.decode(posterior.sample(torch.randn(mean.shape, generator=generator)), "faithful")
            likelihood = gaussian_log_likelihood(clean, decoded, sigma2).double()
            elbos.append(likelihood - divergences[-1])
        advance(len(clean))
    elbo = estimate(torch.cat(elbos).numpy()) if elbos else None
    health = code_health(model, (seen for _, seen in images.pairs()))
    bits, divergence = _bits(elbo, model.values_per_image), estimate(torch.cat(divergences).numpy())
    return CodeQuality(elbo, bits, divergence, health.active_units, health.prior_gap_nats)


def quick_evaluation(model: Autoencoder, pack: Pack, most: int, advance: Advance) -> QuickEvaluation:
    """Measure a model on some held-out images of its training: seconds, where `evaluate` takes minutes.

    Raises:
        ConfigError: the images of the pack have another size.
    """
    model.check_preprocessing(pack.preprocessing, pack.path)
    rows, split = pack.held_out()
    images = HeldOutImages.for_model(model, pack, np.unique(rows)[:most])
    quality = image_quality(images, {"model": partial(model.reconstruct, decoder="faithful")}, advance)[
        "model"
    ]
    code = code_health(model, (seen for _, seen in images.pairs())) if model.is_vae else None
    return QuickEvaluation(len(images.rows), split, quality, code)


def likelihood_variance(model: Autoencoder) -> float | None:
    """Variance of the Gaussian likelihood that a VAE was trained with; None for another likelihood."""
    loss = model.provenance.get("train", {}).get("loss", "gaussian")
    return {"gaussian": float(model.sigma2), "mse": SQUARED_ERROR_SIGMA2}.get(loss)


def _bits(elbo: Estimate | None, values: int) -> Estimate | None:
    if elbo is None:
        return None
    # More nats are fewer bits: the ends of the interval change places.
    bits, *ends = (bits_per_dimension(-nats, values) for nats in (elbo.value, *(elbo.interval or ())[::-1]))
    return Estimate(bits, Interval(*ends) if ends else None, elbo.count)


def label_quality(
    model: Autoencoder, pack: Pack, rows: NDArray[np.int64], labels: NDArray[np.str_]
) -> dict[str, RetrievalQuality]:
    """Measure how well neighbours share a label: by "codes", whitened as a search does, and by raw "pixels".

    Args:
        model: encodes the images.
        pack: of the images.
        rows: (N,) of images that have a label; only as many take part as fit into memory as pixels.
        labels: (N,).

    Raises:
        ConfigError: there are fewer than two labels, or no two images share one.
    """
    # Neighbours by pixels need the pixels of all images in memory at once.
    count = max(2, LABELLED_VALUES // model.values_per_image)
    codes, pixels = [], []
    for images in batches(pack, rows[:count], BATCH):
        codes.append(model.encode(images).numpy())
        pixels.append(images.flatten(1).numpy())
    found = np.concatenate(codes)
    vectors = {"codes": fit_vector_space(found, "whitened").vectors(found), "pixels": np.concatenate(pixels)}
    return {name: retrieval_quality(values, labels[:count]) for name, values in vectors.items()}
