"""METHODS: the ways to learn a classifier that `transfer` compares, one entry each.

Shapes: N images, M of them learned from, B batch, F features, D code size, K classes. Images are
(B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autoencode.configuration import Embedding
from autoencode.data.loader import batches
from autoencode.data.preprocessing import Limits, read_image
from autoencode.embedding import EMBEDDINGS, PRETRAINED, find_encoder, pretrained_for
from autoencode.errors import ImageError
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.backbones import resized
from autoencode.models.convolutions import pooling_of
from autoencode.models.pca import principal_components
from autoencode.pixels import to_float
from autoencode.transfer_learning.classifier import CHUNK, CODE, Classifier, encoder_features
from autoencode.transfer_learning.fine_tuning import ImagesOf, fine_tune, train_from_scratch
from autoencode.transfer_learning.probe import Floats, LinearProbe, choose_strength, fit_probe

if TYPE_CHECKING:
    from autoencode.data.pack import Progress, StageProgress
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.transfer_learning.probe import Labelled, Labels

PCA_BATCH = 1_000

Rows = NDArray[np.int64]
Features = Mapping[str, Floats]


class Task:
    """Labelled images and a model, with the features that the methods share; each is computed once.

    Attributes:
        data: the images.
        model: the model whose encoder is transferred.
        notes: limits of the computed features, one sentence each.
    """

    def __init__(self, data: Labelled, model: Autoencoder, report: StageProgress) -> None:
        """Keep these; `report` is called with (stage, images done, images in all)."""
        self.data, self.model, self.notes = data, model, list[str]()
        self._report, self._embedded = report, dict[str, Floats]()

    @cached_property
    def encoder_features(self) -> dict[str, Floats]:
        """Codes and pooled maps of each layer, (N, F) each; see `classifier.encoder_features`."""
        parts: dict[str, list[Tensor]] = {}
        for images in self._batches("encoding", INFERENCE_BATCH):
            for name, part in encoder_features(self.model, images).items():
                parts.setdefault(name, []).append(part)
        return {name: torch.cat(part).numpy() for name, part in parts.items()}

    @property
    def layers(self) -> Features:
        """Pooled maps of each layer, shallow to deep."""
        return {name: part for name, part in self.encoder_features.items() if name != CODE}

    @cached_property
    def pixels(self) -> Features:
        """Pixels, averaged down to about 32 per side."""
        pooling = pooling_of(self.model.preprocessing.height, self.model.preprocessing.width)
        images = batches(self.data.pack, self.data.rows, INFERENCE_BATCH)
        return {"pixels": torch.cat([F.avg_pool2d(one, pooling).flatten(1) for one in images]).numpy()}

    @cached_property
    def components(self) -> Features:
        """Principal components of `pixels`, fitted to all images to learn from: that takes no labels."""
        pixels, size = torch.from_numpy(self.pixels["pixels"]), self.model.config.code_size
        learned = pixels[torch.from_numpy(self.data.learned)]
        pca = principal_components(torch.split(learned, PCA_BATCH), size)
        if len(pca.directions) < size:
            self.notes.append(
                f"PCA has {len(pca.directions)} components: there are no more images to learn from."
            )
        return {"pca": ((pixels - pca.mean) @ pca.directions.T).numpy()}

    def embedded(self, embedding: Embedding) -> Features:
        """Return an embedding of all images, computed once; of pretrained ones that which suits them.

        Raises:
            MissingExtraError: an optional part that it needs is not installed.
        """
        kind = self._pretrained if embedding == PRETRAINED else embedding
        if kind not in self._embedded:
            encoder, parts = find_encoder(kind, self.model), []
            for start in range(0, len(self.data.rows), CHUNK):
                chunk = range(start, min(start + CHUNK, len(self.data.rows)))
                images = torch.cat([self._image(index, encoder.preprocessing) for index in chunk])
                parts.append(encoder.encode(images))
                self._report(f"{embedding} features", chunk.stop, len(self.data.rows))
            self._embedded[kind] = np.concatenate(parts)
        return {kind: self._embedded[kind]}

    @cached_property
    def _pretrained(self) -> str:
        return pretrained_for(self.data.paths)

    def _image(self, index: int, preprocessing: Preprocessing) -> Tensor:
        """Return an image (1, 3, H, W) from its file, as pixels of a pack are not sharp when enlarged."""
        try:
            pixels = read_image(self.data.paths[index], preprocessing, Limits())
        except ImageError:  # gone, or of a pack that was made elsewhere
            size = preprocessing.height, preprocessing.width
            return resized(to_float(self.data.pack.pixels(self.data.rows[index : index + 1])), size)
        return to_float(pixels[None])

    def _batches(self, stage: str, batch_size: int) -> Iterator[Tensor]:
        """Yield all images (B, 3, H, W), reported as a stage."""
        return batches(self.data.pack, self.data.rows, batch_size, progress=partial(self._report, stage))

    def images_of(self, rows: Rows) -> ImagesOf:
        """Return a function from indices into `rows` to images (B, 3, H, W)."""
        return lambda indices: to_float(self.data.pack.pixels(self.data.rows[rows[indices]]))


@dataclass(frozen=True)
class Learned:
    """The classifier that a method learned.

    Attributes:
        classifier: with the method and the digest of the model it started at ("" for none) as provenance.
        validated: accuracy in cross-validation, in [0, 1]; NaN for a trained encoder.
        predict: indices (M,) of images to their classes (M,).
    """

    classifier: Classifier
    validated: float
    predict: Callable[[Rows], Labels]


@dataclass(frozen=True)
class Method:
    """A way to learn a classifier.

    Attributes:
        name: in the comparison.
        summary: one line for the documentation.
        features: those of a task that a linear probe is fitted to. If there are several, cross-validation
            chooses. Raises MissingExtraError if an optional part is not installed.
        trains: the training of an encoder instead of a probe: from a task, the images (M,) to learn from, a
            seed and a report to the trained model and the probe on its codes.
        uses_model: whether it starts from the model, so that its accuracy shows the worth of the autoencoder.
        kept_for: its embedding. The best method of the embedding asked for, or of all, becomes the
            classifier; None for a method that is only compared.
        is_fine_tuning: whether it is compared, and kept, only if fine-tuning is asked for.
    """

    name: str
    summary: str
    features: Callable[[Task], Features] | None = None
    trains: Callable[[Task, Rows, int, Progress], tuple[Autoencoder, LinearProbe]] | None = None
    uses_model: bool = True
    kept_for: Embedding | None = None
    is_fine_tuning: bool = False

    def learn(self, task: Task, rows: Rows, seed: int, report: Progress) -> Learned:
        """Learn from the labels of some images.

        Args:
            task: the images and the model.
            rows: (M,) indices of the images to learn from.
            seed: of all random choices.
            report: called with (images done, images in all) where an encoder is trained.

        Raises:
            DivergedError: training an encoder diverged.
            MissingExtraError: the features need an optional part that is not installed.
        """
        labels, provenance = task.data.labels[rows], {"method": self.name}
        provenance["model"] = task.model.digest if self.uses_model else ""
        if self.trains is not None:
            model, probe = self.trains(task, rows, seed, report)

            def predict(wanted: Rows) -> Labels:
                parts = batches(task.data.pack, task.data.rows[wanted], INFERENCE_BATCH)
                return probe.predict(torch.cat([model.encode(images) for images in parts]).numpy())

            return Learned(Classifier(model, CODE, task.data.classes, probe, provenance), math.nan, predict)
        assert self.features is not None
        candidates = self.features(task)
        choices = {name: choose_strength(part[rows], labels, seed) for name, part in candidates.items()}
        best = max(choices, key=lambda name: choices[name].accuracy)
        features = candidates[best]
        probe = fit_probe(features[rows], labels, choices[best].strength)
        classifier = Classifier(task.model, best, task.data.classes, probe, provenance)
        return Learned(classifier, choices[best].accuracy, lambda wanted: probe.predict(features[wanted]))


def _fine_tuned(task: Task, rows: Rows, seed: int, report: Progress) -> tuple[Autoencoder, LinearProbe]:
    codes, labels = task.encoder_features[CODE][rows], task.data.labels[rows]
    start = fit_probe(codes, labels, choose_strength(codes, labels, seed).strength)
    return fine_tune(task.model, start, task.images_of(rows), labels, seed=seed, progress=report)


def _from_scratch(task: Task, rows: Rows, seed: int, report: Progress) -> tuple[Autoencoder, LinearProbe]:
    images_of, labels = task.images_of(rows), task.data.labels[rows]
    return train_from_scratch(
        task.model, len(task.data.classes), images_of, labels, seed=seed, progress=report
    )


def _probe_of(embedding: Embedding) -> Method:
    """Return the method of an embedding other than the code."""
    return Method(
        embedding,
        f"linear probe on {EMBEDDINGS[embedding].summary}",
        lambda task: task.embedded(embedding),
        uses_model=False,
        kept_for=embedding,
    )


METHODS = {
    method.name: method
    for method in (
        Method(
            CODE,
            "linear probe on the code",
            lambda task: {CODE: task.encoder_features[CODE]},
            kept_for="code",
        ),
        Method(
            "layer",
            "linear probe on the best layer of the encoder, pooled",
            lambda task: task.layers,
            kept_for="code",
        ),
        Method(
            "fine-tuned", "the encoder, trained on with the labels", trains=_fine_tuned, is_fine_tuning=True
        ),
        Method(
            "from scratch", "the same network on the labels alone", trains=_from_scratch, uses_model=False
        ),
        Method("pixels", "linear probe on small images", lambda task: task.pixels, uses_model=False),
        Method(
            "pca",
            "linear probe on as many principal components of them as the code has dimensions",
            lambda task: task.components,
            uses_model=False,
        ),
        *map(_probe_of, (name for name in get_args(Embedding) if name != CODE)),
    )
}
