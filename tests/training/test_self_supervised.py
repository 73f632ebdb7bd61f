"""Pairs out of noisy images, against what the clean ones, which the tests have, would teach."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch

from autoencode import Preprocessing
from autoencode.data.damage import Draws, clipped_noise
from autoencode.data.loader import LocalBatch, local_batch
from autoencode.metrics.images import noise_level
from autoencode.models.model_file import build_model
from autoencode.training.checkpoint import TrainState
from autoencode.training.objective import Objective
from autoencode.training.optim import make_optimizer
from autoencode.training.presets import settings
from autoencode.training.runtime import choose_runtime
from autoencode.training.self_supervised import damaged_again, level_before_cut, mean_after_cut, recorrupted

IMAGES = torch.rand(8, 3, 32, 48, generator=torch.Generator().manual_seed(0))
# Squares of several brightnesses, from black to white.
PATCHWORK = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)


def noisy(level: float, seed: int = 0, count: int = 8) -> torch.Tensor:
    images = PATCHWORK.expand(count, 3, -1, -1)
    return clipped_noise(images, level, Draws(images, torch.Generator().manual_seed(seed), None))


def test_what_is_learned_from_recorrupted_images_is_what_clean_ones_would_teach() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.full((32, 3, 64, 64), 0.5)
    damaged = clean + 0.2 * torch.randn(clean.shape, generator=generator)
    seen, target, _ = recorrupted(damaged, generator)
    # The noise of the two is independent, although both have that of the image.
    in_both = ((seen - clean) * (target - clean)).flatten(1).mean(1)
    assert in_both.mean().abs() < 0.04 * 0.2**2
    ratios = ((seen - clean).flatten(1).std(1) / 0.2).square() - 1
    assert ratios.min() > 0.07
    assert ratios.max() < 1.05
    # The best factor on the input, among all linear maps, is the same for target and clean image.
    by_target = ((seen - 0.5) * (target - 0.5)).sum() / (seen - 0.5).square().sum()
    assert abs(float(by_target)) < 0.03


@pytest.mark.parametrize("again", [False, True])
def test_pairs_are_the_same_in_a_local_batch(again: bool) -> None:
    def pairs(images: torch.Tensor, local: LocalBatch | None) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        given = (images, 0.9 * images) if again else (images,)
        return (damaged_again if again else recorrupted)(*given, generator, local)  # type: ignore[operator, no-any-return]

    local = local_batch(len(IMAGES), 1, 3)
    part, whole = pairs(IMAGES[local.positions], local), pairs(IMAGES, None)
    for own, every in zip(part, whole, strict=True):
        torch.testing.assert_close(own, every[local.positions])


@pytest.mark.parametrize("level", [0.05, 0.1, 0.3, 0.5])
def test_the_level_of_noise_is_found_although_it_was_cut_off(level: float) -> None:
    images = noisy(level)
    seen = noise_level(images)
    found = level_before_cut(images, seen)
    assert found.median().item() == pytest.approx(level, rel=0.06)
    if level >= 0.3:
        assert seen.median() < 0.85 * level


@pytest.mark.parametrize("level", [0.05, 0.3])
def test_the_mean_of_noise_that_is_cut_off_is_that_of_its_density(level: float) -> None:
    for clean in (0.0, 0.1, 0.5, 0.97, 1.2):
        values = np.linspace(0, 1, 20_001)
        inside = np.trapezoid(values * scipy.stats.norm.pdf(values, clean, level), values)
        expected = inside + scipy.stats.norm.sf(1, clean, level)
        found = mean_after_cut(torch.full((1, 3, 1, 1), clean), torch.tensor([level]))
        assert found.unique().item() == pytest.approx(expected, abs=1e-5)


def test_a_target_without_noise_is_only_cut_off() -> None:
    images = torch.linspace(-0.5, 1.5, 24).reshape(1, 3, 2, 4)
    torch.testing.assert_close(mean_after_cut(images, torch.zeros(1)), images.clamp(0, 1), atol=5e-4, rtol=0)


def test_restored_images_get_the_noise_that_was_found_again() -> None:
    restored = PATCHWORK.expand(8, 3, -1, -1) * 1.5 - 0.2
    seen, target, level = damaged_again(noisy(0.3), restored, torch.Generator().manual_seed(1))
    assert torch.equal(target, restored.clamp(0, 1))
    assert not level.any()
    middle = (target > 0.4) & (target < 0.6)
    assert (seen - target)[middle].std().item() == pytest.approx(0.28, abs=0.03)


def test_restored_images_take_the_place_of_clean_ones_after_half_of_the_steps() -> None:
    model_config, config = settings("restore", self_supervised=True, widths=(4, 8), horizontal_flip=False)
    torch.manual_seed(0)
    model = build_model(model_config, Preprocessing(64, 64))
    objective = Objective(config, choose_runtime("cpu", "fp32"), steps=5, total_steps=10)
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        model.net.last.bias.fill_(0.1)  # type: ignore[union-attr]
    state = TrainState(model, model, make_optimizer(model, config), 0, torch.zeros(4), teacher=teacher)
    for step in (4, 5, 6):
        objective.choose_teacher(dataclasses.replace(state, step=step))
        same = torch.equal(teacher(IMAGES).images, model(IMAGES).images)
        assert same == (step >= 5)
    images = noisy(0.1, count=2)
    local = local_batch(2, 0, 1)
    before, after = (objective.views(model, images, local, "train", step) for step in (4, 5))
    assert before.noise is not None and before.noise.all()
    assert after.noise is not None and not after.noise.any()
    torch.testing.assert_close(after.target, model(images).images.detach().clamp(0, 1))
    # Validation measures the same throughout.
    validated = objective.views(model, images, local, "validation", 9)
    assert validated.noise is not None and validated.noise.all()


def test_a_model_that_restores_already_is_the_teacher_from_the_first_step_and_again_after_half() -> None:
    model_config, config = settings("restore", self_supervised=True, widths=(4, 8), horizontal_flip=False)
    torch.manual_seed(0)
    model = build_model(model_config, Preprocessing(64, 64))
    runtime = choose_runtime("cpu", "fp32")
    objective = Objective(config, runtime, steps=5, total_steps=10, starts_trained=True)
    state = TrainState(
        model, model, make_optimizer(model, config), 0, torch.zeros(4), teacher=copy.deepcopy(model)
    )
    images, local = noisy(0.1, count=2), local_batch(2, 0, 1)
    seen = []
    for step in range(10):
        with torch.no_grad():
            model.net.last.bias.fill_(step / 100)  # type: ignore[union-attr]
        objective.choose_teacher(dataclasses.replace(state, step=step))
        seen.append(objective.teacher.net.last.bias[0].item())  # type: ignore[union-attr]
    assert seen == pytest.approx([0.0] * 5 + [0.05] * 5)
    views = objective.views(model, images, local, "train", 0)
    assert views.noise is not None and not views.noise.any()
