"""Training an encoder on labels: it learns, stops, repeats itself and leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode import Autoencoder, ModelConfig, Preprocessing
from autoencode.transfer_learning import fine_tuning
from autoencode.transfer_learning.fine_tuning import _held_back, fine_tune, train_from_scratch
from autoencode.transfer_learning.probe import fit_probe

SIZE = Preprocessing(16, 16)


def bars(count: int, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Horizontal against vertical bars at random places: no pixel alone tells them apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = generator.uniform(0, 0.3, (count, 3, 16, 16)).astype(np.float32)
    for image, label, place in zip(images, labels, generator.integers(0, 15, count), strict=True):
        if label:
            image[:, place : place + 2] += 0.7
        else:
            image[:, :, place : place + 2] += 0.7
    return torch.from_numpy(images), labels


def build(network: str = "paper", batch_norm: bool = False) -> Autoencoder:
    torch.manual_seed(0)
    config = ModelConfig(code_size=8, network=network, widths=(8, 16), batch_norm=batch_norm)  # type: ignore[arg-type]
    return Autoencoder(config, SIZE).eval().requires_grad_(False)


def accuracy(model: Autoencoder, probe: object, images: Tensor, labels: NDArray[np.int64]) -> float:
    predicted = probe.probabilities(model.encode(images).numpy()).argmax(axis=1)  # type: ignore[attr-defined]
    return float((predicted == labels).mean())


@pytest.mark.parametrize("network", ["paper", "residual"])
def test_training_learns_what_a_probe_on_random_codes_cannot(network: str) -> None:
    (images, labels), (held_out, truth) = bars(160, 0), bars(100, 1)
    model = build(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = fit_probe(model.encode(images).numpy(), labels, 1.0)
    for trained, probe in (
        fine_tune(model, start, lambda rows: images[rows], labels),
        train_from_scratch(model, 2, lambda rows: images[rows], labels),
    ):
        assert accuracy(trained, probe, held_out, truth) > 0.8
        assert not trained.training
        assert not any(parameter.requires_grad for parameter in trained.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fine_tuning, "LEAST_STEPS", 20)
    monkeypatch.setattr(fine_tuning, "EPOCHS", 1)
    images, labels = bars(40, 0)
    model = build(batch_norm=True)
    state = torch.random.get_rng_state()
    runs = [train_from_scratch(model, 2, lambda rows: images[rows], labels, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(runs[0][1].weights, runs[1][1].weights)
    assert not np.array_equal(runs[0][1].weights, runs[2][1].weights)


def test_training_that_only_does_harm_is_stopped_and_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """At an absurd rate the loss on what is kept apart only grows."""
    monkeypatch.setattr(fine_tuning, "TUNING_RATE", 30.0)
    images, labels = bars(60, 0)
    model = build()
    start = fit_probe(model.encode(images).numpy(), labels, 1.0)
    steps: list[tuple[int, int]] = []
    tuned, probe = fine_tune(
        model,
        start,
        lambda rows: images[rows],
        labels,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert len(steps) == fine_tuning.PATIENCE * fine_tuning.CHECK_STEPS
    assert steps[-1][0] == steps[-1][1]
    np.testing.assert_array_equal(probe.weights, start.weights)
    torch.testing.assert_close(tuned.encode(images), model.encode(images), rtol=0, atol=0)


def test_a_fifth_of_each_class_is_held_back() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2)
    learn, check = _held_back(labels, np.random.default_rng(0))
    assert np.bincount(labels[check]).tolist() == [10, 2, 1]
    assert sorted([*learn, *check]) == list(range(62))
