"""Measure how close images are, one by one and as sets.

Images are torch tensors (B, C, H, W), float in [0, 1], on any device; the result is one number per image,
(B,) float32 on the CPU. B batch, C channels, H height, W width, N samples, F feature size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.errors import ConfigError
from autoencode.metrics.statistics import Interval

VALUES_PER_CHUNK = 2**20  # bounds the working memory of an image metric to some 60 MB, and fits the cache
SSIM_WINDOW_PX = 11

Reals = NDArray[np.floating[Any]]
Features = NDArray[np.float64]


class KernelDistance(NamedTuple):
    """A kernel distance, its standard error, and the 95 % interval that follows from both."""

    value: float
    standard_error: float
    interval: Interval


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over channels and pixels of (a - b)², per image.

    Args:
        a: images (B, C, H, W), float in [0, 1].
        b: images of the same shape.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ConfigError: the shapes differ, or are not four-dimensional, or the values are not floats.
    """
    return _per_image(a, b, lambda x, y: (x - y).square().mean(dim=(1, 2, 3)))


def mean_absolute_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over channels and pixels of |a - b|, per image; arguments as `mean_squared_error`.

    Returns:
        (B,) float32 in [0, 1].
    """
    return _per_image(a, b, lambda x, y: (x - y).abs().mean(dim=(1, 2, 3)))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio per image, 10 log10(1 / MSE); arguments as `mean_squared_error`.

    Returns:
        (B,) float32 in dB, at least 0; infinite where the two images are identical.
    """
    return 10 * mean_squared_error(a, b).reciprocal().log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity per image: Wang et al. 2004, eq. 13, settings of its section III-C.

    Gaussian window of 11 px and sigma 1.5, K1 = 0.01, K2 = 0.03, peak 1; computed for each channel and
    averaged over the channels and over every position where the window lies inside the image.

    Args:
        a: images (B, C, H, W), float in [0, 1], at least 11 px high and wide.
        b: images of the same shape.

    Returns:
        (B,) float32 in [-1, 1]; 1 where the two images are identical.

    Raises:
        ConfigError: as for `mean_squared_error`, or a side is shorter than the window.
    """
    if min(a.shape[-2:], default=0) < SSIM_WINDOW_PX:
        raise ConfigError(
            f"SSIM needs images of at least {SSIM_WINDOW_PX}x{SSIM_WINDOW_PX} px, its window; "
            f"got a tensor of shape {tuple(a.shape)}. Use PSNR for smaller ones."
        )
    return _per_image(a, b, _ssim_chunk)


def sharpness_ratio(restored: Tensor, original: Tensor) -> Tensor:
    """Return the variance of the Laplacian of the restored image over that of the original, per image.

    The variance of the Laplacian is the focus measure of Pech-Pacheco et al. 2000, here with the
    four-neighbour Laplacian of the mean over channels. Below 1 the restored image is blurred, above 1 it
    is noisier or sharper.

    Args:
        restored: images (B, C, H, W), float in [0, 1], at least 3 px high and wide.
        original: images of the same shape.

    Returns:
        (B,) float32, at least 0; infinite where only the original is flat, 1 where both are.

    Raises:
        ConfigError: as for `mean_squared_error`, or a side is shorter than 3 px.
    """
    if min(original.shape[-2:], default=0) < 3:
        raise ConfigError(
            f"The sharpness ratio needs images of at least 3x3 px; got {tuple(original.shape)}."
        )

    def ratio(x: Tensor, y: Tensor) -> Tensor:
        restored_variance, original_variance = _laplacian_variance(x), _laplacian_variance(y)
        both_flat = (restored_variance == 0) & (original_variance == 0)
        return torch.where(both_flat, 1.0, restored_variance / original_variance)

    return _per_image(restored, original, ratio)


def kernel_inception_distance(features_a: Reals, features_b: Reals) -> KernelDistance:
    """Return the kernel distance between two sets of features of any kind: Bińkowski et al. 2018, section 4.

    It is the unbiased estimate of MMD² (Gretton et al. 2012, eq. 3) under k(x, y) = (x·y / F + 1)³. For equal
    distributions it is slightly negative about half the time, and its expectation does not depend on the
    number of samples. It is comparable only between runs that use the same features.

    All samples are used at once. Other programs average over random subsets and print the spread between
    these, which measures the luck of the subsets and not that of the samples. The standard error here is a
    jackknife over the samples (Arvesen 1969).

    Args:
        features_a: (N, F) features of one set of images, N at least 2.
        features_b: (M, F) features of the other, M at least 2; the order of the two does not matter.

    Returns:
        The distance, its standard error (infinite for two samples) and the interval at 95 %, in units of the
        kernel.

    Raises:
        ConfigError: the features do not fit together or are not finite, or a set has fewer than two samples.
    """
    a, b = _checked_features(features_a), _checked_features(features_b)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ConfigError(
            "A kernel distance needs two or more samples in each set, and features of one length; "
            f"got {a.shape} and {b.shape}."
        )
    between = _kernel(a, b)
    terms = (_within(a, between.sum(axis=1), len(b)), _within(b, between.sum(axis=0), len(a)))
    value = sum(mean for mean, _ in terms) - 2 * between.mean()
    error = math.sqrt(sum(variance for _, variance in terms))
    margin = NormalDist().inv_cdf(0.975) * error
    return KernelDistance(float(value), error, Interval(float(value - margin), float(value + margin)))


def manifold_shares(real: Reals, made: Reals, neighbours: int) -> tuple[int, int]:
    """Count the images that lie among those of the other set: Kynkäänniemi et al. 2019, equations 1 and 2.

    An image lies among a set if it is no further from one of its images than the nearest but k of that set
    are from that image. The share of made images among the real ones is their precision: how many could be
    real. The share of real images among the made ones is their recall: how much of the variety they have.

    Args:
        real: (N, F) features of real images, N above `neighbours`.
        made: (M, F) the same features of made images, M above `neighbours`.
        neighbours: k.

    Returns:
        The number of made images among the real ones, of M, and of real images among the made ones, of N.

    Raises:
        ConfigError: the features do not fit together or are not finite, or a set has too few.
    """
    a, b = _checked_features(real), _checked_features(made)
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) <= neighbours:
        raise ConfigError(
            f"Precision and recall need more than {neighbours} samples in each set, and features of one "
            f"length; got {a.shape} and {b.shape}."
        )
    from scipy.spatial.distance import cdist  # half a second, see `statistics`

    between = cdist(a, b)
    among_real, among_made = (
        # The nearest of all is the image itself.
        np.partition(cdist(one, one), neighbours, axis=1)[:, neighbours]
        for one in (a, b)
    )
    made_count = int((between <= among_real[:, None]).any(axis=0).sum())
    return made_count, int((between <= among_made[None]).any(axis=1).sum())


def detail(images: Tensor) -> Tensor:
    """Return the variance of the Laplacian of each image, (B,) float32: Pech-Pacheco et al. 2000.

    Args:
        images: (B, C, H, W), float in [0, 1], at least 3 px high and wide.
    """
    return _laplacian_variance(images.float()).cpu()


def _per_image(a: Tensor, b: Tensor, metric: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if a.shape != b.shape or a.ndim != 4 or 0 in a.shape[1:]:
        raise ConfigError(
            "Two batches of images of one shape (B, C, H, W) are needed; "
            f"got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ConfigError(
            f"Images must be floats in [0, 1]; got {a.dtype} and {b.dtype}. Divide bytes by 255."
        )
    step = max(1, VALUES_PER_CHUNK // math.prod(a.shape[1:]))
    with torch.no_grad():
        chunks = [
            metric(a[start : start + step].float(), b[start : start + step].float()).cpu()
            for start in range(0, len(a), step)
        ]
    return torch.cat([torch.empty(0), *chunks])


def _ssim_chunk(x: Tensor, y: Tensor) -> Tensor:
    mean_x, mean_y = _gaussian_blur(x), _gaussian_blur(y)
    variance_x = _gaussian_blur(x * x) - mean_x * mean_x
    variance_y = _gaussian_blur(y * y) - mean_y * mean_y
    covariance = _gaussian_blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _gaussian_blur(x: Tensor) -> Tensor:
    # Shifted sums, not conv2d: a third of its time on a CPU, and no autocast or TF32 can round them.
    offsets = range(-(SSIM_WINDOW_PX // 2), SSIM_WINDOW_PX // 2 + 1)
    weights = [math.exp(-(offset**2) / (2 * 1.5**2)) for offset in offsets]
    for dim in (-1, -2):
        length = x.shape[dim] - SSIM_WINDOW_PX + 1
        blurred = torch.zeros_like(x.narrow(dim, 0, length))
        for start, weight in enumerate(weights):
            blurred.add_(x.narrow(dim, start, length), alpha=weight / sum(weights))
        x = blurred
    return x


def _laplacian_variance(x: Tensor) -> Tensor:
    grey = x.mean(dim=1)
    centre = grey[:, 1:-1, 1:-1]
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return (neighbours - 4 * centre).var(dim=(1, 2), correction=0)


def _within(x: Features, across: Features, others: int) -> tuple[float, float]:
    """Return the mean kernel between two samples of (N, F), and the variance of MMD² due to these samples.

    Args:
        x: the samples.
        across: (N,) sum of the kernel between each of them and all of the other set.
        others: number of samples in the other set.
    """
    n, kernel = len(x), _kernel(x, x)
    rows = kernel.sum(axis=1) - kernel.diagonal()
    mean = float(rows.sum() / (n * (n - 1)))
    if n < 3:  # without one of two samples there is no pair left
        return mean, math.inf
    without = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * others)
    return mean, float((n - 1) * without.var())


def _kernel(x: Features, y: Features) -> Features:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _checked_features(features: Reals) -> Features:
    checked = np.asarray(features, dtype=np.float64)
    if checked.ndim != 2 or checked.shape[1] == 0 or not np.isfinite(checked).all():
        raise ConfigError(f"Features must be finite numbers of shape (N, F); got shape {checked.shape}.")
    return checked


NOISE_PATCH_PX = 5


def noise_level(images: Tensor) -> Tensor:
    """Estimate the standard deviation of white noise in each image: Chen, Zhu & Heng 2015, algorithm 1.

    Small patches of a clean image vary in few directions. Noise adds its variance to all of them, so that the
    smallest eigenvalues of their covariance are it: as many as leave a mean that is also their median. Damage
    that is no white noise counts little, and an image that is all texture reads too high.

    Args:
        images: (B, 3, H, W), float, each side at least NOISE_PATCH_PX.

    Returns:
        (B,) float32, at least 0.
    """
    size = NOISE_PATCH_PX**2
    patches = F.unfold(images.float().flatten(0, 1)[:, None], NOISE_PATCH_PX)
    # From (B * 3, size, N) to (B, size, 3 N).
    patches = patches.view(len(images), -1, size, patches.shape[2]).transpose(1, 2).flatten(2)
    centred = patches - patches.mean(2, keepdim=True)
    covariance = centred @ centred.transpose(1, 2) / centred.shape[2]
    values = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)  # ascending
    means = values.cumsum(1) / torch.arange(1, size + 1, device=values.device)
    medians = torch.stack([values[:, :count].median(1).values for count in range(1, size + 1)], 1)
    # The most eigenvalues whose mean is not above their median.
    counts = ((means <= medians) * torch.arange(1, size + 1, device=values.device)).amax(1)
    variance: Tensor = means.gather(1, counts[:, None].clamp_min(1) - 1)[:, 0]
    return variance.sqrt().float()


class Measure(NamedTuple):
    """A measure of reconstructions, and how it is shown.

    Attributes:
        label, digits, meaning: its name, its decimal places, and a line that explains it.
        of: its values, (B,), for images and their originals.
        summary: of the values of many images.
    """

    label: str
    digits: int
    meaning: str
    of: Callable[[Tensor, Tensor], Tensor]
    summary: Callable[..., Any] = np.mean


# By their field in `evaluation.quality.ImageQuality`; `evaluate`, the report and the page show these.
MEASURES = {
    "psnr_db": Measure("PSNR dB", 2, "how close reconstructions are; higher is better", psnr),
    "ssim": Measure("SSIM", 3, "similarity in structure; 1 is identical", ssim),
    "mse": Measure("MSE", 5, "mean squared error of values in 0..1", mean_squared_error),
    "mae": Measure("MAE", 5, "mean absolute error of values in 0..1", mean_absolute_error),
    # The median, because the ratio of an image that is nearly flat can be any number.
    "sharpness": Measure(
        "sharpness ratio", 3, "detail of a reconstruction; below 1 it is blurred", sharpness_ratio, np.median
    ),
}
