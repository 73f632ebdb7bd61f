"""The ways to a classifier that `transfer` compares.

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

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.applications.classifier import CODE, PRETRAINED
from autoencode.applications.encoders import image_encoder
from autoencode.applications.finetune import fine_tune, train_from_scratch
from autoencode.applications.labelled import Labelled
from autoencode.applications.probe import Floats, LinearProbe, choose_strength, fit_probe
from autoencode.data.batches import batches, to_float
from autoencode.errors import MissingExtraError
from autoencode.evaluation.pretrained import pretrained_version
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.layers import descriptions, trace
from autoencode.models.pca import principal_components
from autoencode.models.residual import pooling_of

FAMILIES = (CODE, "layer", "fine-tuned", "from scratch", "pixels", "pca", PRETRAINED)
PCA_BATCH = 1_000

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Representations:
    """What probes look at.

    Attributes:
        model: the model whose encoder is transferred.
        features: (N, F) of all images: "code", "pixels", "pca", "pretrained" where that is installed,
            and the pooled maps of each layer by their name in `models.layers.descriptions`.
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
        pretrained_version()
    except MissingExtraError:
        return None
    encoder = image_encoder(model, PRETRAINED)  # type: ignore[arg-type]
    parts, done = [], 0
    for images in batches(data.pack, data.rows, INFERENCE_BATCH // 4):  # each is enlarged to 224x224
        parts.append(encoder.encode(images))
        done += len(images)
        report("pretrained features", done, len(data.rows))
    return np.concatenate(parts)
