"""Muon's steps against the singular value decomposition, Adam's against torch, fused ones against others."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autoencode import Autoencoder, Preprocessing
from autoencode.training.checkpoint import _moments, _restore
from autoencode.training.optim import Muon, make_optimizer, orthogonal, set_rate
from autoencode.training.presets import settings
from autoencode.training.runtime import choose_runtime


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (3, 27)])
def test_a_matrix_becomes_the_nearest_one_of_equal_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.4
    assert values.max() < 1.3
    cosine = (found * (left @ right)).sum() / (found.norm() * (left @ right).norm())
    assert cosine > 0.95


def test_the_first_step_of_a_convolution_has_its_gradient_without_the_singular_values() -> None:
    convolution = nn.Conv2d(4, 6, 3)
    before = convolution.weight.detach().clone()
    convolution(torch.randn(2, 4, 8, 8)).square().sum().backward()
    gradient = convolution.weight.grad
    assert gradient is not None
    Muon(convolution.parameters(), lr=0.1).step()
    step = (convolution.weight.detach() - before).flatten(1)
    assert torch.linalg.svdvals(step).max() < 0.13
    left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    assert (step * (left @ right)).sum() < -0.9 * step.norm() * (left @ right).norm()


def test_matrices_of_one_shape_are_each_changed_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(6, 4, generator=generator) * scale for scale in (1, 100)]
    together, alone = ([torch.zeros(6, 4, requires_grad=True) for _ in range(2)] for _ in range(2))
    for parameters in (together, alone):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
    Muon(together, lr=0.1).step()
    for parameter in alone:
        Muon([parameter], lr=0.1).step()
    for first, second in zip(together, alone, strict=True):
        torch.testing.assert_close(first, second, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 3, 3)])
def test_vectors_and_filters_of_one_channel_are_trained_as_by_adam(shape: tuple[int, ...]) -> None:
    ours, theirs = (torch.ones(shape, requires_grad=True) for _ in range(2))
    muon = Muon([{"params": [ours]}], lr=0.02)
    adam = torch.optim.Adam([theirs], lr=0.001, betas=(0.9, 0.99))
    for step in range(4):
        for parameter, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            (parameter.reshape(5, -1) * torch.arange(5.0)[:, None] - step).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameter = torch.ones(3, 3, requires_grad=True)
    Muon([parameter]).step()
    assert torch.equal(parameter.detach(), torch.ones(3, 3))


def test_a_step_that_can_be_recorded_is_the_same_step() -> None:
    finals = []
    for capturable in (False, True):
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(6, 4, generator=generator).requires_grad_()
        vector = torch.ones(5, requires_grad=True)
        rate = torch.tensor(0.05) if capturable else 0.05
        muon = Muon([{"params": [matrix, vector]}], lr=rate, capturable=capturable)
        for step in range(3):
            muon.zero_grad()
            (matrix.square().sum() + (vector * torch.arange(5.0) - step).square().sum()).backward()
            muon.step()
        assert isinstance(muon.state[vector]["step"], torch.Tensor)
        finals.append(torch.cat([matrix.detach().flatten(), vector.detach()]))
    torch.testing.assert_close(*finals, rtol=1e-5, atol=1e-6)


def test_steps_of_adamw_with_channels_innermost_are_those_of_its_formula() -> None:
    torch.manual_seed(0)
    config, train_config = settings("best", code_size=8, widths=(4, 8))
    model = Autoencoder(config, Preprocessing(32, 32))
    runtime = choose_runtime("cpu")
    runtime.model_to_device(model)
    plain = copy.deepcopy(model)
    optimizer = make_optimizer(model, train_config)
    expected = torch.optim.AdamW(
        plain.parameter_groups(), betas=(0.9, 0.99), weight_decay=0.01, foreach=False, fused=False
    )
    images = runtime.to_device(torch.rand(4, 3, 32, 32))
    for _ in range(3):
        set_rate(optimizer, 0.01)
        set_rate(expected, 0.01)
        optimizer.zero_grad()
        with runtime.autocast():
            restored = model(images).images
        (restored - images).square().mean().backward()
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            other.grad = None if one.grad is None else one.grad.clone()
        optimizer.step()
        expected.step()
        saved = {key: moment.contiguous() for key, moment in _moments("a", optimizer).items()}
        _restore(optimizer, {key.removeprefix("a/"): moment for key, moment in saved.items()})
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()))
