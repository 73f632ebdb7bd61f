"""The models and images that the tests of outliers share. Do not change them."""

import pytest
import torch

from autoencode import Autoencoder, Pack, Run, load_model
from autoencode.pixels import to_float


@pytest.fixture(scope="module")
def vae(trained_vae: Run) -> Autoencoder:
    return load_model(trained_vae.model_path)


@pytest.fixture(scope="module")
def plain(trained: Run) -> Autoencoder:
    return load_model(trained.model_path)


@pytest.fixture(scope="module")
def images(tiny_pack: Pack) -> torch.Tensor:
    return to_float(tiny_pack.pixels(tiny_pack.rows()))
