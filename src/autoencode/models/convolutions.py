"""The halves of the networks: images to flat features, and codes to images.

Shapes: B batch, C channels, H height, W width, D code size, P = `PATCH`. Images are (B, 3, H, W), codes
(B, D).

The paper's halves (Kovenko & Bogach 2020, section 3) are convolutions with pooling, and transposed ones. The
paper does not print its widths; ours are 32-64-128-256.

The residual halves start as principal component analysis and learn what convolutions add to it. The code is
a linear map of the image plus the output of a convolutional encoder; the image is a linear map of the code
plus the output of a convolutional decoder, which also sees that linear image; what is beyond black and white
is divided by ten. The convolutional parts start at zero and the linear ones at PCA (see `pca`), so the first
step begins where the best linear autoencoder ends (Baldi & Hornik 1989), and a VAE at the optimum of a linear
VAE, probabilistic PCA (Tipping & Bishop 1999; Lucas et al. 2019), but for values beyond black and white.
docs/log.md has the gain of each part.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 3

_FEW_CHANNELS = 16  # fewer than a register holds values in bf16


class Bias(nn.Module):
    """The bias of a convolution, apart from it: a value added to each channel.

    On a CPU the gradient of a bias inside a convolution may take several times as long as those of its
    weights and its input together; here it is a sum (docs/performance.md). Drawn as PyTorch draws it.
    """

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        inputs = convolution.weight[0].numel()  # PyTorch counts so for transposed ones too
        bound = 1 / math.sqrt(inputs)
        self.bias = nn.Parameter(torch.empty(convolution.out_channels).uniform_(-bound, bound))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same, mostly in place: nothing before it needs its own output again."""
        bias = self.bias.to(features.dtype)
        if len(bias) < _FEW_CHANNELS and features.is_contiguous(memory_format=torch.channels_last):
            # PyTorch adds it in loops of as many values as there are channels. A row of pixels is longer.
            width = features.shape[3]
            rows = features.permute(0, 2, 3, 1).flatten(2) + bias.repeat(width)
            return rows.view(*rows.shape[:2], width, len(bias)).permute(0, 3, 1, 2)
        return features.add_(bias[:, None, None])


class ImageDecoder(nn.Module):
    """(B, D) -> (B, 3, H, W): the interface of every decoder.

    Attributes:
        linear: the part that maps a code to an image linearly, or None.
        detail: (2,), of a second decoder: the shares, 0 to 1, of the fine and of the coarse part of what its
            images add to those of the first that are drawn; None for all of both; see `models.detail`.
        refinement: of a second decoder: the last step of its images, a `models.detail.Refinement`; or None.
    """

    linear: LinearDecoder | None
    detail: Tensor | None
    refinement: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("detail", None)
        self.refinement = None

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the convolution that paints the image, before it is refined."""
        raise NotImplementedError

    @property
    def starting_mse(self) -> float:
        """Mean squared error per image value that training starts from; 1 where the weights are random."""
        return 1.0


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, width * H/2^n * W/2^n): n times 3x3 convolution, 2x2 max-pooling, ReLU."""

    def __init__(self, widths: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        self.batch_norm = batch_norm
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise((CHANNELS, *widths)):
            convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
            # Pooling before the bias and ReLU: they commute, and a quarter of the values is left to shift and
            # rectify. A normalisation does not commute with pooling: its factors may be negative.
            shifted = (
                [nn.BatchNorm2d(outputs), nn.MaxPool2d(2)]
                if batch_norm
                else [nn.MaxPool2d(2), Bias(convolution)]
            )
            self.layers.extend([convolution, *shifted, nn.ReLU(inplace=True)])

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to flat features, channels first."""
        by_onednn = not self.batch_norm and computes_by_onednn(images)
        return (self._by_onednn if by_onednn else self.layers)(images).flatten(1)

    def _by_onednn(self, images: Tensor) -> Tensor:
        """Compute the layers in bf16 in tensors of oneDNN: (B, 3, H, W) to the deepest maps.

        Its pooling keeps the place of each maximum in 8 bits, where that of PyTorch's own tensors writes 64,
        and its convolution adds the bias before it rounds the sum (docs/performance.md).
        """
        features = images.bfloat16().to_mkldnn()
        layers = list(self.layers)
        for convolution, shift in zip(layers[::4], layers[2::4], strict=True):
            weight, bias = convolution.weight.bfloat16(), shift.bias.bfloat16()
            features = torch.ops.aten.mkldnn_convolution(features, weight, bias, [1, 1], [1, 1], [1, 1], 1)
            features = F.max_pool2d(features, 2, 2).relu()
        return features.to_dense()


def computes_by_onednn(images: Tensor) -> bool:
    """Whether layers of these images are computed in bf16 on a CPU for which oneDNN has kernels."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and images.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and len(images) > 0
    )


class Decoder(ImageDecoder):
    """(B, D) -> (B, 3, H, W): a linear layer, n transposed convolutions, sigmoid."""

    def __init__(
        self, code_size: int, widths: tuple[int, ...], grid: tuple[int, int], batch_norm: bool
    ) -> None:
        super().__init__()
        self.linear = None
        deepest_first = widths[::-1]
        self.grid = (deepest_first[0], *grid)
        self.expand = nn.Linear(code_size, deepest_first[0] * grid[0] * grid[1])
        self.layers = nn.Sequential(nn.ReLU(inplace=True))
        for inputs, outputs in pairwise(deepest_first):
            doubling = _doubling(inputs, outputs)
            shift = nn.BatchNorm2d(outputs) if batch_norm else Bias(doubling)
            self.layers.extend([doubling, shift, nn.ReLU(inplace=True)])
        # No batch normalisation here: it would fix the mean and contrast of the output images.
        last = _doubling(deepest_first[-1], CHANNELS)
        self.layers.extend([last, Bias(last)])

    def forward(self, codes: Tensor) -> Tensor:
        """Map (B, D) to images (B, 3, H, W), each value in (0, 1) but for what a refinement adds."""
        features = self.expand(codes).unflatten(1, self.grid)
        images = torch.sigmoid(self.layers(features.contiguous(memory_format=torch.channels_last)))
        return images if self.refinement is None else self.refinement(images.float())

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the last transposed convolution, which paints the image."""
        return self.layers[-2].weight  # type: ignore[return-value]


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    # 3x3 with stride 2, so that the squares they paint overlap: 2x2 ones are a tenth faster and leave tiles
    # in the image (docs/log.md).
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)


PATCH = 4  # pixels along a side that the first convolution takes as channels
LINEAR_SIDE = 32  # the linear maps work on images averaged down to about this side
LINEAR_CELLS = 64 * 64  # and to no more than this: PCA takes memory of (3 * cells)^2, here 1.2 GB

_BEYOND = 0.1  # slope beyond black and white; with 0 nothing would ever bring values back

# Mean and spread of natural images, roughly: convolutions see values around 0 of size 1.
MEAN, SPREAD = 0.5, 0.25


def pooling_of(height: int, width: int) -> int:
    """Side of the squares the linear maps average: the largest power of two leaving a short side of 32.

    For long images it is larger, so that they leave no more values than square ones.
    """
    pooling, short = 1, min(height, width)
    while short // (2 * pooling) >= LINEAR_SIDE:
        pooling *= 2
    while (height // pooling) * (width // pooling) > LINEAR_CELLS and short >= 2 * pooling:
        pooling *= 2
    return pooling


class LinearEncoder(nn.Module):
    """(B, 3, H, W) -> (B, D): average over squares, then one matrix."""

    def __init__(self, code_size: int, height: int, width: int) -> None:
        super().__init__()
        self.pooling = pooling_of(height, width)
        self.matrix = nn.Linear(CHANNELS * (height // self.pooling) * (width // self.pooling), code_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to codes, in fp32."""
        return self.matrix(F.avg_pool2d(images, self.pooling).flatten(1))  # type: ignore[no-any-return]


class Enlargement(nn.Module):
    """(B, C, h, w) -> (B, C, H, W), in fp32: bilinear interpolation, as products with two matrices.

    The same as `F.interpolate`, to the precision of matrix products in fp32. Forward and backward pass take a
    sixth of the time together on a CPU (docs/performance.md). On a GPU no sum depends on the order of
    threads, as that of the gradient of `F.interpolate` does.

    Args:
        small: h and w.
        size: H and W.
    """

    rows: Tensor  # (H, h)
    columns: Tensor  # (w, W)

    def __init__(self, small: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        (height, width), (full_height, full_width) = small, size
        self.register_buffer("rows", _interpolation(height, full_height).T.contiguous(), persistent=False)
        self.register_buffer("columns", _interpolation(width, full_width), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images enlarged."""
        with torch.autocast(images.device.type, enabled=False):
            return self.rows.float() @ (images.float() @ self.columns.float())


def _interpolation(side: int, full_side: int) -> Tensor:
    """Return the matrix (side, full_side) of linear interpolation."""
    # On the CPU, also for a model on the meta device: the file that gives it weights holds none of these.
    values = torch.eye(side, dtype=torch.float32, device="cpu")[None]
    return F.interpolate(values, full_side, mode="linear", align_corners=False)[0]


class LinearDecoder(nn.Module):
    """(B, D) -> (B, 3, H, W): one matrix to a small image, enlarged with bilinear interpolation."""

    def __init__(self, code_size: int, height: int, width: int) -> None:
        super().__init__()
        pooling = pooling_of(height, width)
        self.small = (CHANNELS, height // pooling, width // pooling)
        self.matrix = nn.Linear(code_size, self.small[0] * self.small[1] * self.small[2])
        self.enlargement = Enlargement(self.small[1:], (height, width))

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes to images, in fp32."""
        return self.enlargement(self.matrix(codes).unflatten(1, self.small))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions of x, each after SiLU (He et al. 2016, pre-activation); starts as x."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for _ in range(2):
            if batch_norm:
                self.layers.append(nn.BatchNorm2d(channels))
            self.layers.append(nn.SiLU())
            self.layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        start_at_zero(self.layers[-1])

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return features + self.layers(features)  # type: ignore[no-any-return]


class ResidualEncoder(nn.Module):
    """(B, 3, H, W) -> flat features: patches as channels, a residual block and halving a level."""

    def __init__(self, widths: tuple[int, ...], batch_norm: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(CHANNELS * PATCH**2, widths[0], 3, padding=1))
        for width, deeper in pairwise(widths):
            self.layers.append(ResidualBlock(width, batch_norm))
            self.layers.append(nn.Conv2d(width, deeper, 2, stride=2))
        self.layers.append(ResidualBlock(widths[-1], batch_norm))
        self.layers.append(nn.SiLU())

    def forward(self, images: Tensor) -> Tensor:
        """Map images to flat features, channels first."""
        return self.layers(_patches(images)).contiguous().flatten(1)  # type: ignore[no-any-return]


class ResidualDecoder(ImageDecoder):
    """(B, D) -> (B, 3, H, W): the sum of a linear image and the output of convolutions.

    What the sum is beyond black and white is divided by ten. So plain black and white, as of drawings and
    scans, are drawn with less grain: the network aims beyond them, and deviations there hardly show.
    """

    scale: Tensor  # root mean squared error of the linear image: the size of the detail to be added
    linear: LinearDecoder

    def __init__(
        self, code_size: int, widths: tuple[int, ...], height: int, width: int, batch_norm: bool
    ) -> None:
        super().__init__()
        factor = PATCH * 2 ** (len(widths) - 1)
        self.grid = (widths[-1], height // factor, width // factor)
        self.linear = LinearDecoder(code_size, height, width)
        self.expand = nn.Linear(code_size, self.grid[0] * self.grid[1] * self.grid[2])
        self.down = nn.ModuleList([nn.Conv2d(CHANNELS * PATCH**2, widths[0], 3, padding=1)])
        self.down.extend(nn.Conv2d(width, deeper, 2, stride=2) for width, deeper in pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(width, batch_norm) for width in widths)
        self.up = nn.ModuleList(nn.Conv2d(deeper, 4 * width, 1) for width, deeper in pairwise(widths))
        self.out = nn.Conv2d(widths[0], CHANNELS * PATCH**2, 3, padding=1)
        start_at_zero(self.out)
        self.register_buffer("scale", torch.tensor(SPREAD))

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes to images."""
        with torch.autocast(codes.device.type, enabled=False):
            linear = self.linear(codes.float())
        seen: list[Tensor] = []
        level = _patches(linear)
        for down in self.down:
            level = down(F.silu(level) if seen else level)
            seen.append(level)
        features = self.expand(codes).unflatten(1, self.grid).contiguous(memory_format=torch.channels_last)
        for depth in reversed(range(len(seen))):
            features = self.blocks[depth](features + seen[depth])
            if depth:
                features = F.pixel_shuffle(self.up[depth - 1](features), 2)
        added = F.pixel_shuffle(self.out(F.silu(features)), PATCH)
        images = linear + self.scale * added.float()
        if self.refinement is not None:
            images = self.refinement(images)
        return torch.lerp(images.clamp(0, 1), images, _BEYOND)

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the last convolution, whose output is added to the linear image."""
        return self.out.weight  # type: ignore[return-value]

    @property
    def starting_mse(self) -> float:
        """Mean squared error of the linear image, before values beyond black and white are divided."""
        return float(self.scale) ** 2


def _patches(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3 P^2, H/P, W/P), values around 0."""
    patches = F.pixel_unshuffle((images - MEAN) / SPREAD, PATCH)
    return patches.contiguous(memory_format=torch.channels_last)


def start_at_zero(layer: nn.Module) -> None:
    """Set all parameters to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
