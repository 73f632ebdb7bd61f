"""What the steps of a run see of its images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autoencode import Autoencoder, ModelConfig, Preprocessing
from autoencode.data.loader import local_batch
from autoencode.training.config import TrainConfig
from autoencode.training.objective import Objective
from autoencode.training.runtime import choose_runtime


@pytest.mark.parametrize("purpose", ["train", "perceptual"])
def test_training_images_are_shifted_and_validation_images_are_not(purpose: str) -> None:
    model = Autoencoder(ModelConfig("autoencoder", 4, widths=(4, 8)), Preprocessing(16, 16))
    objective = Objective(TrainConfig(shift=2), choose_runtime("cpu", "fp32"), steps=5, total_steps=10)
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    local = local_batch(64, 0, 1)
    seen, target, _ = objective.views(model, images, local, purpose, 0)
    assert torch.equal(seen, target)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    corners = [(down, across) for down in range(5) for across in range(5)]
    shifts = torch.stack([padded[:, :, down : down + 16, across : across + 16] for down, across in corners])
    matches = (shifts == target).flatten(2).all(2)
    assert matches.sum(0).tolist() == [1] * 64
    assert matches.any(1).sum() > 20
    assert not torch.equal(objective.views(model, images, local, purpose, 1).target, target)
    assert torch.equal(objective.views(model, images, local, "validation", 0).target, images)
