"""The state of a run at one step: weights, their average, the optimiser, and the checkpoint of all three.

A checkpoint holds everything that a run needs to continue as if it had never stopped. Whatever is a function
of (seed, epoch, step) is not in it: the order of the images, the corruptions, the noise, the learning rate,
beta.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.loader import batches, random_seed
from autoencode.errors import DivergedError, RunError
from autoencode.metrics.images import mean_squared_error
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.bundled import BUNDLED, BUNDLED_PATH
from autoencode.models.model_file import (
    MODEL_NAME,
    build_model,
    load_any,
    read_tensors,
    with_prefix,
    without_prefix,
    write_tensors,
)
from autoencode.training.adversarial import Adversary
from autoencode.training.distributed import Processes, share_batch_norms
from autoencode.training.optim import is_matrix, make_optimizer
from autoencode.training.perceptual import PerceptualPhase, begin
from autoencode.training.run import CHECKPOINT_NAME, START_AGAIN

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.models.image_model import ImageModel
    from autoencode.training.config import TrainConfig
    from autoencode.training.run import RunSettings
    from autoencode.training.runtime import Runtime

_CHECKPOINT_VERSION = 2  # raised with that of run.json, without which a checkpoint is of no use
# Images that the PCA of a residual network is fitted on; more do not change 256 components of 3,072 values.
PCA_IMAGES, PCA_BATCH, PCA_HELD_OUT = 20_000, 1_000, 500
PCA_VALUES = 50_000_000  # in a batch at most: 200 MB


@dataclass
class TrainState:
    """A run at one step.

    Attributes:
        model: the weights being trained, and the running sigma2.
        averaged: the running average of the weights; `model` itself without averaging.
        optimizer: the optimiser with its moments.
        step: optimiser steps taken.
        sums: (4,) float64: loss, reconstruction, kl and mse summed over the images of this epoch so far.
        seconds: time spent on the training steps of this epoch so far, waiting for images included.
        waited: the part of `seconds` spent waiting for images.
        adversary: the discriminator with its optimiser and sums, where there is one.
        perceptual: the second decoder, from the first step of the perceptual phase on; `sums` are then loss,
            squared error and perceptual distance.
        teacher: of self-supervised training: the model after its first half, see `Objective`.
    """

    model: ImageModel
    averaged: ImageModel
    optimizer: torch.optim.Optimizer
    step: int
    sums: Tensor
    seconds: float = 0.0
    waited: float = 0.0
    adversary: Adversary | None = None
    perceptual: PerceptualPhase | None = None
    teacher: ImageModel | None = None

    @property
    def taken(self) -> int:
        """Steps of both phases."""
        return self.step + (self.perceptual.step if self.perceptual else 0)


def initial_state(run: RunSettings, runtime: Runtime, processes: Processes) -> TrainState:
    """Return the state before the first step: weights drawn from the seed of the run."""
    # The random state of the caller is left as it was: a library must not reseed its user.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random_seed("weights", run.train.seed))
        model = build_model(run.model, run.preprocessing)
    if processes.world_size > 1:
        share_batch_norms(model, processes)
    fix_sigma2(model, run.train)
    runtime.model_to_device(model)
    averaged = copy.deepcopy(model).requires_grad_(False) if run.train.ema else model
    sums = runtime.zeros(4)
    state = TrainState(model, averaged, make_optimizer(model, run.train), step=0, sums=sums)
    if run.train.self_supervised:
        state.teacher = copy.deepcopy(model).requires_grad_(False)
    if run.train.adversarial:
        seed = random_seed("discriminator", run.train.seed)
        state.adversary = Adversary(run.preprocessing.height, run.preprocessing.width, runtime, seed)
    return state


def start_perceptual(
    state: TrainState, folder: Path, config: TrainConfig, runtime: Runtime, *, is_refined: bool = True
) -> PerceptualPhase:
    """Begin the perceptual phase, on the model that the run would leave without it; see `begin`."""
    assert isinstance(state.averaged, Autoencoder)
    first = state.averaged
    if config.early_stopping:  # the best epoch need not be the last
        best = load_any(folder / MODEL_NAME)
        assert isinstance(best, Autoencoder)
        best.sharp_decoder = None  # of a phase that is continued
        first = copy.deepcopy(first)
        first.load_state_dict(best.state_dict())
    state.perceptual = begin(first, config.seed, config.batch_size, runtime, is_refined=is_refined)
    return state.perceptual


def start_from_model(state: TrainState, runtime: Runtime, config: TrainConfig, init: str) -> None:
    """Replace the first weights by those of a model of the same network.

    Raises:
        ModelFileError: the model cannot be loaded.
    """
    first = load_any(BUNDLED_PATH if init == BUNDLED else init)
    if isinstance(first, Autoencoder):
        first.sharp_decoder = None  # a run learns its own, in its last phase
    state.model.load_state_dict(first.state_dict())
    fix_sigma2(state.model, config)
    runtime.model_to_device(state.model)
    if state.averaged is not state.model:
        state.averaged.load_state_dict(state.model.state_dict())


def start_from_images(
    state: TrainState,
    runtime: Runtime,
    config: TrainConfig,
    pack: Pack,
    rows: NDArray[np.int64],
    validation_rows: NDArray[np.int64],
) -> None:
    """Replace random first weights by those of a PCA of training images, if the network has such a start.

    Where training flips images, it is the PCA of images and their mirror images, unless that of the images
    alone reconstructs validation images better.

    Args:
        state: at step 0; changed in place.
        runtime, config: of the run.
        pack: the images.
        rows: (N,) of the training images, in a random order.
        validation_rows: (M,), of the validation images.
    """
    start = state.model.network.start
    if start is None or not isinstance(state.model, Autoencoder):
        return
    size = max(1, min(PCA_BATCH, PCA_VALUES // state.model.values_per_image))
    # In fp64, which not every device has; in place, because the optimiser keeps its parameters.
    state.model.to("cpu")
    train = partial(batches, pack, rows[:PCA_IMAGES], size)
    start(state.model, train())
    held_out = validation_rows[:PCA_HELD_OUT]
    if config.horizontal_flip and len(held_out):
        alone, error = copy.deepcopy(state.model.state_dict()), _mse(state.model, pack, held_out)
        # Mirror images act like more images, which helps the PCA of few. Where no image is ever mirrored, as
        # of digits, they use up dimensions of the code: hence the comparison.
        start(state.model, (one for images in train() for one in (images, images.flip(3))))
        if _mse(state.model, pack, held_out) > error:
            state.model.load_state_dict(alone)
    fix_sigma2(state.model, config)
    runtime.model_to_device(state.model)
    if state.averaged is not state.model:
        state.averaged.load_state_dict(state.model.state_dict())


def _mse(model: Autoencoder, pack: Pack, rows: NDArray[np.int64]) -> float:
    """Return the mean squared error of reconstructions; the model is set to evaluation mode."""
    model.eval()  # batch norm is neither to learn from these images nor to wait for other processes
    total = 0.0
    for images in batches(pack, rows, INFERENCE_BATCH):
        total += float(mean_squared_error(model.reconstruct(images), images).sum())
    return total / len(rows)


def fix_sigma2(model: ImageModel, config: TrainConfig) -> None:
    """Set the variance of the likelihood where the settings fix it; "auto" is learned."""
    if config.sigma2 != "auto" and model.is_vae:
        model.sigma2.fill_(config.sigma2)


def all_finite(state: TrainState) -> bool:
    """Whether every weight, moment and sum is finite; training cannot continue from any other state."""
    # One value to read, as a GPU is waited for at each.
    found = [torch.isfinite(tensor).all() for tensor in _tensors(state).values()]
    return bool(torch.stack([one.to(found[0].device) for one in found]).all())


def save_checkpoint(folder: Path, state: TrainState) -> None:
    """Write the state, whole or not at all.

    Raises:
        DivergedError: a number is not finite; the checkpoint before is unchanged.
        OutputError: it cannot be written; the checkpoint before is unchanged.
    """
    if not all_finite(state):
        raise DivergedError(f"The weights are no longer finite after {state.step} steps.")
    content: dict[str, Any] = {"step": state.step, "seconds": state.seconds, "waited": state.waited}
    if state.perceptual:
        content["perceptual"] = {"step": state.perceptual.step, "scale": state.perceptual.scale}
    write_tensors(folder / CHECKPOINT_NAME, "checkpoint", _CHECKPOINT_VERSION, _tensors(state), content)


def steps_taken(folder: Path) -> int:
    """Return the steps of the checkpoint in a run folder; 0 if there is none.

    Raises:
        RunError: it is damaged, or of another version.
    """
    path = folder / CHECKPOINT_NAME
    if not path.exists():
        return 0
    _, content, _ = read_tensors(path, "checkpoint", _CHECKPOINT_VERSION, RunError, remake=START_AGAIN)
    try:
        return _position(content)[0]
    except (KeyError, ValueError) as err:
        raise RunError(f"{path} is damaged ({err}). {START_AGAIN}") from err


def load_checkpoint(folder: Path, state: TrainState, config: TrainConfig, runtime: Runtime) -> None:
    """Load the checkpoint into `state`, whose model and optimiser are of the same settings.

    Args:
        folder: of the run.
        state: changed in place.
        config, runtime: of the run.

    Raises:
        RunError: the file is damaged, of another version, or of another network.
    """
    path = folder / CHECKPOINT_NAME
    tensors, content, _ = read_tensors(path, "checkpoint", _CHECKPOINT_VERSION, RunError, remake=START_AGAIN)
    try:
        state.model.load_state_dict(without_prefix("model/", tensors))
        if state.averaged is not state.model:
            state.averaged.load_state_dict(without_prefix("averaged/", tensors))
        if state.teacher:
            state.teacher.load_state_dict(without_prefix("teacher/", tensors))
        _restore(state.optimizer, without_prefix("optimizer/", tensors))
        state.sums = _like(state.sums, tensors["sums"])
        state.step, state.seconds, state.waited = _position(content)
        if adversary := state.adversary:
            adversary.discriminator.load_state_dict(without_prefix("discriminator/", tensors))
            _restore(adversary.optimizer, without_prefix("discriminator_optimizer/", tensors))
            adversary.sums = _like(adversary.sums, tensors["discriminator_sums"])
        if "perceptual" in content:
            # Earlier versions refined no images.
            is_refined = any(name.startswith("sharp/refinement.") for name in tensors)
            phase = start_perceptual(state, folder, config, runtime, is_refined=is_refined)
            _restore_perceptual(phase, content["perceptual"], tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        reason = (str(err).splitlines() or [type(err).__name__])[0].rstrip(".:")
        raise RunError(f"{path} is not of this run's network: {reason}. {START_AGAIN}") from err


def _restore_perceptual(
    phase: PerceptualPhase, content: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    phase.step, phase.scale = _position({"seconds": 0, "waited": 0, **content})[0], float(content["scale"])
    if not 0 <= phase.scale < math.inf:
        raise ValueError(f"a perceptual distance is not weighted by {phase.scale}")
    phase.decoder.load_state_dict(without_prefix("sharp/", tensors))
    _restore(phase.optimizer, without_prefix("sharp_optimizer/", tensors))
    phase.critic.network.load_state_dict(without_prefix("critic/", tensors))
    _restore(phase.critic.optimizer, without_prefix("critic_optimizer/", tensors))


def _position(content: Mapping[str, Any]) -> tuple[int, float, float]:
    """Return step, seconds and waited.

    Raises:
        ValueError: step, seconds or waited is not a number a run can have.
    """
    step, seconds, waited = content["step"], content["seconds"], content["waited"]
    if (
        type(step) is not int
        or step < 0
        or any(type(value) not in (int, float) for value in (seconds, waited))
    ):
        raise ValueError(f"no step {step}")
    return step, seconds, waited


def _like(own: Tensor, saved: Tensor) -> Tensor:
    # A forged file could otherwise broadcast into every later sum.
    if (saved.shape, saved.dtype) != (own.shape, own.dtype):
        raise ValueError(f"sums of shape {tuple(saved.shape)}")
    return saved.to(own.device)


def _tensors(state: TrainState) -> dict[str, Tensor]:
    tensors = with_prefix("model/", state.model.state_dict())
    if state.averaged is not state.model:
        tensors |= with_prefix("averaged/", state.averaged.state_dict())
    if state.teacher:
        tensors |= with_prefix("teacher/", state.teacher.state_dict())
    tensors |= _moments("optimizer", state.optimizer)
    if adversary := state.adversary:
        tensors |= with_prefix("discriminator/", adversary.discriminator.state_dict())
        tensors |= _moments("discriminator_optimizer", adversary.optimizer)
        tensors["discriminator_sums"] = adversary.sums
    if phase := state.perceptual:
        tensors |= with_prefix("sharp/", phase.decoder.state_dict())
        tensors |= _moments("sharp_optimizer", phase.optimizer)
        tensors |= with_prefix("critic/", phase.critic.network.state_dict())
        tensors |= _moments("critic_optimizer", phase.critic.optimizer)
    return {**tensors, "sums": state.sums}


def _moments(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}/{index}/{name}": tensor
        for index, moments in optimizer.state_dict()["state"].items()
        for name, tensor in moments.items()
    }


def _restore(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Load moments in the memory format of their parameters, which a file does not keep.

    A fused step goes through weights, gradients and moments in the order of their memory: of another format,
    moments would go to other weights. Other steps would round differently.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = tensor
    _check_moments(moments, [p for group in optimizer.param_groups for p in group["params"]])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    # load_state_dict keeps the format of the file, contiguous.
    for parameter, own in optimizer.state.items():
        for name, moment in own.items():
            if moment.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _check_moments(moments: Mapping[int, Mapping[str, Tensor]], parameters: Sequence[Tensor]) -> None:
    """Reject moments of an unknown parameter, shape or name, and a step count that is not finite."""
    if not moments.keys() <= set(range(len(parameters))):
        raise ValueError("not every parameter has its moments")
    # Muon has other moments for matrices than for vectors, and other optimisers the same for both.
    kinds = {(is_matrix(parameters[index]), frozenset(own)) for index, own in moments.items()}
    if len(kinds) > len({matrix for matrix, _ in kinds}):
        raise ValueError("not every parameter has its moments")
    for index, own in moments.items():
        for name, moment in own.items():
            if name == "step":
                if moment.ndim or not 0 <= float(moment) < math.inf:
                    raise ValueError(f"parameter {index} has taken no such number of steps")
            elif moment.shape != parameters[index].shape:
                raise ValueError(f"{name} of parameter {index} has the shape {tuple(moment.shape)}")
