"""The optimiser, its step size at each step, and the average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.config import TrainConfig

# A cosine schedule rises over this share of the steps before it falls.
RISING_SHARE = 0.05


def make_optimizer(model: Autoencoder, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters; its groups have a "scale" of the step size each."""
    groups = model.parameter_groups()
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip * model.starting_loss)


@torch.no_grad()
def update_average(averaged: Autoencoder, model: Autoencoder, ema: float, step: int) -> None:
    """Move the average of the weights towards the weights; statistics and counters are copied.

    The average starts young: with the full decay it would hold on to the random first weights.
    """
    decay = min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)
