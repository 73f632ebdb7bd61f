"""Images as vectors that search, outliers and classifiers compare.

An embedding is an entry of `EMBEDDINGS`, or an ONNX file. Vectors of a pretrained network are long, and most
of their dimensions are alike on the images of one folder: a `Reduction` fitted to the folder keeps those
that differ.

Shapes: B batch, N images, H height, W width, F dimensions of a vector, K of a reduced one. Images are
(B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.pack import Pack
from autoencode.data.survey import survey
from autoencode.errors import ConfigError, check_choice
from autoencode.models.backbones import (
    BACKBONE,
    SMALL_PX,
    TRAINED_PX,
    Backbone,
    EfficientNetLite0,
    OnnxBackbone,
)
from autoencode.trial import check_onnx

if TYPE_CHECKING:
    from autoencode.configuration import Distance
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.models.autoencoder import Autoencoder

AUTO = "auto"
PRETRAINED_KINDS = PRETRAINED, PRETRAINED_LARGE = "pretrained", f"pretrained-{TRAINED_PX}"
BF16_CODES = "code-bf16"
ONNX_SUFFIX = ".onnx"
REDUCED_SIZE = 256  # 128 dimensions lost up to 0.01 of accuracy, 384 gained none (docs/results.md)
MOST_FITTED = 4000  # images that a reduction is fitted to; more take longer and change nothing measurable
FEWEST_FITTED = 64  # of fewer images the principal directions are not those of further ones
# Shorter sides, in pixels, from which images are described at 224 pixels: in the middle between both sizes.
_LARGE_FROM = (SMALL_PX + TRAINED_PX) // 2
_MOST_LARGE = 50_000  # images: at 224 pixels the packed ones would take 7.5 GB of the disk, at 128 a third
_GROWTH = 2  # how many times as many images a folder has when its reduction is fitted anew

# Times the mean variance that is added to each before scaling. With half of it the nearest ten are as often
# of the label of the query, and all others of its label come later; with twice as much, fewer of cifar10 are.
_SHRINKAGE = 1.0
# Images for each direction. With a direction for each image, those of the folder are nearly at right angles
# to each other, and any other image is nearer to them than they are among themselves.
_IMAGES_PER_DIRECTION = 4

# Standard deviations from which an image counts as beyond its folder. New faces are up to 2.6 from 800 faces
# (99 %), cats and flowers 4.9 and more, digits 6.5.
_BEYOND = 3.0


def _cosines(vectors: NDArray[np.float32], mean: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(mean)
    found: NDArray[np.float32] = vectors @ mean / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found


@dataclass(frozen=True)
class Reduction:
    """The principal directions in which the images of a folder differ, of nearly equal weight.

    Attributes:
        mean: (F,) subtracted from a vector.
        matrix: (F, K) the centred vector is multiplied by.
        cosines: (2,) mean and standard deviation of the cosine between a vector of the folder and the mean.
        images: N, how many it was fitted to.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]
    cosines: NDArray[np.float32]
    images: int

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return vectors (B, F) as reduced ones (B, K), of length 1, or less for images beyond the folder.

        The directions kept are those in which the folder's images differ, where anything else looks like one
        of them: a cat finds its likes among faces. That it is no face shows in the length alone, which a
        cosine leaves out.
        """
        reduced = ((vectors - self.mean) @ self.matrix).astype(np.float32, copy=False)
        lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
        # The mean itself has no direction: it stays zero, and scores 0 with every other.
        reduced /= np.maximum(lengths, np.finfo(np.float32).tiny)
        usual, deviation = self.cosines
        beyond = np.maximum((usual - _cosines(vectors, self.mean)) / deviation - _BEYOND, 0)
        reduced /= 1 + beyond[:, None]
        return reduced

    def is_outgrown(self, images: int) -> bool:
        """Whether a folder of so many images deserves a reduction fitted anew."""
        return self.images < MOST_FITTED and images >= max(_GROWTH * self.images, FEWEST_FITTED)


def fit_reduction(vectors: NDArray[np.float32]) -> Reduction:
    """Fit a reduction to vectors (N, F), of a random sample of a folder's images.

    Directions are whitened only in part (cf. Jégou & Chum 2012): their variances are shrunk towards the mean
    variance, so that the last of them, which are mostly noise, do not count like the first.

    Too few or equal images have no principal directions worth keeping. Their reduction is a random rotation
    onto fewer dimensions, which keeps angles nearly as they are (Johnson & Lindenstrauss 1984).
    """
    from sklearn.utils.extmath import randomized_svd  # half a second that other uses are spared

    count, size = vectors.shape
    if count >= FEWEST_FITTED:
        mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
        most = min(REDUCED_SIZE, size, count // _IMAGES_PER_DIRECTION)
        _, singular, directions = randomized_svd(vectors - mean, most, n_iter=4, random_state=0)
        variances = np.square(singular.astype(np.float64)) / count
        if variances.mean() > np.square(1e-6 * mean).mean():
            scales = np.sqrt(variances + _SHRINKAGE * variances.mean())
            matrix = np.ascontiguousarray((directions.T / scales).astype(np.float32))
            cosines = _cosines(vectors, mean)
            usual = np.array([cosines.mean(), max(cosines.std(), 1e-3)], np.float32)
            return Reduction(mean, matrix, usual, count)
    random = np.random.default_rng(0).standard_normal((size, min(REDUCED_SIZE, size)))
    rotation = np.linalg.qr(random)[0].astype(np.float32)
    anything = np.array([0, 1e6], np.float32)  # nothing is beyond images that are not known
    return Reduction(np.zeros(size, np.float32), rotation, anything, count)


@dataclass(frozen=True)
class ImageEncoder:
    """Images to vectors.

    Attributes:
        kind: name of the embedding: an entry of `EMBEDDINGS`, or the path of an ONNX file.
        name: what made the vectors, for people.
        preprocessing: the size of its images, and how a file becomes one.
        size: F, dimensions of a vector.
        digest: of everything but the images and the reduction that determines the vectors; vectors of equal
            digests and one reduction can be compared. "" for a model that was never saved.
        distance: the default for comparing vectors.
        is_backbone: whether images of any size are taken, and vectors reduced.
        encode: images (B, 3, H, W) in [0, 1], any device, to (B, F) float32.
    """

    kind: str
    name: str
    preprocessing: Preprocessing
    size: int
    digest: str
    distance: Distance
    is_backbone: bool
    encode: Callable[[Tensor], NDArray[np.float32]]

    def reduced(self, reduction: Reduction) -> ImageEncoder:
        """Return this encoder followed by a reduction."""
        encode = functools.partial(_reduced, self.encode, reduction)
        return replace(self, size=reduction.matrix.shape[1], encode=encode)


def _reduced(
    encode: Callable[[Tensor], NDArray[np.float32]], reduction: Reduction, images: Tensor
) -> NDArray[np.float32]:
    return reduction(encode(images))


@dataclass(frozen=True)
class EmbeddingKind:
    """One way from images to vectors.

    Attributes:
        summary: a few words for help.
        encoder: makes the encoder from a model, None where none was given; raises ConfigError if it needs
            one, and MissingExtraError if an optional part is missing.
    """

    summary: str
    encoder: Callable[[Autoencoder | None], ImageEncoder]


def _codes(model: Autoencoder | None, kind: str = "code") -> ImageEncoder:
    if model is None:
        raise ConfigError("Codes need the model that makes them: add --model, or use another embedding.")
    name, digest, in_bf16 = "codes", model.digest, kind == BF16_CODES
    if in_bf16:
        name, digest = "codes in bf16", digest and hashlib.sha256(f"{digest} bf16".encode()).hexdigest()

    def encode(images: Tensor) -> NDArray[np.float32]:
        with torch.autocast(model.to_mean.weight.device.type, torch.bfloat16, enabled=in_bf16):
            return model.encode(images).numpy()

    # Codes of some models share a direction, which whitening removes.
    return ImageEncoder(
        kind, name, model.preprocessing, model.config.code_size, digest, "whitened", False, encode
    )


def _described(
    kind: str, backbone: Backbone, encode: Callable[[Tensor], NDArray[np.float32]]
) -> ImageEncoder:
    return ImageEncoder(
        kind,
        backbone.name,
        backbone.preprocessing,
        backbone.size,
        backbone.digest,
        "cosine",
        True,
        encode,
    )


# Functions of a module are pickled by name; a bound method would send the network to every node.
def _pretrained(images: Tensor) -> NDArray[np.float32]:
    return BACKBONE.descriptors(images)


_LARGE = EfficientNetLite0(TRAINED_PX)


def _pretrained_large(images: Tensor) -> NDArray[np.float32]:
    return _LARGE.descriptors(images)


EMBEDDINGS: dict[str, EmbeddingKind] = {
    PRETRAINED: EmbeddingKind(
        f"what {BACKBONE.name}, trained on ImageNet, sees in an image, and where",
        lambda _: _described(PRETRAINED, BACKBONE, _pretrained),
    ),
    PRETRAINED_LARGE: EmbeddingKind(
        f"the same of images of {TRAINED_PX} pixels instead of {SMALL_PX}",
        lambda _: _described(PRETRAINED_LARGE, _LARGE, _pretrained_large),
    ),
    "code": EmbeddingKind("the codes of a model", _codes),
    BF16_CODES: EmbeddingKind(
        "the codes of a model, multiplied in bf16: faster where the processor can",
        functools.partial(_codes, kind=BF16_CODES),
    ),
}


def find_encoder(embedding: str = AUTO, model: Autoencoder | None = None) -> ImageEncoder:
    """Return the encoder of an embedding.

    Args:
        embedding: a name in `EMBEDDINGS`; the path of an ONNX file, whose network takes images and returns
            vectors; or "auto": pretrained features, with a model or without, as they were ahead of codes and
            of pixels on every kind of images measured (docs/results.md).
        model: from `load_model`; needed for codes, and used for nothing else.

    Raises:
        ConfigError: there is no embedding of that name, or codes are asked for without a model.
        ModelFileError: the ONNX file is missing or is no image encoder.
        MissingExtraError: an optional part is missing.
    """
    if embedding.endswith(ONNX_SUFFIX):
        check_onnx(Path(embedding))
        network = OnnxBackbone(Path(embedding))
        return _described(embedding, network, network.descriptors)
    if embedding == AUTO:
        embedding = PRETRAINED
    check_choice("embedding", embedding, (*EMBEDDINGS, f"FILE{ONNX_SUFFIX}"))
    return EMBEDDINGS[embedding].encoder(model)


def pretrained_for(images: Pack | Sequence[Path], limits: Limits | None = None) -> str:
    """Return the pretrained embedding that suits images: `PRETRAINED_LARGE` where most are larger.

    Details of photographs and of parts are lost at 128 pixels (docs/results.md).

    Args:
        images: files, of which a sample is looked at; or a pack, whose files are, where they are still there.
        limits: the largest files and pictures to accept.

    Raises:
        AutoencodeError: no worker could be started.
    """
    if len(images) > _MOST_LARGE:
        return PRETRAINED
    shorter = []
    if isinstance(images, Pack):
        shorter = [min(images.preprocessing.height, images.preprocessing.width)]
        images = [images.folder / entry.path for entry in images.entries]
    shorter = [min(extent) for extent in survey(images, limits).extents] or shorter
    return PRETRAINED_LARGE if shorter and np.median(shorter) >= _LARGE_FROM else PRETRAINED
