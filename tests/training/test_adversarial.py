"""The losses of a VAE/GAN against closed forms, its gradients against autograd on the whole graph."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoencode import (
    Autoencoder,
    ConfigError,
    ModelConfig,
    Pack,
    Preprocessing,
    Run,
    load_model,
    settings,
    train,
)
from autoencode.figures.plots import PANELS
from autoencode.training.adversarial import (
    ADVERSARIAL_RATIO,
    FEATURE_WEIGHT,
    Adversary,
    Discriminator,
    Measures,
    adversarial_loss,
    discriminator_loss,
    feature_loss,
    ratio_at,
)
from autoencode.training.losses import terms
from autoencode.training.runtime import choose_runtime

FP32 = choose_runtime("cpu", "fp32")


@pytest.fixture(scope="module")
def adversarial_run(tiny_pack: Pack, tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A VAE/GAN after four epochs; the discriminator joins after the second. Do not change it."""
    out = tmp_path_factory.mktemp("adversarial") / "run"
    return train(tiny_pack.path, out, kind="vae", adversarial=True, epochs=4, precision="fp32", **tiny)


def test_the_hinge_losses_are_those_computed_by_hand() -> None:
    real, decoded = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert discriminator_loss(real, decoded).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3)
    assert adversarial_loss(decoded).item() == pytest.approx((3 + 0.5 - 1) / 3)


def test_the_feature_loss_is_the_likelihood_at_its_best_variance() -> None:
    torch.manual_seed(0)
    real = [torch.randn(4, 3, 5, 5), 10 * torch.randn(4, 6, 2, 2)]
    restored = [level + scale * torch.randn_like(level) for level, scale in zip(real, (0.3, 4), strict=True)]
    expected = []
    for theirs, ours in zip(real, restored, strict=True):
        spread = (theirs - ours).square().mean().sqrt()
        nats = [
            -torch.distributions.Normal(ours, s).log_prob(theirs).mean().item()
            for s in (spread, 1.1 * spread)
        ]
        assert nats[0] < nats[1]
        expected.append(nats[0] - 0.5 * math.log(2 * math.pi) - 0.5)
    assert feature_loss(real, restored).item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_the_feature_loss_pulls_restored_images_only_and_at_any_scale_alike() -> None:
    torch.manual_seed(0)
    real, restored = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)
    feature_loss([real], [restored]).backward()
    assert real.grad is None
    (scaled,) = torch.autograd.grad(feature_loss([100 * real], [100 * restored]), restored)
    torch.testing.assert_close(scaled, restored.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 64), (36, 24), (64, 64)])
def test_a_discriminator_judges_images_of_any_size(height: int, width: int) -> None:
    judgement = Discriminator(height, width)(torch.rand(2, 3, height, width))
    assert judgement.logits.shape[:2] == (2, 1)
    assert min(judgement.logits.shape[2:]) in range(1, 5)
    assert judgement.features[0].shape[2:] == (height // 2, width // 2)


def test_every_convolution_of_the_discriminator_has_spectral_norm_one() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(16, 16)
    for _ in range(100):  # each pass is a step of the power iteration
        discriminator(torch.rand(1, 3, 16, 16))
    for convolution in [*discriminator.levels, discriminator.to_logits]:
        norm = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2).item()
        assert norm == pytest.approx(1, abs=0.02)


def test_the_adversarial_term_joins_at_half_time_and_rises_in_a_straight_line() -> None:
    ratios = [ratio_at(step, 100) for step in range(100)]
    assert ratios[:50] == [0] * 50
    assert ratios[50:60] == pytest.approx([ADVERSARIAL_RATIO * (step + 1) / 10 for step in range(10)])
    assert ratios[60:] == [ADVERSARIAL_RATIO] * 40
    assert [ratio_at(step, 2) for step in range(2)] == [0, ADVERSARIAL_RATIO]


def small_vae(network: str) -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(ModelConfig("vae", 6, network=network, widths=(4, 8)), Preprocessing(16, 16))  # type: ignore[arg-type]
    for parameter in model.parameters():  # no layer at the zero it may start from
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def step(model: Autoencoder, adversary: Adversary, images: Tensor, seed: int) -> Measures:
    """One step as the loop takes it; gradients are left in the model."""
    model.zero_grad(set_to_none=True)
    noise = torch.randn(len(images), 6, generator=torch.Generator().manual_seed(9))
    output = model(images, noise)
    loss = terms("gaussian", images, output, 1.0, 0.05).loss
    adversary.step(model, images, output.images, loss, seed, ADVERSARIAL_RATIO)
    return Measures(*(torch.tensor(value) for value in adversary.take_measures().values()))


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_the_gradients_are_those_of_algorithm_1(network: str) -> None:
    model, adversary, images = small_vae(network), Adversary(16, 16, FP32, 1), torch.rand(5, 3, 16, 16)
    judge = copy.deepcopy(adversary.discriminator)
    measures = step(model, adversary, images, seed=7)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}

    output = model(images, torch.randn(5, 6, generator=torch.Generator().manual_seed(9)))
    samples = model.decoder(torch.randn(5, 6, generator=torch.Generator().manual_seed(7)))
    real, judged = judge(images), judge(torch.cat([output.images, samples]))
    features = feature_loss(real.features, [level[:5] for level in judged.features])
    rest = terms("gaussian", images, output, 1.0, 0.05).loss + FEATURE_WEIGHT * features
    pull = -judged.logits.mean()
    last = model.decoder.last_weight
    (rest_last,) = torch.autograd.grad(rest, last, retain_graph=True)
    (pull_last,) = torch.autograd.grad(pull, last, retain_graph=True)
    weight = ADVERSARIAL_RATIO * rest_last.norm() / pull_last.norm()
    for name, parameter in model.named_parameters():
        (expected,) = torch.autograd.grad(rest, parameter, retain_graph=True)
        if name.startswith("decoder."):
            expected = expected + weight * torch.autograd.grad(pull, parameter, retain_graph=True)[0]
        torch.testing.assert_close(
            found[name], expected, rtol=1e-3, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert (measures.adversarial_loss.item(), measures.feature_loss.item()) == pytest.approx(
        (pull.item(), features.item()), rel=1e-4
    )


def test_a_step_moves_the_discriminator_as_adam_would_and_leaves_the_model_where_it_is() -> None:
    model, adversary, images = small_vae("paper"), Adversary(16, 16, FP32, 1), torch.rand(5, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    judge = copy.deepcopy(adversary.discriminator)
    optimizer = torch.optim.Adam(judge.parameters(), lr=5e-4, betas=(0.5, 0.99))
    step(model, adversary, images, seed=7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    with torch.no_grad():
        restored = model(images, torch.randn(5, 6, generator=torch.Generator().manual_seed(9))).images
        samples = model.decoder(torch.randn(5, 6, generator=torch.Generator().manual_seed(7)))
    real, decoded = judge(images).logits, judge(torch.cat([restored, samples])).logits
    (torch.relu(1 - real).mean() + torch.relu(1 + decoded).mean()).backward()
    optimizer.step()
    for found, expected in zip(adversary.discriminator.parameters(), judge.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_discriminator_learns_to_tell_decoded_images_from_real_ones() -> None:
    model, adversary, images = small_vae("paper"), Adversary(16, 16, FP32, 1), torch.rand(16, 3, 16, 16)
    losses = [step(model, adversary, images, seed=number).discriminator_loss.item() for number in range(60)]
    assert losses[0] == pytest.approx(2, abs=0.3)  # logits near 0: it knows nothing
    assert losses[-1] < 0.5 * losses[0]


def test_until_the_discriminator_joins_training_is_as_without_it(
    adversarial_run: Run, tiny_pack: Pack, tiny: dict[str, Any], tmp_path: Path
) -> None:
    plain = train(tiny_pack.path, tmp_path / "run", kind="vae", epochs=4, precision="fp32", **tiny)
    for ours, theirs in zip(adversarial_run.metrics, plain.metrics, strict=True):
        joined = ours["epoch"] > 2
        assert (ours["val_loss"] == theirs["val_loss"]) is not joined
        assert (Measures._fields[0] in ours) is joined
    assert not set(Measures._fields) & plain.metrics[-1].keys()


def test_the_metrics_hold_the_terms_and_the_curves_show_them(adversarial_run: Run) -> None:
    record = json.loads((adversarial_run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(math.isfinite(record[name]) for name in Measures._fields)
    assert set(Measures._fields) <= {panel.training for panel in PANELS}


def test_the_model_file_holds_the_vae_alone(adversarial_run: Run, trained_vae: Run) -> None:
    found, expected = load_model(adversarial_run.model_path), load_model(trained_vae.model_path)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert adversarial_run.model_path.stat().st_size < trained_vae.model_path.stat().st_size + 1000


def test_only_a_vae_is_trained_adversarially() -> None:
    assert settings("best-vae", adversarial=True)[1].adversarial
    with pytest.raises(ConfigError, match="Only a VAE is trained adversarially"):
        settings("best", adversarial=True)
