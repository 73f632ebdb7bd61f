"""Encoders: the model's own codes, or features that do not depend on its weights."""

import numpy as np
import pytest
import torch

from autoencode import Autoencoder, ConfigError, ModelConfig, Preprocessing
from autoencode.embedding import image_encoder
from autoencode.models.backbones import pretrained_features
from autoencode.pixels import to_pixels


def build(seed: int, side: int = 32) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(ModelConfig(code_size=6, widths=(4, 8)), Preprocessing(side, side)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_codes_are_those_of_the_model(images: torch.Tensor) -> None:
    model = build(0)
    model.digest = "abc"
    encoder = image_encoder(model)
    assert (encoder.kind, encoder.size, encoder.digest) == ("code", 6, "abc")
    np.testing.assert_array_equal(encoder.encode(images), model.encode(images).numpy())


def test_pretrained_features_do_not_depend_on_the_model_but_on_the_size_of_its_images(
    images: torch.Tensor,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the optional part `eval` is not installed")
    first, second = image_encoder(build(0), "pretrained"), image_encoder(build(1), "pretrained")
    assert first.digest == second.digest
    assert first.digest != image_encoder(build(0, side=16), "pretrained").digest
    vectors = first.encode(images)
    assert vectors.shape == (3, first.size)
    np.testing.assert_array_equal(vectors, pretrained_features(to_pixels(images)))
    np.testing.assert_array_equal(vectors, second.encode(images))


def test_other_features_are_rejected() -> None:
    with pytest.raises(ConfigError, match="Choose code or pretrained"):
        image_encoder(build(0), "clip")  # type: ignore[arg-type]
