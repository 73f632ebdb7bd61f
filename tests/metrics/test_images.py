import math
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import laplace
from skimage.metrics import mean_squared_error as reference_mse
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from autoencode.errors import ConfigError
from autoencode.metrics import images
from autoencode.metrics.images import (
    kernel_inception_distance,
    manifold_shares,
    mean_absolute_error,
    mean_squared_error,
    noise_level,
    psnr,
    sharpness_ratio,
    ssim,
)


def image_pair(batch: int, height: int, width: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Smooth colour images (B, 3, H, W) and a noisy version of each."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand((batch, 3, 5, 5), generator=generator)
    clean = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return clean, (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def channels_last(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


def reference_ssim(a: Tensor, b: Tensor) -> float:
    return structural_similarity(
        channels_last(a),
        channels_last(b),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=2,
    )


def test_mse_and_psnr_agree_with_scikit_image() -> None:
    a, b = image_pair(4, 32, 48)
    pairs = [(channels_last(x), channels_last(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(mean_squared_error(a, b), [reference_mse(x, y) for x, y in pairs], rtol=1e-5)
    expected = [peak_signal_noise_ratio(x, y, data_range=1) for x, y in pairs]
    np.testing.assert_allclose(psnr(a, b), expected, atol=1e-4)


def test_mean_absolute_error_is_that_of_numpy() -> None:
    a, b = torch.rand(2, 3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        mean_absolute_error(a, b), np.abs(a.numpy() - b.numpy()).mean(axis=(1, 2, 3)), rtol=1e-6
    )


def test_psnr_is_infinite_for_identical_images_and_zero_for_black_against_white() -> None:
    a, _ = image_pair(1, 16, 16)
    assert psnr(a, a).item() == float("inf")
    assert psnr(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)).item() == 0


@pytest.mark.parametrize("size", [(11, 11), (16, 16), (28, 28), (96, 64)])
@pytest.mark.parametrize("noise", [0.003, 0.1, 0.5])
def test_ssim_agrees_with_scikit_image(size: tuple[int, int], noise: float) -> None:
    a, b = image_pair(3, *size, noise)
    expected = [reference_ssim(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-5)


def test_ssim_agrees_with_scikit_image_where_images_are_flat_or_opposite() -> None:
    flat = torch.full((1, 3, 16, 16), 0.9)
    speckled = flat + 1e-3 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    a, _ = image_pair(1, 16, 16)
    for x, y in ((flat, speckled), (a, 1 - a), (torch.zeros_like(flat), torch.ones_like(flat))):
        assert ssim(x, y).item() == pytest.approx(reference_ssim(x[0], y[0]), abs=1e-4)


def test_ssim_of_identical_images_is_one_and_grey_images_are_taken_too() -> None:
    a, b = image_pair(2, 24, 24)
    torch.testing.assert_close(ssim(a, a), torch.ones(2))
    grey = ssim(a[:, :1], b[:, :1])
    torch.testing.assert_close(ssim(a[:, :1].expand(-1, 3, -1, -1), b[:, :1].expand(-1, 3, -1, -1)), grey)


def test_ssim_below_its_window_says_so() -> None:
    with pytest.raises(ConfigError, match="at least 11x11 px"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


@pytest.mark.parametrize("metric", [mean_squared_error, psnr, ssim, sharpness_ratio])
def test_chunks_give_what_one_pass_gives(
    metric: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = image_pair(7, 16, 16)
    whole = metric(a, b)
    monkeypatch.setattr(images, "VALUES_PER_CHUNK", 3 * 16 * 16 * 2)
    torch.testing.assert_close(metric(a, b), whole)
    assert whole.shape == (7,)
    assert metric(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("metric", [mean_squared_error, psnr, ssim, sharpness_ratio])
def test_metrics_are_float32_without_gradient_whatever_the_input_and_autocast(
    metric: Callable[[Tensor, Tensor], Tensor],
) -> None:
    a, b = image_pair(2, 16, 16)
    expected = metric(a.bfloat16().float(), b.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = metric(a.bfloat16().requires_grad_(), b.bfloat16())
    assert result.dtype == torch.float32
    assert not result.requires_grad
    torch.testing.assert_close(result, expected)


def test_metrics_reject_bytes_and_shapes_that_differ() -> None:
    with pytest.raises(ConfigError, match="Divide bytes by 255"):
        psnr(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="one shape"):
        psnr(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17))
    with pytest.raises(ConfigError, match="one shape"):
        mean_squared_error(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


def test_sharpness_ratio_agrees_with_scipy_and_orders_blur_and_noise() -> None:
    original, noisy = image_pair(2, 32, 32)
    variances = [
        [laplace(channels_last(image).mean(axis=2))[1:-1, 1:-1].var() for image in batch]
        for batch in (noisy, original)
    ]
    np.testing.assert_allclose(sharpness_ratio(noisy, original), np.divide(*variances), rtol=1e-3)
    blurred = torch.nn.functional.avg_pool2d(noisy, 3, stride=1, padding=1)
    assert (sharpness_ratio(blurred, noisy) < 0.5).all()


def test_sharpness_ratio_of_flat_images() -> None:
    flat, (_, noisy) = torch.full((1, 3, 8, 8), 0.5), image_pair(1, 8, 8)
    assert sharpness_ratio(flat, flat).item() == 1
    assert sharpness_ratio(noisy, flat).item() == float("inf")
    with pytest.raises(ConfigError, match="at least 3x3"):
        sharpness_ratio(flat[..., :2], flat[..., :2])


def straightforward_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return (float(np.dot(u, v)) / len(u) + 1) ** 3

    within_x = np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
    within_y = np.mean([kernel(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j])
    return within_x + within_y - 2 * np.mean([kernel(u, v) for u in x for v in y])


def test_kernel_distance_agrees_with_a_double_loop() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 6)), generator.normal(0.5, 2, size=(31, 6))
    assert kernel_inception_distance(x, y).value == pytest.approx(straightforward_mmd(x, y))


def test_kernel_distance_agrees_with_torchmetrics() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.gamma(1, 1, (120, 32)), generator.gamma(1.2, 1, (120, 32))
    expected = poly_mmd(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert kernel_inception_distance(x, y).value == pytest.approx(expected)


def test_kernel_distance_jackknife_agrees_with_leaving_each_sample_out() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(9, 4)), generator.normal(0.5, 1, size=(12, 4))

    def variance(without: list[float]) -> float:
        return float((len(without) - 1) * np.var(without))

    expected = variance([straightforward_mmd(np.delete(x, i, axis=0), y) for i in range(9)])
    expected += variance([straightforward_mmd(x, np.delete(y, i, axis=0)) for i in range(12)])
    assert kernel_inception_distance(x, y).standard_error == pytest.approx(np.sqrt(expected))


def test_kernel_distance_of_equal_distributions_is_zero_on_average() -> None:
    generator = np.random.default_rng(2)
    values = [kernel_inception_distance(*generator.normal(size=(2, 40, 8))).value for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0


def test_kernel_distance_meets_its_closed_form_at_every_number_of_samples() -> None:
    # In one dimension k(x, y) = (xy + 1)^3, so MMD² = Δm3² + 3 Δm2² + 3 Δm1², with Δm the moments' gaps.
    mean, deviation = 0.5, 1.2
    m1, m2, m3 = mean, mean**2 + deviation**2, mean**3 + 3 * mean * deviation**2
    exact = m3**2 + 3 * (m2 - 1) ** 2 + 3 * m1**2
    generator = np.random.default_rng(3)
    for size in (10, 50):
        values = [
            kernel_inception_distance(
                generator.normal(size=(size, 1)), generator.normal(mean, deviation, (50, 1))
            ).value
            for _ in range(1500)
        ]
        assert np.mean(values) == pytest.approx(exact, abs=3 * np.std(values) / np.sqrt(1500))


@pytest.mark.parametrize("size", [60, 30, 15])
def test_kernel_distance_error_is_the_spread_over_new_samples(size: int) -> None:
    generator = np.random.default_rng(4)
    results = [
        kernel_inception_distance(generator.normal(size=(size, 8)), generator.normal(0.6, 1, (90, 8)))
        for _ in range(150)
    ]
    spread = np.std([result.value for result in results])
    claimed = np.mean([result.standard_error for result in results])
    assert 0.85 * spread < claimed < 1.35 * spread


def test_kernel_distance_is_symmetric_and_has_its_interval() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(50, 4)).astype(np.float32), generator.normal(1, 1, (30, 4))
    first, other = kernel_inception_distance(x, y), kernel_inception_distance(y, x)
    assert first.interval.low == pytest.approx(first.value - 1.959964 * first.standard_error)
    assert first.interval.high == pytest.approx(first.value + 1.959964 * first.standard_error)
    assert (first.value, first.standard_error) == pytest.approx((other.value, other.standard_error))


def test_kernel_distance_of_two_samples_has_no_bound() -> None:
    found = kernel_inception_distance(np.eye(2), np.eye(2))
    assert found.value == pytest.approx(straightforward_mmd(np.eye(2), np.eye(2)))
    assert found.interval == (-np.inf, np.inf)


@pytest.mark.parametrize(("a", "b"), [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5,), (5, 3))])
def test_kernel_distance_rejects_features_that_do_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        kernel_inception_distance(np.zeros(a), np.zeros(b))


def test_kernel_distance_rejects_what_is_not_finite() -> None:
    with pytest.raises(ConfigError, match="finite"):
        kernel_inception_distance(np.full((5, 3), np.nan), np.zeros((5, 3)))


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1, 0.3])
def test_the_level_of_noise_is_found_in_flat_and_in_structured_images(sigma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    photograph = torch.from_numpy(skimage.data.astronaut()[:128, :128].copy()).permute(2, 0, 1) / 255
    images = torch.stack([torch.full((3, 128, 128), 0.5), photograph])
    found = noise_level(images + sigma * torch.randn(images.shape, generator=generator))
    assert found[0] == pytest.approx(sigma, rel=0.03)
    # A photograph has some noise and texture of its own.
    assert sigma * 0.97 < found[1] < math.hypot(1.02 * sigma, 0.03)


def test_an_image_without_noise_has_none() -> None:
    assert noise_level(torch.full((1, 3, 16, 16), 0.25)).item() == pytest.approx(0, abs=1e-6)


def test_manifold_shares_are_those_counted_one_by_one_with_nearest_neighbours_of_scikit_learn() -> None:
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    real, made = generator.normal(size=(60, 5)), generator.normal(0.8, 1.3, size=(40, 5))

    def among(points: np.ndarray, manifold: np.ndarray) -> int:
        radii = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, 3]
        return sum(
            any(
                np.linalg.norm(point - centre) <= radius
                for centre, radius in zip(manifold, radii, strict=True)
            )
            for point in points
        )

    found = manifold_shares(real, made, 3)
    assert found == (among(made, real), among(real, made))
    assert 0 < found[0] < 40
    assert manifold_shares(real, real, 3) == (60, 60)
    assert manifold_shares(real, made + 100, 3) == (0, 0)
    with pytest.raises(ConfigError, match="more than 3 samples"):
        manifold_shares(real, made[:3], 3)
