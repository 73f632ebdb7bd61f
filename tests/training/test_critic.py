"""The critic against closed forms and finite differences, and what it asks of a decoder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autoencode.data.loader import LocalBatch
from autoencode.training import critic as module
from autoencode.training.critic import RATIO, RISE, START, Critic, between, ratio_at, scales
from autoencode.training.runtime import choose_runtime

FP32 = choose_runtime("cpu", "fp32")
WHOLE = LocalBatch(0, 8, 8, 8)


def images(count: int = 8, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def gradients(critic: Critic) -> list[Tensor]:
    found = [parameter.grad for parameter in critic.network.parameters() if parameter.grad is not None]
    assert len(found) == len(list(critic.network.parameters()))
    return found


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge images as they are."""
    monkeypatch.setattr(module, "_changed", lambda shown, *_: [shown.clone()])


def test_the_pull_joins_after_the_critic_has_learnt_and_rises_in_a_straight_line() -> None:
    ratios = [ratio_at(step, 100) for step in range(100)]
    joins, rises = round(100 * START), round(100 * RISE)
    assert ratios[: joins + 1] == [0] * (joins + 1)
    rising = ratios[joins : joins + rises + 1]
    assert rising == pytest.approx([RATIO * done / rises for done in range(rises + 1)])
    assert ratios[joins + rises :] == pytest.approx([RATIO] * (100 - joins - rises))


def test_codes_between_others_have_their_mean_and_covariance() -> None:
    torch.manual_seed(0)
    codes = torch.randn(40_000, 3) @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.2]]) + 5
    found = between(codes, step=3, seed=1)
    torch.testing.assert_close(found.mean(0), codes.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(found.T.cov(), codes.T.cov(), atol=0.08, rtol=0)
    assert torch.equal(found, between(codes, step=3, seed=1))
    assert not torch.equal(found, between(codes, step=4, seed=1))


def test_the_pull_is_the_slope_of_what_the_critic_makes_of_decoded_images() -> None:
    critic, real, decoded = Critic(16, 16, FP32, seed=1), images(), images(16, seed=1)
    pull, loss = critic.judge(real, decoded, WHOLE, step=1, seed=0)
    # Mostly along the pull, as rounding in fp32 would hide a smaller slope.
    direction = torch.randn(decoded.shape, generator=torch.Generator().manual_seed(2)) + 3 * pull / pull.std()
    # Logits are small before the first step, so that the hinge loss is 2 - mean(real) + mean(decoded).
    higher, lower = (
        critic.judge(real, decoded + 1e-3 * sign * direction, WHOLE, step=1, seed=0)[1] for sign in (1, -1)
    )
    assert loss.item() == pytest.approx(2, abs=0.5)
    slope = ((higher - lower) / 2e-3).item()
    assert slope == pytest.approx(-(pull * direction).sum().item(), rel=3e-2)
    assert abs(slope) > 1e-5


@pytest.mark.usefixtures("unchanged")
def test_the_penalty_is_half_the_squared_slope_at_real_images_for_each_of_its_steps() -> None:
    critic, real, decoded = Critic(16, 16, FP32, seed=1), images(), images(seed=1)
    critic.network = nn.ModuleList([nn.Conv2d(3, 1, 1)])
    found = []
    for step in (4, 5):  # with the penalty and without
        critic.network.zero_grad()
        critic.judge(real, decoded, WHOLE, step, seed=0)
        found.append(gradients(critic)[0].clone())
    # The mean over 256 places of w · (2 x - 1) has the slope 2 w / 256 at each: 4 |w|^2 / 256, squared.
    weight = critic.network[0].weight.detach()
    torch.testing.assert_close(found[0] - found[1], 4 * 0.5 * 2 * weight * 4 / 256, rtol=1e-3, atol=1e-6)


def test_the_penalty_is_summed_over_scales() -> None:
    shown = [images(2, side=8), images(2, side=4)]
    kernels = [torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(one)) for one in (1, 2)]
    for one in shown:
        one.requires_grad_()
    logits = [nn.functional.conv2d(one, kernel) for one, kernel in zip(shown, kernels, strict=True)]
    expected = kernels[0].square().sum() / 64 + kernels[1].square().sum() / 16
    torch.testing.assert_close(module._squared_slope(logits, shown), expected)


@pytest.mark.parametrize("side", [16, 128])
def test_the_parts_of_a_batch_add_up_to_it(side: int) -> None:
    critic = Critic(side, side, FP32, seed=1)
    real, decoded = images(side=side), images(side=side, seed=1)
    pull, _ = critic.judge(real, decoded, WHOLE, step=0, seed=0)
    whole = [gradient.clone() for gradient in gradients(critic)]
    critic.network.zero_grad()
    pulls = [
        critic.judge(real[part], decoded[part], LocalBatch(part.start, part.stop, 8, 3 + 2 * late), 0, 0)[0]
        for late, part in enumerate((slice(0, 3), slice(3, 8)))
    ]
    for ours, theirs in zip(gradients(critic), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(torch.cat([pulls[0] * 3 / 8, pulls[1] * 5 / 8]), pull, rtol=1e-3, atol=1e-7)


def test_an_image_that_stands_in_for_none_changes_nothing() -> None:
    critic = Critic(16, 16, FP32, seed=1)
    critic.judge(images(1), images(2, seed=1), LocalBatch(0, 1, 8, 0), step=0, seed=0)
    assert all(gradient.abs().max() == 0 for gradient in gradients(critic))


def test_it_learns_to_tell_noise_from_real_images_and_pulls_towards_these() -> None:
    critic = Critic(16, 16, FP32, seed=1)
    grey = torch.full((8, 3, 16, 16), 0.5)
    losses = []
    for step in range(60):
        noisy = grey + 0.2 * torch.randn(grey.shape, generator=torch.Generator().manual_seed(step))
        critic.optimizer.zero_grad()
        pull, loss = critic.judge(grey, noisy, WHOLE, step, seed=0)
        critic.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    # Against the gradient the noise gets less.
    assert (noisy - 0.05 * pull / pull.std() - grey).square().mean() < (noisy - grey).square().mean()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 16), (36, 24), (64, 64), (130, 257)])
def test_it_judges_images_of_any_size(height: int, width: int) -> None:
    critic = Critic(height, width, FP32, seed=1)
    shape = (8, 3, height, width)
    pull, loss = critic.judge(torch.rand(shape), torch.rand(shape), WHOLE, step=0, seed=0)
    assert pull.shape == shape
    assert pull.abs().max() > 0
    assert loss.isfinite()


def test_of_a_large_image_it_sees_a_square_of_112_pixels() -> None:
    critic = Critic(120, 224, FP32, seed=1)
    shape = (8, 3, 120, 224)
    found = []
    for step in (1, 2, 3):
        pull, _ = critic.judge(torch.rand(shape), torch.rand(shape), WHOLE, step, seed=0)
        # Elsewhere an image matters by its mean alone, which a change of contrast keeps.
        pulled = pull.abs() > 0.05 * pull.abs().max()
        rows, columns = (pulled.sum(axes).nonzero().flatten() for axes in ((0, 1, 3), (0, 1, 2)))
        # Less where the square reaches beyond the image.
        assert 112 - 15 <= len(rows) <= 112
        assert 112 - 28 <= len(columns) <= 112
        found.append((int(rows[0]), int(columns[0])))
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("height", "width", "factors"),
    [(16, 16, [1]), (127, 300, [1]), (128, 128, [1, 2]), (300, 255, [1, 2]), (256, 300, [1, 2, 4])],
)
def test_of_a_large_image_smaller_ones_are_judged_too(height: int, width: int, factors: list[int]) -> None:
    assert scales(height, width) == factors


def test_the_pull_of_each_scale_is_that_of_its_averages() -> None:
    critic = Critic(128, 128, FP32, seed=1)
    own, halved = critic.network
    real, decoded = images(side=128), images(side=128, seed=1)
    pulls = []
    for silent in (own, halved):
        kept = copy.deepcopy(silent.state_dict())
        for weight in silent.parameters():
            weight.data.zero_()
        pulls.append(critic.judge(real, decoded, WHOLE, step=1, seed=0)[0])
        silent.load_state_dict(kept)
    by_halved, by_own = pulls

    def spread(pull: Tensor) -> float:
        """Deviation within squares of two pixels a side, where these begin as the averaged ones do."""
        seen = pull[:, :, 18:-18, 18:-18]  # wherever the square is that the critic sees
        placed = [seen[:, :, down:, across:] for down in (0, 1) for across in (0, 1)]
        return min(one.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).std(-1).mean().item() for one in placed)

    assert by_halved.std() > 0.1 * by_own.std()
    assert spread(by_halved) < 0.01 * spread(by_own)  # a mean has one slope in all of it
    both, _ = critic.judge(real, decoded, WHOLE, step=1, seed=0)
    torch.testing.assert_close(both, by_halved + by_own, rtol=1e-3, atol=1e-8)


def test_faint_detail_is_learnt_from_in_few_steps() -> None:
    critic, generator, losses = Critic(32, 32, FP32, seed=1), torch.Generator().manual_seed(0), []
    for step in range(60):
        soft = torch.rand(16, 3, 4, 4, generator=generator)
        soft = torch.nn.functional.interpolate(soft, 32, mode="bicubic").clamp(0, 1)
        real = soft + 0.06 * torch.randn(soft.shape, generator=generator)
        critic.optimizer.zero_grad()
        losses.append(critic.judge(real, soft, LocalBatch(0, 16, 16, 16), step, seed=0)[1].item())
        critic.optimizer.step()
    assert sum(losses[-10:]) / 10 < 1.4  # 2 is chance; with a factor of 1 on detail it is 1.9


def test_its_first_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (copy.deepcopy(Critic(16, 16, FP32, seed).network.state_dict()) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.0.weight"], other["0.0.weight"])
