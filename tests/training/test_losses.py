"""Objectives against torch.distributions, torch.nn.functional and closed forms."""

import pytest
import torch
import torch.nn.functional as F

from autoencode.metrics.latents import gaussian_log_likelihood, kl
from autoencode.models.autoencoder import Output, Posterior
from autoencode.training import losses

IMAGES = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(1))
RESTORED = torch.rand(5, 3, 16, 32, generator=torch.Generator().manual_seed(2))
MEAN = torch.randn(5, 7, generator=torch.Generator().manual_seed(3))
LOG_VARIANCE = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))


def gaussian_output() -> Output:
    return Output(RESTORED, Posterior(MEAN, LOG_VARIANCE))


def test_squared_and_absolute_errors_are_those_of_torch() -> None:
    assert losses.mse_loss(IMAGES, RESTORED) == F.mse_loss(RESTORED, IMAGES)
    assert losses.l1_loss(IMAGES, RESTORED) == F.l1_loss(RESTORED, IMAGES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_the_squared_error_is_that_of_torch_and_lies_as_the_images_do(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 4, 6).contiguous(memory_format=layout)
    ours = torch.rand(2, 3, 4, 6).to(dtype).contiguous(memory_format=layout).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    (3 * losses.mse_loss(images, ours)).backward()
    (3 * F.mse_loss(theirs.float(), images)).backward()
    assert ours.grad is not None
    assert ours.grad.is_contiguous(memory_format=layout)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_objective_of_a_vae_is_the_elbo_divided_by_the_values_of_an_image() -> None:
    found = losses.terms("gaussian", IMAGES, gaussian_output(), beta=0.5, sigma2=0.01)
    likelihood = gaussian_log_likelihood(IMAGES, RESTORED, 0.01).mean()
    expected = (-likelihood + 0.5 * kl(MEAN, LOG_VARIANCE).mean()) / (3 * 16 * 32)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.reconstruction, -likelihood)
    torch.testing.assert_close(found.kl, kl(MEAN, LOG_VARIANCE).mean())
    torch.testing.assert_close(found.mse, F.mse_loss(RESTORED, IMAGES))


def test_one_image_has_an_objective_too() -> None:
    whole = losses.terms("gaussian", IMAGES, gaussian_output(), beta=1, sigma2=0.01)
    single = [
        losses.terms(
            "gaussian",
            IMAGES[i : i + 1],
            Output(RESTORED[i : i + 1], Posterior(MEAN[i : i + 1], LOG_VARIANCE[i : i + 1])),
            beta=1,
            sigma2=0.01,
        ).loss
        for i in range(5)
    ]
    torch.testing.assert_close(whole.loss, torch.stack(single).mean())


def test_a_vae_with_summed_squared_error_has_the_gradient_of_sigma2_one_half() -> None:
    gradients = []
    for loss in ("mse", "gaussian"):
        restored = RESTORED.clone().requires_grad_()
        output = Output(restored, Posterior(MEAN, LOG_VARIANCE))
        losses.terms(loss, IMAGES, output, beta=1, sigma2=0.5).loss.backward()
        gradients.append(restored.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_an_autoencoder_has_no_kl() -> None:
    output = Output(RESTORED, Posterior(MEAN, None))
    found = losses.terms("mae", IMAGES, output, beta=1, sigma2=1)
    assert found.kl == 0
    assert found.reconstruction == found.loss
    assert found.loss == F.l1_loss(RESTORED, IMAGES)
    assert found.mse == F.mse_loss(RESTORED, IMAGES)


def test_automatic_sigma2_converges_to_the_known_noise_of_synthetic_data() -> None:
    generator = torch.Generator().manual_seed(0)
    sigma2 = torch.tensor(1.0)
    for step in range(400):
        noise = 0.05 * torch.randn(16, 3, 16, 16, generator=generator)
        losses.update_sigma2(sigma2, noise.square().mean(), step)
    assert sigma2.item() == pytest.approx(0.05**2, rel=0.01)


def test_automatic_sigma2_is_the_mean_of_the_first_batches_and_then_remembers_fifty() -> None:
    errors = [0.4, 0.1, 0.3, 0.2, 0.7]
    sigma2 = torch.tensor(9.0)
    for step, error in enumerate(errors):
        losses.update_sigma2(sigma2, torch.tensor(error), step)
        assert sigma2.item() == pytest.approx(sum(errors[: step + 1]) / (step + 1), rel=1e-5)
    losses.update_sigma2(sigma2, torch.tensor(0.0), 10_000)
    assert sigma2.item() == pytest.approx(0.98 * sum(errors) / 5, rel=1e-5)


def test_automatic_sigma2_is_the_maximum_of_the_likelihood() -> None:
    mse = (IMAGES - RESTORED).square().mean()
    sigma2 = torch.tensor(7.0)
    losses.update_sigma2(sigma2, mse, 0)
    best = gaussian_log_likelihood(IMAGES, RESTORED, sigma2).mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert gaussian_log_likelihood(IMAGES, RESTORED, sigma2 * factor).mean() < best


def test_automatic_sigma2_stops_at_the_variance_of_rounding() -> None:
    sigma2 = torch.tensor(1.0)
    losses.update_sigma2(sigma2, torch.tensor(0.0), 0)
    assert sigma2.item() == pytest.approx(1 / 255**2 / 12)


def test_warmup_is_linear_and_reaches_beta_at_exactly_the_stated_step() -> None:
    values = [losses.beta_at(step, 1000, 40, 0, 2.0) for step in range(60)]
    assert values[0] == 0
    assert values[20] == 1
    assert values[39] < 2
    assert values[40:] == [2.0] * 20


def test_cycles_rise_in_their_first_half_and_stay_in_their_second() -> None:
    values = [losses.beta_at(step, 100, 0, 4, 1.0) for step in range(100)]
    for start in range(0, 100, 25):
        assert values[start : start + 13] == pytest.approx([2 * step / 25 for step in range(13)])
        assert values[start + 13 : start + 25] == [1.0] * 12
    assert losses.beta_at(100, 100, 0, 4, 1.0) == 1


def test_without_a_warmup_the_weight_is_beta_from_the_first_step() -> None:
    assert losses.beta_at(0, 100, 0, 0, 2.0) == 2
