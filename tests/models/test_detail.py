"""Detail of images, against independent implementations: split, amplified and refined."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from autoencode.models.detail import DetailConvolution, Refinement, parts_of_detail


@pytest.mark.parametrize(
    ("size", "deviation", "radius"), [((16, 24), 1.2, 4), ((64, 200), 1.2, 4), ((130, 128), 2.4, 8)]
)
def test_the_coarse_part_of_detail_is_what_a_gaussian_of_scipy_keeps_of_it(
    size: tuple[int, int], deviation: float, radius: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    faithful, sharp = (torch.rand(2, 3, *size, generator=generator) for _ in range(2))
    fine, coarse = parts_of_detail(faithful, sharp)
    deviations = (0, 0, deviation, deviation)
    expected = gaussian_filter((sharp - faithful).numpy(), deviations, mode="nearest", radius=radius)
    np.testing.assert_allclose(coarse, expected, atol=1e-5)
    torch.testing.assert_close(fine + coarse, sharp - faithful)


def test_detail_is_divided_in_fp32_where_the_rest_is_in_bf16() -> None:
    """Grouped convolutions of these sizes in bf16 took minutes."""
    faithful, sharp = torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128)
    expected = parts_of_detail(faithful, sharp)
    with torch.autocast("cpu", torch.bfloat16):
        found = parts_of_detail(faithful, sharp)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_detail_is_enlarged_before_it_is_convolved() -> None:
    torch.manual_seed(0)
    convolution, shown = DetailConvolution(3, 5), torch.rand(2, 3, 12, 12)
    patches = F.unfold(shown, 3).unflatten(1, (3, 9))  # (B, C, 9, places)
    means = patches.mean(2, keepdim=True)
    enlarged = (means + 9 * (patches - means)).flatten(1, 2)
    assert convolution.bias is not None
    expected = convolution.weight.flatten(1) @ enlarged + convolution.bias[:, None]
    torch.testing.assert_close(convolution(shown).flatten(2), expected, rtol=1e-4, atol=1e-4)


def test_a_refinement_changes_nothing_at_first_and_learns_to_remove_grain() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = F.interpolate(torch.rand(8, 3, 4, 4, generator=generator), size=(32, 32), mode="nearest")
    grainy = plain + 0.02 * torch.randn(plain.shape, generator=generator)
    torch.manual_seed(0)
    refinement = Refinement()
    assert torch.equal(refinement(grainy), grainy)
    optimizer = torch.optim.Adam(refinement.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(refinement(grainy), plain).backward()
        optimizer.step()
    others = F.interpolate(torch.rand(8, 3, 4, 4, generator=generator), size=(32, 32), mode="nearest")
    noise = 0.02 * torch.randn(plain.shape, generator=generator)
    assert F.mse_loss(refinement(others + noise), others) < 0.5 * noise.square().mean()


def test_a_refinement_sees_grain_also_where_the_rest_is_in_bf16() -> None:
    torch.manual_seed(0)
    refinement = Refinement()
    torch.nn.init.normal_(refinement.last.weight, std=0.1)
    images = 0.9 + 0.004 * torch.rand(2, 3, 16, 16)  # one level of 255
    expected = refinement(images) - images
    with torch.autocast("cpu", torch.bfloat16):
        found = refinement(images) - images
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 * expected.std().item())
