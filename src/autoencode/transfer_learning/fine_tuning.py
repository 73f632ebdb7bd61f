"""An encoder trained on labels: from the weights of a model, or from scratch.

Shapes: M images learned from, B batch, D code size, K classes. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoencode.data.loader import random_seed
from autoencode.errors import DivergedError
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.transfer_learning.probe import LinearProbe

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.transfer_learning.probe import Labels

BATCH = 32
EPOCHS, LEAST_STEPS, MOST_STEPS = 20, 200, 4_000  # the same budget for either start
CHECK_STEPS, PATIENCE = 20, 5  # least steps between checks; checks without improvement before training stops

# For the encoder and the layer on its codes alike. 1e-4 and 1e-3 for the two were as good, within chance.
SCRATCH_RATE, TUNING_RATE = 1e-3, 3e-4
WEIGHT_DECAY, GRAD_CLIP = 0.01, 1.0

# Fraction of the given labels used for early stopping; they count as labels, for a fair comparison.
VALIDATION_SHARE = 0.2

ImagesOf = Callable[[NDArray[np.int64]], Tensor]


def fine_tune(
    model: Autoencoder,
    probe: LinearProbe,
    images_of: ImagesOf,
    labels: Labels,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Autoencoder, LinearProbe]:
    """Train the encoder and a linear layer on its codes, starting at a probe fitted on those codes.

    Starting at a fitted probe, the first steps do not distort the encoder to fit a random layer (Kumar et al.
    2022, "Fine-tuning can distort pretrained features"). AdamW, at a third of the rate from scratch; a linear
    path through the encoder and the statistics of batch normalisation stay as they are. A fifth of the labels
    is held back and decides when to stop: after five checks without a smaller cross-entropy, at the latest
    after 20 epochs (but 200 steps at least). The best weights are kept.

    Args:
        model: the start, left as it is.
        probe: on codes (B, D).
        images_of: from indices into `labels` to images.
        labels: (M,) in 0..K-1, each class at least twice.
        seed: of the choice of that fifth and of the order of images.
        progress: called with (images trained on, images at most); with both equal at the end.

    Returns:
        A copy of the model with a trained encoder and without prior, whose decoder no longer fits the codes;
        and the probe on its codes.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    tuned = copy.deepcopy(model)
    tuned.prior = None  # fitted to the codes as they were
    network = _Network(tuned, probe)
    encoder = [*tuned.encoder.parameters(), *tuned.to_mean.parameters()]
    groups = [{"params": [*encoder, network.weights, network.bias], "lr": TUNING_RATE}]
    return _trained(network, groups, images_of, labels, seed, progress, from_scratch=False)


def train_from_scratch(
    model: Autoencoder,
    classes: int,
    images_of: ImagesOf,
    labels: Labels,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Autoencoder, LinearProbe]:
    """Train the same network from random weights on the labels alone, for comparison.

    Budget, stopping, arguments, results and errors are those of `fine_tune`; every weight is trained, at the
    full rate.
    """
    # Layers draw their weights from torch's global generator, which belongs to the caller.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(random_seed("scratch", seed))
        fresh = Autoencoder(model.config, model.preprocessing)
    size = fresh.config.code_size
    ones, zeros = np.ones(size, np.float32), np.zeros((size, classes), np.float32)
    network = _Network(fresh, LinearProbe(0 * ones, ones, zeros, zeros[0]))
    groups = [{"params": list(network.parameters()), "lr": SCRATCH_RATE}]
    return _trained(network, groups, images_of, labels, seed, progress, from_scratch=True)


class _Network(nn.Module):
    """Images to class scores (B, K): the code, standardised, and a linear layer."""

    mean: Tensor
    scale: Tensor

    def __init__(self, model: Autoencoder, probe: LinearProbe) -> None:
        super().__init__()
        self.encoder, self.to_mean, self.linear = model.encoder, model.to_mean, model.linear
        self.model = [model]  # in a list: its decoder is no part of this network
        self.register_buffer("mean", torch.from_numpy(probe.mean))
        self.register_buffer("scale", torch.from_numpy(probe.scale))
        self.weights = nn.Parameter(torch.from_numpy(probe.weights.copy()))
        self.bias = nn.Parameter(torch.from_numpy(probe.bias.copy()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        codes = self.model[0].posterior(images.contiguous(memory_format=torch.channels_last)).mean
        return (codes - self.mean) / self.scale @ self.weights + self.bias

    def probe(self) -> LinearProbe:
        parts = (self.mean, self.scale, self.weights.detach(), self.bias.detach())
        return LinearProbe(*(part.numpy().copy() for part in parts))


def _trained(
    network: _Network,
    groups: list[dict[str, Any]],
    images_of: ImagesOf,
    labels: Labels,
    seed: int,
    progress: Progress | None,
    *,
    from_scratch: bool,
) -> tuple[Autoencoder, LinearProbe]:
    generator = np.random.default_rng(random_seed("labels", seed))
    learn, check = _held_back(labels, generator)
    epoch_steps = -(-len(learn) // BATCH)
    most = min(max(EPOCHS * epoch_steps, LEAST_STEPS), MOST_STEPS)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    targets = torch.from_numpy(labels)
    # Random weights are never the result, even if no check is better than they are.
    least = math.inf if from_scratch else _loss(network, images_of, targets, check)
    best, worse, order = _state(network), 0, learn[:0]
    for step in range(1, most + 1):
        if not len(order):
            order = generator.permutation(learn)
        rows, order = order[:BATCH], order[BATCH:]
        network.train(from_scratch)
        loss = F.cross_entropy(network(images_of(rows)), targets[rows])
        if not torch.isfinite(loss):
            raise DivergedError("Training on the labels diverged: the loss is not finite.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], GRAD_CLIP)
        optimizer.step()
        if step % max(CHECK_STEPS, epoch_steps) == 0 or step == most:
            now = _loss(network, images_of, targets, check)
            if now < least:
                best, least, worse = _state(network), now, 0
            elif (worse := worse + 1) == PATIENCE:
                break
        if progress and step < most:
            progress(step * BATCH, most * BATCH)
    if progress:
        progress(most * BATCH, most * BATCH)
    network.load_state_dict(best)
    model = network.model[0]
    model.requires_grad_(False)
    return model.eval(), network.probe()


def _held_back(labels: Labels, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return indices to learn from, and indices to check on: a fifth of each class, at least one."""
    learn, check = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = max(1, round(VALIDATION_SHARE * len(members)))
        check.append(members[:count])
        learn.append(members[count:])
    return np.concatenate(learn), np.concatenate(check)


def _state(network: _Network) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _loss(network: _Network, images_of: ImagesOf, targets: Tensor, rows: NDArray[np.int64]) -> float:
    network.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), INFERENCE_BATCH):
            part = rows[start : start + INFERENCE_BATCH]
            total += float(F.cross_entropy(network(images_of(part)), targets[part], reduction="sum"))
    return total / len(rows)
