"""All the state of a run in one file, so that it continues as if it had never stopped.

What is not here is a function of (seed, epoch, step): the order of the images, the corruptions, the noise,
the learning rate, beta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoencode.errors import DivergedError, RunError
from autoencode.models.model_file import read_tensors, write_tensors

if TYPE_CHECKING:
    from autoencode.models.autoencoder import Autoencoder
    from autoencode.training.adversarial import Adversary

CHECKPOINT_NAME = "checkpoint.safetensors"
FORMAT_VERSION = 1


@dataclass
class TrainState:
    """A run at one moment.

    Attributes:
        model: the weights being trained, and the running sigma2.
        averaged: the running average of the weights; `model` itself where none is kept.
        optimizer: with its moments.
        step: optimiser steps taken.
        sums: (4,) float64: loss, reconstruction, kl and mse summed over the images of this epoch so far.
        seconds: time spent on the training steps of this epoch so far, waiting for images included.
        waited: the part of it spent waiting.
        adversary: the discriminator with its optimiser and sums, where there is one.
    """

    model: Autoencoder
    averaged: Autoencoder
    optimizer: torch.optim.Optimizer
    step: int
    sums: Tensor
    seconds: float = 0.0
    waited: float = 0.0
    adversary: Adversary | None = None


def all_finite(state: TrainState) -> bool:
    """Whether every weight, moment and sum is finite; from others training cannot be continued."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(state).values())


def save_checkpoint(folder: Path, state: TrainState) -> None:
    """Write the state, whole or not at all.

    Raises:
        DivergedError: a number is not finite; the checkpoint before is unchanged.
        OutputError: it cannot be written; the checkpoint before is unchanged.
    """
    if not all_finite(state):
        raise DivergedError(f"The weights are no longer finite after {state.step} steps.")
    content = {"step": state.step, "seconds": state.seconds, "waited": state.waited}
    write_tensors(folder / CHECKPOINT_NAME, "checkpoint", FORMAT_VERSION, _tensors(state), content)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Put the saved state into `state`, whose model and optimizer are built as they were then.

    Raises:
        RunError: the file is damaged, newer, or of another network.
    """
    path = folder / CHECKPOINT_NAME
    tensors, content, _ = read_tensors(path, "checkpoint", FORMAT_VERSION, RunError)
    try:
        state.model.load_state_dict(_under("model/", tensors))
        if state.averaged is not state.model:
            state.averaged.load_state_dict(_under("averaged/", tensors))
        _restore(state.optimizer, _under("optimizer/", tensors))
        state.sums = _like(state.sums, tensors["sums"])
        state.step, state.seconds, state.waited = _position(content)
        if adversary := state.adversary:
            adversary.discriminator.load_state_dict(_under("discriminator/", tensors))
            _restore(adversary.optimizer, _under("discriminator_optimizer/", tensors))
            adversary.sums = _like(adversary.sums, tensors["discriminator_sums"])
    except (KeyError, ValueError, RuntimeError) as err:
        raise RunError(f"{path} is not of this run's network: {err}".splitlines()[0]) from err


def _position(content: Mapping[str, Any]) -> tuple[int, float, float]:
    """Return step, seconds and waited, or raise ValueError: training would go on from anywhere."""
    step, seconds, waited = content["step"], content["seconds"], content["waited"]
    if (
        type(step) is not int
        or step < 0
        or any(type(value) not in (int, float) for value in (seconds, waited))
    ):
        raise ValueError(f"no step {step}")
    return step, seconds, waited


def _like(own: Tensor, saved: Tensor) -> Tensor:
    if (saved.shape, saved.dtype) != (own.shape, own.dtype):
        raise ValueError(f"sums of shape {tuple(saved.shape)}")
    return saved.to(own.device)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    if state.averaged is not state.model:
        tensors |= {f"averaged/{name}": tensor for name, tensor in state.averaged.state_dict().items()}
    tensors |= _moments("optimizer", state.optimizer)
    if adversary := state.adversary:
        weights = adversary.discriminator.state_dict()
        tensors |= {f"discriminator/{name}": tensor for name, tensor in weights.items()}
        tensors |= _moments("discriminator_optimizer", adversary.optimizer)
        tensors["discriminator_sums"] = adversary.sums
    return {**tensors, "sums": state.sums}


def _moments(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}/{index}/{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _restore(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Put moments back, in the memory format of their parameters as they had it: files keep one only."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = tensor
    _check_moments(moments, [p for group in optimizer.param_groups for p in group["params"]])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    for parameter, own in optimizer.state.items():
        for name, moment in own.items():
            if moment.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _check_moments(moments: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor]) -> None:
    """Reject moments of no parameter, of another shape or other names, and steps that cannot be counted."""
    if not moments.keys() <= set(range(len(parameters))) or len(set(map(frozenset, moments.values()))) > 1:
        raise ValueError("not every parameter has its moments")
    for index, own in moments.items():
        for name, moment in own.items():
            if name == "step":
                if moment.ndim or not 0 <= float(moment) < math.inf:
                    raise ValueError(f"parameter {index} has taken no such number of steps")
            elif moment.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} has the shape {tuple(moment.shape)}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
