"""Densities over codes, which `generate` draws from: the standard normal of a VAE, or a Gaussian mixture.

A mixture fitted to the codes of the training images after training (Ghosh et al. 2020, "From Variational to
Deterministic Autoencoders", section 4: ex-post density estimation) covers the codes the decoder was trained
on, which N(0, I) does only as far as the KL pulled them there, and a plain autoencoder can generate with it.

Shapes: B batch, D code size, K components, F frames. Densities are in nats.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.errors import ConfigError

# Numbers of components tried, ascending. The held-out density of faces chose 10 for codes of 32 dimensions
# and 5 for 128 and 256 (9,000 images), that of digits 20 for 32. With fewer than LEAST_CODES codes a
# dimension and component it only ever fell, and far.
CANDIDATES = (1, 2, 5, 10, 20)
HELD_OUT_SHARE = 0.1
LEAST_CODES = 2

# Variance added to each component along each principal direction, as a share of the variance of all codes
# along it: it shrinks every component towards the shape of the whole. A share of the variance of each
# dimension instead drowned the narrow directions of correlated codes (held-out density of 256 dimensions 60
# nats lower).
SHRINKAGE = 0.05

# Directions with less than this share of the largest variance are given that much: no density is infinite,
# not even for codes that are all equal.
NARROWEST, LEAST_VARIANCE = 1e-7, 1e-12

# A pass over 20,000 codes of 256 dimensions and 5 components takes a second or two; after this many passes,
# or one that gains less than this many nats per code, further ones change nothing that can be seen.
PASSES, LEAST_GAIN_NATS = 20, 0.05

DENSITY_BATCH = 4096

# Products of fewer values are computed by one thread: several, which wait for each other in between, took
# thirteen times as long for 3,750 codes of 64 dimensions, on two busy cores.
VALUES_FOR_THREADS = 1_000_000

Array = NDArray[np.float64]


class StandardNormal:
    """N(0, I) over codes, the prior a VAE is trained towards.

    Args:
        code_size: D, at least 1.
    """

    def __init__(self, code_size: int) -> None:
        self.code_size = code_size

    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw codes (count, D).

        Args:
            count: number of codes.
            temperature: factor on the standard deviation; 1 is the prior itself, 0 its mean.
            generator: of random numbers, on the CPU; the default is torch's own.
        """
        return temperature * torch.randn(count, self.code_size, generator=generator)

    def path(self, frames: int, turns: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Return codes (F, D) along a smooth closed path, each of them distributed as a sample.

        Args:
            frames: F; the step from the last to the first is like the others.
            turns: changes of direction; more is faster.
            temperature, generator: as for `sample`.
        """
        return temperature * _noise_path(frames, turns, self.code_size, generator)

    def near(self, code: Tensor, count: int, amount: float, generator: torch.Generator) -> Tensor:
        """Draw codes (count, D) around a code (D,) that are as likely under the prior as that code.

        This is a step of the preconditioned Crank-Nicolson walk (Cotter et al. 2013), which keeps to the
        prior: a sample moved this way is a sample.

        Args:
            code: the centre.
            count: number of codes.
            amount: distance in [0, 1]: 0 gives the code itself, 1 samples that are independent of it.
            generator: of random numbers.
        """
        return _moved(code.expand(count, -1), amount, generator)

    def log_density(self, codes: Tensor) -> Tensor:
        """Return log p(code) of codes (B, D): (B,) float64, nats."""
        codes = _checked(codes, self.code_size)
        return -0.5 * (codes.square().sum(1) + self.code_size * math.log(2 * math.pi))


class GaussianMixture:
    """A weighted sum of Gaussians over codes.

    Args:
        weights: (K,), positive, of sum 1.
        means: (K, D).
        factors: (K, D, D), lower triangular with a positive diagonal; the covariance of a component is its
            factor times the transpose of it.

    Raises:
        ConfigError: the shapes do not fit together, or a weight or variance is not positive.
    """

    def __init__(self, weights: Tensor, means: Tensor, factors: Tensor) -> None:
        components, size = means.shape if means.ndim == 2 else (0, 0)
        if not components or weights.shape != (components,) or factors.shape != (components, size, size):
            raise ConfigError(
                "A mixture needs weights (K,), means (K, D) and factors (K, D, D); "
                f"got {tuple(weights.shape)}, {tuple(means.shape)}, {tuple(factors.shape)}."
            )
        total, diagonals = float(weights.sum()), factors.diagonal(dim1=1, dim2=2)
        if not (weights > 0).all() or abs(total - 1) > 1e-3 or not (diagonals > 0).all():
            raise ConfigError(
                "The weights of a mixture must be positive, of sum 1, and its variances positive."
            )
        self.weights, self.means, self.factors = weights, means, factors
        self.code_size = size

    def tensors(self) -> dict[str, Tensor]:
        """Return its arguments by name, as a file keeps them."""
        return {"weights": self.weights, "means": self.means, "factors": self.factors}

    @classmethod
    def fit(cls, codes: Tensor, seed: int = 0) -> GaussianMixture:
        """Fit to codes, with the number of components that describes held-out codes best.

        Args:
            codes: (N, D), finite, N at least 1.
            seed: of the choice of held-out codes and of the first guess.

        Raises:
            ConfigError: there is no code, or a value is not finite.
        """
        values = codes.detach().cpu().numpy().astype(np.float64)
        if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
            raise ConfigError(f"A mixture is fitted to finite codes (N, D), N > 0; got {values.shape}.")
        centre, to_codes, whitened = _whitened(values)
        del values
        shuffled = np.random.default_rng(seed).permutation(whitened)
        held_out = shuffled[: int(len(shuffled) * HELD_OUT_SHARE)]
        components = _best_count(shuffled[len(held_out) :], held_out, seed)
        del shuffled, held_out
        weights, means, covariances = _expectation_maximisation(whitened, components, seed)
        factors = np.linalg.cholesky(to_codes @ covariances @ to_codes.T)
        found = (weights, centre + means @ to_codes.T, factors)
        return cls(*(torch.from_numpy(part).float() for part in found))

    def sample(
        self, count: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw codes (count, D); arguments as for `StandardNormal.sample`.

        The temperature is a factor on the deviation from the mean of the component drawn.
        """
        component = self._draw(count, generator)
        noise = torch.randn(count, self.code_size, generator=generator)
        codes = torch.empty_like(noise)
        for index in range(len(self.weights)):
            chosen = component == index
            codes[chosen] = self.means[index] + temperature * noise[chosen] @ self.factors[index].T
        return codes

    def path(self, frames: int, turns: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Return codes (F, D) along a smooth closed path; arguments as for `StandardNormal.path`.

        The path passes through components drawn by their weights; between two, mean and factor are mixed.
        """
        noise = _noise_path(frames, turns, self.code_size, generator)
        stops = 2 * turns
        component = self._draw(stops, generator)
        codes = torch.empty_like(noise)
        for frame in range(frames):
            stop, along = divmod(frame * stops / frames, 1.0)
            # At rest at both ends, so that the speed does not jump at a stop.
            share = along**2 * (3 - 2 * along)
            here, there = component[int(stop)], component[(int(stop) + 1) % stops]
            mean = torch.lerp(self.means[here], self.means[there], share)
            factor = torch.lerp(self.factors[here], self.factors[there], share)
            codes[frame] = mean + temperature * factor @ noise[frame]
        return codes

    def near(self, code: Tensor, count: int, amount: float, generator: torch.Generator) -> Tensor:
        """Draw codes (count, D) around a code (D,); arguments as for `StandardNormal.near`.

        They stay in the component that the code most likely came from.
        """
        component = int(self._joint(_checked(code[None], self.code_size)).argmax())
        mean, factor = self.means[component], self.factors[component]
        deviation = torch.linalg.solve_triangular(factor, (code - mean)[:, None], upper=False)[:, 0]
        return mean + _moved(deviation.expand(count, -1), amount, generator) @ factor.T

    def log_density(self, codes: Tensor) -> Tensor:
        """Return log p(code) of codes (B, D): (B,) float64, nats."""
        codes = _checked(codes, self.code_size)
        parts = [self._joint(part).logsumexp(1) for part in torch.split(codes, DENSITY_BATCH)]
        return torch.cat(parts) if len(codes) else codes.new_zeros(0)

    def _joint(self, codes: Tensor) -> Tensor:
        """Log densities (B, K) of codes (B, D) with each component, its weight included."""
        joint = codes.new_empty(len(codes), len(self.weights))
        for index, (weight, mean, factor) in enumerate(
            zip(self.weights.double(), self.means.double(), self.factors.double(), strict=True)
        ):
            deviation = torch.linalg.solve_triangular(factor, (codes - mean).T, upper=False)
            normaliser = factor.diagonal().log().sum() + 0.5 * self.code_size * math.log(2 * math.pi)
            joint[:, index] = weight.log() - 0.5 * deviation.square().sum(0) - normaliser
        return joint

    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)


Prior = StandardNormal | GaussianMixture


def _checked(codes: Tensor, size: int) -> Tensor:
    if codes.ndim != 2 or codes.shape[1] != size:
        raise ConfigError(f"Codes must be (B, {size}); these are {tuple(codes.shape)}.")
    return codes.detach().cpu().double()


def _moved(noise: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Mix standard normal noise (N, D) with new, so that the sum is standard normal again."""
    return math.sqrt(1 - amount**2) * noise + amount * torch.randn(noise.shape, generator=generator)


def _noise_path(frames: int, turns: int, size: int, generator: torch.Generator) -> Tensor:
    """Return (F, D): sums of `turns` sine waves with normal coefficients; every frame is N(0, I) exactly."""
    # Straight or spherical pieces between samples would turn sharply at each of them.
    coefficients = torch.randn(2 * turns, size, generator=generator)
    moment = torch.arange(frames, dtype=torch.float64)[:, None] / frames
    angle = 2 * math.pi * moment * torch.arange(1, turns + 1)
    waves = torch.cat([angle.cos(), angle.sin()], 1).float()
    return waves @ coefficients / math.sqrt(turns)


def _whitened(values: Array) -> tuple[Array, Array, Array]:
    """Return the mean (D,), the matrix (D, D) from whitened values to deviations, and whitened values.

    The `values` (N, D) are overwritten.
    """
    centre = values.mean(axis=0)
    values -= centre  # in place, to save a copy of up to 80 MB
    deviations = values
    variances, directions = np.linalg.eigh(deviations.T @ deviations / len(values))
    scales = np.sqrt(np.maximum(variances, variances[-1] * NARROWEST + LEAST_VARIANCE))
    whitened = deviations @ directions
    whitened /= scales
    return centre, directions * scales, whitened


def _best_count(codes: Array, held_out: Array, seed: int) -> int:
    """Return the number of components that gives the held-out codes the highest density."""
    best, highest, worse = CANDIDATES[0], -math.inf, 0
    for components in CANDIDATES:
        least = LEAST_CODES * components * codes.shape[1]
        if len(held_out) == 0 or (components > 1 and len(codes) < least):
            break
        density = _mean_log_density(codes, held_out, components, seed)
        if density > highest:
            best, highest, worse = components, density, 0
            continue
        # One fit can end in a poor local optimum, such as two components for three clusters; two in a row
        # rarely.
        worse += 1
        if worse == 2:
            break
    return best


def _mean_log_density(codes: Array, held_out: Array, components: int, seed: int) -> float:
    weights, means, covariances = _expectation_maximisation(codes, components, seed)
    parts = (weights, means, np.linalg.cholesky(covariances))
    mixture = GaussianMixture(*map(torch.from_numpy, parts))
    return float(mixture.log_density(torch.from_numpy(held_out)).mean())


def _expectation_maximisation(codes: Array, components: int, seed: int) -> tuple[Array, Array, Array]:
    """Return weights (K,), means (K, D) and covariances (K, D, D) fitted to whitened codes (N, D)."""
    if components == 1:  # in closed form, which needs no second code
        centre = codes.mean(axis=0)
        deviations = codes - centre
        covariance = deviations.T @ deviations / len(codes)
        shrunk = covariance + SHRINKAGE * np.eye(codes.shape[1])
        return np.ones(1), centre[None], shrunk[None]
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Fitted
    from threadpoolctl import threadpool_limits

    fitted = Fitted(components, reg_covar=SHRINKAGE, tol=LEAST_GAIN_NATS, max_iter=PASSES, random_state=seed)
    threads = 1 if codes.size < VALUES_FOR_THREADS else None
    with warnings.catch_warnings(), threadpool_limits(threads, user_api="blas"):
        # The number of passes is bounded on purpose, and equal codes may leave a cluster empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(codes)
    return fitted.weights_, fitted.means_, fitted.covariances_
