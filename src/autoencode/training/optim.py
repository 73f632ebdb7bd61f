"""The optimiser, its step size at each step, and the average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from autoencode.models.networks import ResidualDecoder

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.config import TrainConfig

# A cosine schedule rises over this share of the steps before it falls.
RISING_SHARE = 0.05

# The linear path starts where it should end; at the full rate it would be thrown away (docs/log.md).
LINEAR_RATE = 0.03


def make_optimizer(model: Autoencoder, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters; its groups have a "scale" of the step size each."""
    linear = {id(parameter) for parameter in model.linear_parameters()}
    convolutional = [parameter for parameter in model.parameters() if id(parameter) not in linear]
    groups: list[dict[str, Any]] = [{"params": convolutional, "scale": 1.0}]
    if linear:
        groups.append({"params": model.linear_parameters(), "scale": LINEAR_RATE, "weight_decay": 0.0})
    if config.optimizer == "adamax":
        return torch.optim.Adamax(groups, lr=config.learning_rate)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)


def learning_rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Step size after `step` steps of `steps`, by the schedule."""
    if config.schedule == "constant":
        return config.learning_rate
    rising = max(1, round(RISING_SHARE * steps))
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    fallen = (step - rising) / max(1, steps - rising - 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * fallen))


def limit_gradient(model: Autoencoder, clip: float) -> None:
    """Shorten the gradient to at most `clip` times the loss a run starts from; 0 leaves it as it is."""
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip * _starting_loss(model))


def _starting_loss(model: Autoencoder) -> float:
    """Size of the loss where training starts: what PCA leaves of an image; of a VAE's objective, about 1."""
    if model.is_vae or not isinstance(model.decoder, ResidualDecoder):
        return 1.0
    return float(model.decoder.scale) ** 2


@torch.no_grad()
def update_average(averaged: Autoencoder, model: Autoencoder, ema: float, step: int) -> None:
    """Move the average of the weights towards the weights; statistics and counters are copied.

    The average starts young: with the full decay it would hold on to the random first weights.
    """
    decay = min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)
