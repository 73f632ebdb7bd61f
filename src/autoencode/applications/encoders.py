"""What turns images into vectors that search, outliers and classifiers compare: codes or pretrained features.

Shapes: B batch, H height, W width, F features. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.batches import to_pixels
from autoencode.data.images import Preprocessing
from autoencode.errors import ConfigError
from autoencode.evaluation.pretrained import FEATURES, pretrained_features, pretrained_version
from autoencode.models.autoencoder import Autoencoder

Features = Literal["code", "pretrained"]
FEATURE_KINDS: tuple[Features, ...] = get_args(Features)


@dataclass(frozen=True)
class ImageEncoder:
    """Images to vectors.

    Attributes:
        kind: "code": what the model was trained to keep; "pretrained": features of EfficientNet-Lite0.
        preprocessing: the size of its images, and how a file becomes one.
        size: F, values in a vector.
        digest: of everything the vectors depend on but the images; equal digests, comparable vectors. ""
            for a model that was never saved.
        encode: images (B, 3, H, W) in [0, 1] to (B, F) float32.
    """

    kind: Features
    preprocessing: Preprocessing
    size: int
    digest: str
    encode: Callable[[Tensor], NDArray[np.float32]]


def image_encoder(model: Autoencoder, kind: Features = "code") -> ImageEncoder:
    """Return the encoder of a model, or one that sees the same images with pretrained features instead.

    Raises:
        ConfigError: there is no such kind.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    if kind not in FEATURE_KINDS:
        raise ConfigError(f"Unknown features {kind!r}. Choose code or pretrained.")
    if kind == "code":
        return ImageEncoder(
            kind,
            model.preprocessing,
            model.config.code_size,
            model.digest,
            lambda images: model.encode(images).numpy(),
        )
    return pretrained_encoder(model.preprocessing)


def pretrained_encoder(preprocessing: Preprocessing) -> ImageEncoder:
    """Return pretrained features of images of this size; no model is needed, nor do its weights matter.

    Raises:
        MissingExtraError: the optional part `eval` is not installed.
    """
    text = json.dumps([pretrained_version(), preprocessing.to_json()], sort_keys=True)
    return ImageEncoder(
        "pretrained",
        preprocessing,
        FEATURES,
        hashlib.sha256(text.encode()).hexdigest(),
        lambda images: pretrained_features(to_pixels(images.cpu())),
    )
