"""Optimisers, their learning rates, and the running average of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from autoencode.models.image_model import ImageModel
    from autoencode.training.config import TrainConfig

# Coefficients of the quintic iteration of Jordan et al. It converges to between 0.7 and 1.2, not to 1, in
# fewer steps than one that converges to 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Vectors, such as biases, are trained by Adam at this fraction of the learning rate of matrices.
_VECTOR_RATE = 0.05
_MOMENTUM, _BETAS, _EPSILON = 0.95, (0.9, 0.99), 1e-8
# A cosine schedule rises over this fraction of the steps before it falls.
RISING_FRACTION = 0.05


def make_optimizer(model: ImageModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser of all parameters; see `set_rate` for their learning rates."""
    groups, rate = model.parameter_groups(), config.learning_rate
    # On CUDA a step can be recorded, and needs its numbers on the device.
    on_cuda = next(model.parameters()).is_cuda
    if config.optimizer == "adamax":
        chosen: torch.optim.Optimizer = torch.optim.Adamax(groups, lr=rate, capturable=on_cuda)
    elif config.optimizer == "muon":
        chosen = Muon(groups, lr=rate, capturable=on_cuda)
    else:
        own = {"capturable": True} if on_cuda else {}
        chosen = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True, **own)
    return with_rates(chosen)


def with_rates(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimiser with a learning rate on the device for each group that can be recorded."""
    for group in optimizer.param_groups:
        if group.get("capturable"):
            group["lr"] = torch.full((), group["lr"], device=group["params"][0].device)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; each group scales it by its "scale"."""
    for group in optimizer.param_groups:
        own = group["scale"] * rate
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def learning_rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step `step`, counted from 0, of `steps` steps, by the schedule."""
    if config.schedule == "constant":
        return config.learning_rate
    rising = max(1, round(RISING_FRACTION * steps))
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    fallen = (step - rising) / max(1, steps - rising - 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * fallen))


def largest_gradient(model: ImageModel, clip: float) -> float:
    """Return the norm that gradients are clipped to: `clip` times the loss the run starts from.

    The unit makes one setting fit every loss: errors per value and likelihoods per image differ by thousands.
    """
    return clip * model.starting_loss if clip else math.inf


@torch.no_grad()
def update_average(averaged: ImageModel, model: ImageModel, ema: float, step: int) -> None:
    """Update the average of the weights; running statistics and counters are copied."""
    # The decay grows with the steps: the full one would keep the random first weights for too long.
    decay = min(ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for matrices, Adam for the other parameters; no weight decay.

    The momentum of a matrix has a few large singular values, and a step along it learns little else. Muon
    replaces it by the nearest matrix whose singular values are all 1, by a Newton-Schulz iteration: five
    products of matrices, little beside a forward pass. The weights of a convolution are a matrix with a row
    for each of its outputs; those of one that filters each channel by itself mix no channels, and count as
    vectors. A restorer trained by it for a minute is as good as one trained by AdamW for two (docs/log.md).

    Args:
        groups: parameters, or groups of them as any torch optimiser takes.
        lr: size of a step of a matrix, as its spectral norm.
        capturable: whether a step can be recorded as a CUDA graph: numbers that change, which are the steps
            taken and `lr`, are then tensors on the device of the parameters.
    """

    def __init__(
        self,
        groups: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 0.02,
        *,
        capturable: bool = False,
    ) -> None:
        super().__init__(groups, {"lr": lr, "capturable": capturable})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            matrices: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if is_matrix(parameter):
                    matrices[parameter.flatten(1).shape].append(parameter)
                else:
                    self._vector_step(parameter, parameter.grad, self.state[parameter], group)
            for parameters in matrices.values():
                self._matrix_steps(parameters, group)

    def _matrix_steps(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Change matrices of one shape together: a network has dozens, and each alone is small."""
        directions = []
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
            # Nesterov's: the momentum as it will be after the next, similar gradient.
            directions.append(gradient.lerp(momentum, _MOMENTUM).flatten(1))
        rows, columns = directions[0].shape
        for parameter, direction in zip(parameters, orthogonal(torch.stack(directions)), strict=True):
            factor = max(1.0, rows / columns) ** 0.5
            _move(parameter, direction.reshape(parameter.shape), group["lr"], factor)

    @staticmethod
    def _vector_step(
        parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = torch.zeros((), device=parameter.device if group["capturable"] else "cpu")
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step, (first, second) = state["step"] if group["capturable"] else float(state["step"]), _BETAS
        mean = state["mean"].lerp_(gradient, 1 - first) / (1 - first**step)
        square = state["square"].lerp_(gradient.square(), 1 - second) / (1 - second**step)
        _move(parameter, mean / (square.sqrt() + _EPSILON), group["lr"], _VECTOR_RATE)


def _move(parameter: Tensor, direction: Tensor, rate: float | Tensor, factor: float) -> None:
    """Subtract `factor` times the rate times the direction."""
    if isinstance(rate, Tensor):
        parameter.sub_(direction * (rate * factor))
    else:
        parameter.add_(direction, alpha=-rate * factor)


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter maps several inputs to each output."""
    return parameter.ndim > 1 and parameter.shape[1] > 1


def orthogonal(matrices: Tensor) -> Tensor:
    """Return about U V^T for matrices U S V^T (..., N, M): the same directions, singular values near 1."""
    first, third, fifth = _QUINTIC
    # In bf16, as the iteration corrects what it rounds; the smaller side first, for the smaller products.
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = (matrices.mT if is_tall else matrices).bfloat16()
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = wide @ wide.mT
        wide = first * wide + (third * square + fifth * square @ square) @ wide
    found: Tensor = wide.mT if is_tall else wide
    return found.to(matrices.dtype)
