"""Densities over codes against torch.distributions and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch.distributions import MultivariateNormal

from autoencode import ConfigError, GaussianMixture, StandardNormal


def two_clusters(count: int = 600) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(count, 3, generator=generator) * torch.tensor([0.5, 0.1, 1.0])
    codes[::2] += torch.tensor([4.0, 0.0, -2.0])
    return codes


def test_the_standard_normal_has_the_density_of_torch() -> None:
    codes = torch.randn(5, 4, dtype=torch.float64)
    expected = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double()).log_prob(codes)
    torch.testing.assert_close(StandardNormal(4).log_density(codes), expected)


def test_a_mixture_has_the_density_of_scikit_learn() -> None:
    codes = two_clusters().double().numpy()
    fitted = SklearnMixture(3, random_state=0).fit(codes)
    factors = torch.from_numpy(np.linalg.cholesky(fitted.covariances_))
    mixture = GaussianMixture(torch.from_numpy(fitted.weights_), torch.from_numpy(fitted.means_), factors)
    found = mixture.log_density(torch.from_numpy(codes))
    np.testing.assert_allclose(found.numpy(), fitted.score_samples(codes), rtol=1e-6, atol=1e-6)


def test_a_fit_finds_the_clusters_and_its_samples_have_their_moments() -> None:
    codes = two_clusters(3000)
    mixture = GaussianMixture.fit(codes)
    assert len(mixture.weights) >= 2
    drawn = mixture.sample(20_000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0.15, atol=0.1)


def test_a_fit_describes_held_out_codes_better_than_one_gaussian() -> None:
    codes = two_clusters(3000)
    single = MultivariateNormal(codes.mean(0), torch.cov(codes.T))
    mixture = GaussianMixture.fit(codes[:2000])
    assert mixture.log_density(codes[2000:]).mean() > single.log_prob(codes[2000:]).mean() + 0.5


def test_more_components_than_the_codes_can_tell_are_not_fitted() -> None:
    codes = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    codes[::2] += 30
    assert len(GaussianMixture.fit(codes).weights) == 1


def test_every_frame_of_a_path_through_one_component_is_distributed_as_its_samples() -> None:
    factor = torch.linalg.cholesky(torch.tensor([[4.0, 1.0], [1.0, 0.5]]))
    mixture = GaussianMixture(torch.ones(1), torch.tensor([[3.0, -1.0]]), factor[None])
    paths = torch.stack(
        [mixture.path(8, 2, 1.0, torch.Generator().manual_seed(seed)) for seed in range(3000)]
    )
    for frame in paths.unbind(1):
        torch.testing.assert_close(frame.mean(0), torch.tensor([3.0, -1.0]), rtol=0, atol=0.15)
        torch.testing.assert_close(torch.cov(frame.T), factor @ factor.T, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_path_through_a_mixture_is_closed_and_makes_no_jump(turns: int) -> None:
    path = GaussianMixture.fit(two_clusters()).path(240, turns, 1.0, torch.Generator().manual_seed(0))
    steps = (path.roll(-1, 0) - path).norm(dim=1)
    assert steps.max() < 6 * steps.mean()
    assert steps.max() < 0.1 * torch.pdist(path).max()


@pytest.mark.parametrize(("weights", "diagonal"), [([0.5, 0.4], 1.0), ([1.5, -0.5], 1.0), ([0.5, 0.5], 0.0)])
def test_what_is_no_mixture_is_rejected(weights: list[float], diagonal: float) -> None:
    factors = torch.eye(3).mul(diagonal).expand(2, 3, 3)
    with pytest.raises(ConfigError, match="must be positive"):
        GaussianMixture(torch.tensor(weights), torch.zeros(2, 3), factors)
    with pytest.raises(ConfigError, match="needs weights"):
        GaussianMixture(torch.ones(1), torch.zeros(2, 3), factors)


def test_the_same_codes_give_the_same_mixture() -> None:
    first, second = GaussianMixture.fit(two_clusters()), GaussianMixture.fit(two_clusters())
    assert torch.equal(first.means, second.means)
    assert torch.equal(first.factors, second.factors)


@pytest.mark.parametrize(
    "codes",
    [torch.randn(1, 5), torch.randn(3, 20), torch.zeros(50, 4), torch.randn(40, 1).expand(40, 6).clone()],
    ids=["one", "fewer than values", "constant", "one direction"],
)
def test_degenerate_codes_give_a_finite_mixture(codes: torch.Tensor) -> None:
    mixture = GaussianMixture.fit(codes)
    assert torch.isfinite(mixture.sample(10, generator=torch.Generator().manual_seed(0))).all()
    assert torch.isfinite(mixture.log_density(codes)).all()


@pytest.mark.parametrize("codes", [torch.zeros(0, 3), torch.full((4, 2), float("nan")), torch.zeros(3)])
def test_codes_that_cannot_be_fitted_are_rejected(codes: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="finite codes"):
        GaussianMixture.fit(codes)


def test_temperature_zero_is_the_mean_of_a_component() -> None:
    mixture = GaussianMixture.fit(two_clusters())
    drawn = mixture.sample(20, 0.0, torch.Generator().manual_seed(0))
    assert (torch.cdist(drawn, mixture.means).min(1).values < 1e-5).all()
    assert StandardNormal(3).sample(2, 0.0).abs().max() == 0


def test_a_path_is_closed_and_smooth_and_distributed_as_samples() -> None:
    paths = torch.stack(
        [StandardNormal(50).path(60, 2, 1.0, torch.Generator().manual_seed(seed)) for seed in range(200)]
    )
    assert paths.var(0).mean().item() == pytest.approx(1, abs=0.05)
    steps = (paths.roll(-1, 1) - paths).norm(dim=2)
    assert steps.max() < 4 * steps.mean()


def test_codes_of_another_size_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"\(B, 3\)"):
        StandardNormal(3).log_density(torch.zeros(1, 2))


def test_codes_near_a_sample_are_distributed_as_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    code = StandardNormal(2000).sample(1, generator=generator)[0]
    near = StandardNormal(2000).near(code, 4, 0.6, generator)
    assert near.var(1).mean().item() == pytest.approx(1, abs=0.1)
    share = (near @ code / code.square().sum()).mean().item()
    assert share == pytest.approx(0.8, abs=0.05)  # sqrt(1 - 0.6^2) of it is left


def test_codes_near_another_in_a_mixture_stay_in_its_component() -> None:
    factors = torch.tensor([[[1.0, 0.0], [0.8, 0.6]], [[0.5, 0.0], [0.0, 2.0]]])
    mixture = GaussianMixture(torch.tensor([0.3, 0.7]), torch.tensor([[-20.0, 0.0], [20.0, 0.0]]), factors)
    code = torch.tensor([-19.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    near = mixture.near(code, 4000, 1.0, generator)  # nothing is left of it but its component
    torch.testing.assert_close(near.mean(0), mixture.means[0], atol=0.06, rtol=0)
    torch.testing.assert_close(near.T.cov(), factors[0] @ factors[0].T, atol=0.08, rtol=0)
    torch.testing.assert_close(mixture.near(code, 2, 0.0, generator)[1], code)
