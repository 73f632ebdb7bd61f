"""Pretrained features: their shape, their determinism, and that they tell kinds of images apart."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from autoencode import ConfigError
from autoencode.evaluation.metrics import kernel_inception_distance
from autoencode.evaluation.pretrained import FEATURES, pretrained_features

pytest.importorskip("efficientnet_lite_pytorch", reason="the optional part `eval` is not installed")


def patches(count: int, first_seed: int, blur: float = 0) -> np.ndarray:
    images = []
    for seed in range(first_seed, first_seed + count):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((48, 48), Image.Resampling.NEAREST)
        images.append(np.asarray(image.filter(ImageFilter.GaussianBlur(blur))))
    return np.stack(images)


def test_features_are_finite_and_do_not_depend_on_the_batch() -> None:
    pixels = patches(3, 0)
    together = pretrained_features(pixels)
    assert together.shape == (3, FEATURES)
    alone = np.concatenate([pretrained_features(image[None]) for image in pixels])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_the_distance_grows_with_blur() -> None:
    reference = pretrained_features(patches(24, 0))
    same, soft = (pretrained_features(patches(24, 100, blur)) for blur in (0, 3))
    near, far = (kernel_inception_distance(reference, other).value for other in (same, soft))
    assert abs(near) < 0.1 * far


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="pixels"):
        pretrained_features(np.zeros((2, 8, 8, 3), np.float32))  # type: ignore[arg-type]
