"""Training an encoder on labels: from where the autoencoder left it, or from scratch.

Images are (B, 3, H, W) in [0, 1]; D code size, K classes.

The ways to a classifier that `transfer` compares.

code         linear probe on the code
layer        linear probe on the pooled maps of the layer that cross-validation prefers, pooled over the
             image or over 4x4 parts of it
fine-tuned   the encoder, trained on
from scratch the same network, trained on the labels alone
pixels       linear probe on the pixels, averaged down to about 32 a side
pca          linear probe on as many principal components of those pixels as the code has values
pretrained   linear probe on features of EfficientNet-Lite0, trained on ImageNet with a million labels

Shapes: N images, F features.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autoencode.data.loader import batches, random_seed
from autoencode.embedding import image_encoder
from autoencode.errors import DivergedError, MissingExtraError
from autoencode.feature_maps import descriptions, trace
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.convolutions import pooling_of
from autoencode.models.pca import principal_components
from autoencode.pixels import to_float
from autoencode.transfer_learning.classifier import CODE, PRETRAINED
from autoencode.transfer_learning.probe import (
    Floats,
    Labelled,
    Labels,
    LinearProbe,
    choose_strength,
    fit_probe,
)

BATCH = 32
EPOCHS, LEAST_STEPS, MOST_STEPS = 20, 200, 4_000  # a budget the same for either start
CHECK_STEPS, PATIENCE = 20, 5  # at least so many steps between checks; checks without a better one

# Of the encoder and of the layer on its codes. 1e-4 and 1e-3 for the two did as well, within chance.
SCRATCH_RATE, TUNING_RATE = 1e-3, 3e-4
WEIGHT_DECAY, CLIP = 0.01, 1.0

VALIDATION_SHARE = 0.2  # of the labels given: they too are labels that someone had to give

ImagesOf = Callable[[NDArray[np.int64]], Tensor]
Report = Callable[[int, int], None]


def fine_tune(
    model: Autoencoder,
    probe: LinearProbe,
    images_of: ImagesOf,
    labels: Labels,
    *,
    seed: int = 0,
    progress: Report | None = None,
) -> tuple[Autoencoder, LinearProbe]:
    """Train the encoder and a linear layer on its codes, starting at a probe fitted on those codes.

    To start at a fitted probe keeps the first steps from spoiling the encoder for a random layer's sake
    (Kumar et al. 2022, "Fine-tuning can distort pretrained features"). AdamW, at a third of the rate from
    scratch; a linear path through the encoder and the statistics of batch normalisation stay as they are.
    A fifth of the labels is not trained on and decides when to stop: after five checks without a smaller
    cross-entropy, at the latest after 20 passes (but 200 steps at least). The best weights are kept.

    Args:
        model: the start, left as it is.
        probe: on codes (B, D).
        images_of: the images of indices into `labels`.
        labels: (N,) in 0..K-1, each class at least twice.
        seed: of the choice of that fifth and of the order of images.
        progress: called with (images trained on, images at most); with both equal at the end.

    Returns:
        A copy of the model whose encoder is trained, without prior; its decoder fits it no more. And the
        probe on its codes.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    tuned = copy.deepcopy(model)
    tuned.prior = None
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
    progress: Report | None = None,
) -> tuple[Autoencoder, LinearProbe]:
    """Train the same network from random weights on the labels alone: what the autoencoder has to beat.

    Budget, stopping, arguments, results and errors are those of `fine_tune`; every weight is trained, at the
    full rate.
    """
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
    progress: Report | None,
    *,
    from_scratch: bool,
) -> tuple[Autoencoder, LinearProbe]:
    generator = np.random.default_rng(random_seed("labels", seed))
    learn, check = _apart(labels, generator)
    epoch_steps = -(-len(learn) // BATCH)
    most = min(max(EPOCHS * epoch_steps, LEAST_STEPS), MOST_STEPS)
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    targets = torch.from_numpy(labels)
    # Random weights are no result, even where no check is better: a start counts only if it was learned.
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
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], CLIP)
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


def _apart(labels: Labels, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices to learn from and indices to check on: a fifth of each class, at least one."""
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


FAMILIES = (CODE, "layer", "fine-tuned", "from scratch", "pixels", "pca", PRETRAINED)
PCA_BATCH = 1_000

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Representations:
    """What probes look at.

    Attributes:
        model: the model whose encoder is transferred.
        features: (N, F) of all images: "code", "pixels", "pca", "pretrained" where that is installed,
            and the pooled maps of each layer by their name in `feature_maps.descriptions`.
        layers: those names, shallow to deep.
        notes: what falls short, a sentence each.
    """

    model: Autoencoder
    features: dict[str, Floats]
    layers: tuple[str, ...]
    notes: tuple[str, ...]

    def has(self, name: str) -> bool:
        """Whether there are features of that name."""
        return name in self.features


@dataclass(frozen=True)
class Learned:
    """What a method made of labels.

    Attributes:
        method: one of `FAMILIES`.
        features: what its probe looks at.
        model: the model, fine-tuned or trained from scratch where the method does that.
        source: digest of the model it started at, "" for none.
        probe: on those features.
        validated: accuracy in cross-validation; NaN for a trained encoder.
        predict: classes (M,) of images by their index (M,).
    """

    method: str
    features: str
    model: Autoencoder
    source: str
    probe: LinearProbe
    validated: float
    predict: Callable[[Rows], NDArray[np.int64]]


def represent(model: Autoencoder, data: Labelled, report: Callable[[str, int, int], None]) -> Representations:
    """Compute all features once. PCA is fitted on all that may be learned from: it needs no labels."""
    seen: dict[str, list[Tensor]] = {}
    pooling = pooling_of(model.preprocessing.height, model.preprocessing.width)
    layers: tuple[str, ...] = ()
    done = 0
    for images in batches(data.pack, data.rows, INFERENCE_BATCH):
        found, codes = trace(model, images)
        parts = descriptions(found)
        layers = tuple(parts)
        parts |= {CODE: codes, "pixels": F.avg_pool2d(images, pooling).flatten(1)}
        for name, part in parts.items():
            seen.setdefault(name, []).append(part)
        done += len(images)
        report("encoding", done, len(data.rows))
    features = {name: torch.cat(parts).numpy() for name, parts in seen.items()}
    pixels = torch.from_numpy(features["pixels"])
    learned = pixels[torch.from_numpy(data.learned)]
    pca = principal_components(torch.split(learned, PCA_BATCH), model.config.code_size)
    features["pca"] = ((pixels - pca.mean) @ pca.directions.T).numpy()
    notes = []
    if len(pca.directions) < model.config.code_size:
        notes.append(f"PCA has {len(pca.directions)} components: there are no more images to learn from.")
    pretrained = _pretrained(model, data, report)
    if pretrained is not None:
        features[PRETRAINED] = pretrained
    return Representations(model, features, layers, tuple(notes))


def learn(
    method: str,
    data: Labelled,
    seen: Representations,
    rows: Rows,
    seed: int,
    report: Callable[[int, int], None],
) -> Learned:
    """Learn a classifier from the labels of some images.

    Args:
        method: one of `FAMILIES`.
        data: the images.
        seen: their features.
        rows: (M,) indices of the images that may be learned from.
        seed: of everything that is drawn.
        report: called with (images done, images in all) where an encoder is trained.

    Raises:
        DivergedError: training an encoder diverged.
    """
    labels = data.labels[rows]
    if method in ("fine-tuned", "from scratch"):
        return _train(method, data, seen, rows, seed, report)
    candidates = seen.layers if method == "layer" else (method,)
    choices = {name: choose_strength(seen.features[name][rows], labels, seed) for name in candidates}
    best = max(candidates, key=lambda name: choices[name].accuracy)
    probe = fit_probe(seen.features[best][rows], labels, choices[best].strength)
    return _probed(method, best, probe, choices[best].accuracy, seen)


def _probed(
    method: str, features: str, probe: LinearProbe, accuracy: float, seen: Representations
) -> Learned:
    def predict(rows: Rows) -> NDArray[np.int64]:
        return probe.predict(seen.features[features][rows])

    source = "" if features in (PRETRAINED, "pixels", "pca") else seen.model.digest
    return Learned(method, features, seen.model, source, probe, accuracy, predict)


def _train(
    method: str,
    data: Labelled,
    seen: Representations,
    rows: Rows,
    seed: int,
    report: Callable[[int, int], None],
) -> Learned:
    labels = data.labels[rows]

    def images_of(indices: Rows) -> Tensor:
        return to_float(data.pack.pixels(data.rows[rows[indices]]))

    if method == "fine-tuned":
        codes = seen.features[CODE][rows]
        start = fit_probe(codes, labels, choose_strength(codes, labels, seed).strength)
        model, probe = fine_tune(seen.model, start, images_of, labels, seed=seed, progress=report)
    else:
        model, probe = train_from_scratch(
            seen.model, len(data.classes), images_of, labels, seed=seed, progress=report
        )

    def predict(wanted: Rows) -> NDArray[np.int64]:
        parts = [model.encode(images) for images in batches(data.pack, data.rows[wanted], INFERENCE_BATCH)]
        return probe.predict(torch.cat(parts).numpy())

    source = seen.model.digest if method == "fine-tuned" else ""
    return Learned(method, CODE, model, source, probe, float("nan"), predict)


def _pretrained(model: Autoencoder, data: Labelled, report: Callable[[str, int, int], None]) -> Floats | None:
    try:
        encoder = image_encoder(model, "pretrained")
    except MissingExtraError:
        return None
    parts, done = [], 0
    for images in batches(data.pack, data.rows, INFERENCE_BATCH // 4):  # each is enlarged to 224x224
        parts.append(encoder.encode(images))
        done += len(images)
        report("pretrained features", done, len(data.rows))
    return np.concatenate(parts)
