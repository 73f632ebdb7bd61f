"""Principal component analysis of images: the best linear autoencoder, and where the residual network starts.

Shapes: B batch, V values of an image, K components.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from autoencode.models.autoencoder import SIGMA2_FLOOR, Autoencoder
from autoencode.models.residual import LinearEncoder, ResidualDecoder

OVERSAMPLING = 32  # directions more than asked for, which make those asked for accurate


class PrincipalComponents(NamedTuple):
    """What PCA finds.

    Attributes:
        mean: (V,).
        directions: (K, V), of unit length and at right angles.
        variances: (K,) along the directions, largest first.
        total_variance: scalar, the sum over all directions, those left out included.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    total_variance: Tensor


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
        products += (batch.T @ batch).double()
    mean = total / count
    covariance = products.div_(count).addr_(mean, mean, alpha=-1)  # in place: it can be a gigabyte
    kept = min(components, count, len(mean))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        # A tenth of the time of a full decomposition of 3,072 values, and the same to 1 % in the last one.
        _, variances, directions = torch.svd_lowrank(
            covariance.float(), q=min(kept + OVERSAMPLING, len(mean)), niter=4
        )
    variances, directions = variances[:kept], directions[:, :kept].T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return PrincipalComponents(
        mean.float(),
        (directions * largest.sign()).float(),
        variances.float(),
        covariance.trace().clamp(min=0).float(),
    )


@torch.no_grad()
def start_at_pca(model: Autoencoder, images: Iterable[Tensor]) -> None:
    """Set the linear path of a residual network to the principal components of images, in place.

    A plain code is whitened: each value has variance 1 over the images. A Gaussian code gets the posterior
    of probabilistic PCA (Tipping & Bishop 1999, section 3.2), and `sigma2` the mean squared error PCA leaves.

    Args:
        model: on the CPU, with a residual network.
        images: batches (B, 3, H, W) in [0, 1]; passed over once, in the order given.
    """
    encoder, decoder = model.linear, model.decoder
    if encoder is None or not isinstance(decoder, ResidualDecoder):
        raise TypeError("only a residual network has a linear path")
    detail: list[Tensor] = []

    def averaged() -> Iterable[Tensor]:
        for batch in images:
            small = F.avg_pool2d(batch, encoder.pooling)
            enlarged = F.interpolate(small, decoder.linear.size, mode="bilinear", align_corners=False)
            detail.append((batch - enlarged).square().mean(dim=(1, 2, 3)))
            yield small.flatten(1)

    pca = principal_components(averaged(), model.config.code_size)
    # What PCA leaves of an image: the detail lost by averaging, and the components left out.
    mse = torch.cat(detail).mean() + (pca.total_variance - pca.variances.sum()) / len(pca.mean)
    mse = mse.clamp(min=SIGMA2_FLOOR)
    variances = pca.variances.clamp(min=float(pca.variances[0]) * 1e-6 + 1e-12)
    if model.is_vae:
        # A direction of the small image covers pooling^2 as many values of the image itself.
        noise = mse / encoder.pooling**2
        model.sigma2.copy_(mse)
        model.to_log_variance.weight.zero_()
        model.to_log_variance.bias.zero_()  # values without a direction start as the prior
        model.to_log_variance.bias[: len(variances)] = (noise / variances).clamp(max=1).log()
        signal = (variances - noise).clamp(min=0)
    else:
        signal = variances
    _set_linear_path(encoder, decoder, pca, to_code=signal.sqrt() / variances, to_image=signal.sqrt())
    decoder.scale.copy_(mse.sqrt())


def _set_linear_path(
    encoder: LinearEncoder,
    decoder: ResidualDecoder,
    pca: PrincipalComponents,
    to_code: Tensor,
    to_image: Tensor,
) -> None:
    found = len(pca.directions)
    encoder.matrix.weight.zero_()
    encoder.matrix.weight[:found] = pca.directions * to_code[:, None]
    encoder.matrix.bias.copy_(-encoder.matrix.weight @ pca.mean)
    decoder.linear.matrix.weight.zero_()
    decoder.linear.matrix.weight[:, :found] = (pca.directions * to_image[:, None]).T
    decoder.linear.matrix.bias.copy_(pca.mean)
