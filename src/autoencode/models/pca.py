"""Principal component analysis of images: the best linear autoencoder, and where the residual network starts.

Shapes: B batch, V values of an image, K components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.models.convolutions import ResidualDecoder
from autoencode.pixels import SIGMA2_FLOOR

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.models.convolutions import LinearDecoder, LinearEncoder

OVERSAMPLING = 32  # further directions, which make those asked for accurate
# Over images whose covariance is too large to keep: 128 components of faces then have an error 0.03 % above
# that after 20 passes.
PASSES = 8
_ROWS = 512  # of a covariance, added at a time


class PrincipalComponents(NamedTuple):
    """The result of PCA.

    Attributes:
        mean: (V,).
        directions: (K, V), of unit length and at right angles.
        variances: (K,) along the directions, largest first.
        total_variance: scalar, the sum over all directions, including those left out.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    total_variance: Tensor

    def restore(self, values: Tensor) -> Tensor:
        """Return the closest points to values (B, V) in the plane of the directions."""
        return self.mean + (values - self.mean) @ self.directions.T @ self.directions


def principal_components(batches: Iterable[Tensor], components: int) -> PrincipalComponents:
    """Fit PCA in one pass, in memory of V^2 whatever the number of images.

    Args:
        batches: tensors (B, V).
        components: K at most; fewer come back where images or values are fewer.

    Returns:
        Float32 tensors, by randomised subspace iteration (Halko, Martinsson & Tropp 2011). The largest value
        of each direction is positive, so that equal data give equal signs.
    """
    count, total, products = 0, torch.zeros(0), torch.zeros(0, 0)
    for batch in batches:
        values = batch.double()
        if count == 0:
            total = torch.zeros(values.shape[1], dtype=torch.float64)
            products = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
        count += len(values)
        total += values.sum(0)
        # Products in fp32 take half the time; the sum over batches is kept in fp64.
        product = batch.T @ batch
        for row in range(0, len(product), _ROWS):  # as a sum of two types copies what is added to fp64
            products[row : row + _ROWS] += product[row : row + _ROWS]
    mean = total / count
    covariance = products.div_(count).addr_(mean, mean, alpha=-1)  # in place: it can be a gigabyte
    kept = min(components, count, len(mean))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        # A tenth of the time of a full decomposition of 3,072 values; the last variance differs by 1 %.
        _, variances, directions = torch.svd_lowrank(
            covariance.float(), q=min(kept + OVERSAMPLING, len(mean)), niter=4
        )
    return PrincipalComponents(
        mean.float(),
        _positive(directions[:, :kept].T).float(),
        variances[:kept].float(),
        covariance.trace().clamp(min=0).float(),
    )


def principal_components_of_images(
    read: Callable[[], Iterable[Tensor]], components: int
) -> PrincipalComponents:
    """Fit PCA in several passes, in memory of V (K + 32), where V^2 would be too large to keep.

    Subspace iteration with a Rayleigh-Ritz step at its end (Halko, Martinsson & Tropp 2011, algorithm 4.4;
    Saad 2011, algorithm 5.3).

    Args:
        read: returns the tensors (B, V) of one pass, the same ones every time.
        components: K at most; fewer come back where images or values are fewer.
    """
    basis = torch.zeros(0, 0)
    for _ in range(PASSES):
        count, shift, total, product, squares = 0, torch.zeros(0), torch.zeros(0), torch.zeros(0, 0), 0.0
        for batch in read():
            if count == 0:
                # Near the mean, so that little is lost where the mean is subtracted below.
                shift, total = batch.mean(0), torch.zeros(batch.shape[1], dtype=torch.float64)
                basis = basis if basis.numel() else _random_basis(batch.shape[1], components + OVERSAMPLING)
                product = torch.zeros(basis.shape, dtype=torch.float64)
            values = batch - shift
            count += len(values)
            total += values.sum(0)
            squares += float(values.square().sum(dtype=torch.float64))
            product += values.T @ (values @ basis)
        mean = total / count
        # The covariance times the basis, without the covariance.
        mapped = product / count - torch.outer(mean, mean @ basis.double())
        previous, basis = basis, torch.linalg.qr(mapped.float()).Q
    variances, rotation = torch.linalg.eigh(previous.double().T @ mapped)
    kept = min(components, count, len(mean))
    return PrincipalComponents(
        shift + mean.float(),
        _positive((previous.double() @ rotation).flip(1)[:, :kept].T).float(),
        variances.flip(0)[:kept].clamp(min=0).float(),
        torch.tensor(squares / count - float(mean @ mean)).clamp(min=0),
    )


def _random_basis(values: int, size: int) -> Tensor:
    """Directions at right angles, (V, min(size, V)); always the same."""
    generator = torch.Generator().manual_seed(0)
    basis: Tensor = torch.linalg.qr(torch.randn(values, min(size, values), generator=generator)).Q
    return basis


def _positive(directions: Tensor) -> Tensor:
    """Turn directions (K, V) so that the largest value of each is positive: equal data give equal signs."""
    return directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()


@torch.no_grad()
def start_at_pca(model: Autoencoder, images: Iterable[Tensor]) -> None:
    """Set the linear path of a residual network to the principal components of images, in place.

    A plain code is whitened: each dimension has variance 1 over the images. A Gaussian code gets the
    posterior of probabilistic PCA (Tipping & Bishop 1999, section 3.2), and `sigma2` the mean squared error
    of PCA.

    Args:
        model: on the CPU, with a residual network.
        images: batches (B, 3, H, W) in [0, 1]; passed over once, in the order given.
    """
    encoder, decoder = model.linear, model.decoder
    if encoder is None or not isinstance(decoder, ResidualDecoder):
        raise TypeError(f"the network {model.config.network!r} has no linear path")
    detail: list[Tensor] = []

    def averaged() -> Iterable[Tensor]:
        for batch in images:
            small = F.avg_pool2d(batch, encoder.pooling)
            detail.append((batch - decoder.linear.enlargement(small)).square().mean(dim=(1, 2, 3)))
            yield small.flatten(1)

    pca = principal_components(averaged(), model.config.code_size)
    # The error of PCA: the detail lost by averaging, and the components left out.
    mse = torch.cat(detail).mean() + (pca.total_variance - pca.variances.sum()) / len(pca.mean)
    mse = mse.clamp(min=SIGMA2_FLOOR)
    variances = pca.variances.clamp(min=float(pca.variances[0]) * 1e-6 + 1e-12)
    if model.is_vae:
        # A direction of the small image covers pooling^2 as many values of the image itself.
        noise = mse / encoder.pooling**2
        model.sigma2.copy_(mse)
        model.to_log_variance.weight.zero_()
        model.to_log_variance.bias.zero_()  # dimensions without a direction start as the prior
        model.to_log_variance.bias[: len(variances)] = (noise / variances).clamp(max=1).log()
        signal = (variances - noise).clamp(min=0)
    else:
        signal = variances
    _set_linear_path(encoder, decoder.linear, pca, to_code=signal.sqrt() / variances, to_image=signal.sqrt())
    decoder.scale.copy_(mse.sqrt())


def _set_linear_path(
    encoder: LinearEncoder,
    decoder: LinearDecoder,
    pca: PrincipalComponents,
    to_code: Tensor,
    to_image: Tensor,
) -> None:
    found = len(pca.directions)
    encoder.matrix.weight.zero_()
    encoder.matrix.weight[:found] = pca.directions * to_code[:, None]
    encoder.matrix.bias.copy_(-encoder.matrix.weight @ pca.mean)
    decoder.matrix.weight.zero_()
    decoder.matrix.weight[:, :found] = (pca.directions * to_image[:, None]).T
    decoder.matrix.bias.copy_(pca.mean)
