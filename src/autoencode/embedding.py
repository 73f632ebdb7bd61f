"""Images as vectors that search, outliers and classifiers compare, and functions over many images.

An embedding is an entry of `EMBEDDINGS`: codes of a model, or features of a pretrained network. A new one is
also a choice of `Embedding` in configuration.py.

`map_pack` and `map_files` call a function on images, in this process or on the nodes of a Ray cluster. A
node gets the rows or the paths, reads the images itself in the same batches, and returns the results.

Shapes: B batch, N images, H height, W width, F features. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.data.loader import batch_slices, batches
from autoencode.data.manifest import SETTINGS_NAME
from autoencode.data.pack import Pack, open_pack
from autoencode.data.preprocessing import check_usable, read_chunks
from autoencode.errors import ImageFolderError, PackError, check_choice
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float, to_pixels
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.cluster import Cluster
    from autoencode.configuration import Distance, Embedding
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class ImageEncoder:
    """Images to vectors.

    Attributes:
        kind: name of the embedding in `EMBEDDINGS`.
        preprocessing: the size of its images, and how a file becomes one.
        size: F, features per image.
        digest: of everything but the images that determines the vectors; vectors of equal digests can be
            compared. "" for a model that was never saved.
        encode: images (B, 3, H, W) in [0, 1], any device, to (B, F) float32.
    """

    kind: Embedding
    preprocessing: Preprocessing
    size: int
    digest: str
    encode: Callable[[Tensor], NDArray[np.float32]]


@dataclass(frozen=True)
class EmbeddingKind:
    """One way from images to vectors.

    Attributes:
        summary: a few words for help.
        needs_model: whether the weights of the model determine the vectors; if not, only its preprocessing
            matters.
        distance: the default for comparing vectors.
        encoder: makes the encoder from a preprocessing and a model (None if it needs none); raises
            MissingExtraError if an optional part is missing.
    """

    summary: str
    needs_model: bool
    distance: Distance
    encoder: Callable[[Preprocessing, Autoencoder | None], ImageEncoder]


def _codes(preprocessing: Preprocessing, model: Autoencoder | None) -> ImageEncoder:
    if model is None:
        raise TypeError("codes need a model")

    def encode(images: Tensor) -> NDArray[np.float32]:
        return model.encode(images).numpy()

    return ImageEncoder("code", preprocessing, model.config.code_size, model.digest, encode)


def _pretrained(preprocessing: Preprocessing, model: Autoencoder | None) -> ImageEncoder:
    # The preprocessing is part of the digest: the network gets images of the model's size.
    text = json.dumps([BACKBONE.digest, preprocessing.to_json()], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ImageEncoder("pretrained", preprocessing, BACKBONE.size, digest, _pretrained_features)


def _pretrained_features(images: Tensor) -> NDArray[np.float32]:
    # A module-level function is pickled by name; a closure would send the network to every node.
    return BACKBONE.pooled(to_pixels(images.cpu()))


EMBEDDINGS: dict[str, EmbeddingKind] = {
    "code": EmbeddingKind("codes of the model", True, "whitened", _codes),
    # Codes of some models share a direction, which whitening removes; pretrained features get worse by it
    # (docs/results.md).
    "pretrained": EmbeddingKind(
        f"features of {BACKBONE.name}, trained on ImageNet (extra eval)", False, "cosine", _pretrained
    ),
}


def image_encoder(model: Autoencoder, kind: Embedding = "code") -> ImageEncoder:
    """Return an encoder of images of the size of a model.

    Args:
        model: from `load_model`.
        kind: a name in `EMBEDDINGS`: "code" for the model's codes, "pretrained" for features that do not
            depend on its weights.

    Raises:
        ConfigError: there is no embedding of that name.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    check_choice("embedding", kind, EMBEDDINGS)
    return EMBEDDINGS[kind].encoder(model.preprocessing, model)


Columns = Mapping[Any, NDArray[Any]]  # results for some images, each array with a row per image
Made = TypeVar("Made", bound=Columns)


def map_pack(
    function: Callable[[Tensor], Made],
    pack: Pack,
    rows: NDArray[np.int64],
    batch_size: int,
    cluster: Cluster | None = None,
) -> Iterator[Made]:
    """Call a function on images of a pack, a batch at a time.

    Args:
        function: called with images (B, 3, H, W); returns an array per name, each with a row per image.
        pack: the images; every node must see it.
        rows: (N,) of the pack.
        batch_size: B at most, see `batches`.
        cluster: the nodes to work on; None for this process.

    Yields:
        The results of the function, in the order of `rows`.

    Raises:
        PackError: a node sees another pack, or none.
        RunError: the cluster failed.
        AutoencodeError: raised by the function.
    """
    if cluster is None:
        yield from map(function, batches(pack, rows, batch_size))
        return
    if is_url(pack.location):
        cluster.check_reads(pack.location, SETTINGS_NAME)
    work = _OfPack(function, pack.location, pack.fingerprint)
    yield from cluster.run(work, (rows[part] for part in batch_slices(len(rows), batch_size)))


def map_files(
    function: Callable[[Tensor], NDArray[np.float64]],
    paths: Sequence[Path],
    size: int,
    preprocessing: Preprocessing,
    limits: Limits,
    skipped: list[tuple[Path, str]],
    cluster: Cluster | None = None,
) -> Iterator[tuple[list[Path], NDArray[np.float64]]]:
    """Call a function on images in files, a chunk at a time; unusable files are skipped.

    Args:
        function: called with images (B, 3, H, W); returns a number per image, (B,).
        paths: the files; every node must see them.
        size: files per chunk.
        preprocessing, limits, skipped: see `read_chunks`.
        cluster: the nodes to work on; None for this process.

    Yields:
        The files of a chunk that could be read, and their numbers (B,); B may be 0.

    Raises:
        ImageFolderError: no file could be used; raised after the last one.
        RunError: the cluster failed.
    """
    if cluster is None:
        for read, pixels in read_chunks(paths, size, preprocessing, limits, skipped):
            yield read, function(to_float(pixels)) if read else np.zeros(0)
        return
    work = _OfFiles(function, preprocessing, limits)
    chunks = [paths[start : start + size] for start in range(0, len(paths), size)]
    results = cluster.run(work, ([path.absolute() for path in chunk] for chunk in chunks))
    usable = 0
    for chunk, (values, reasons) in zip(chunks, results, strict=True):
        judged = list(zip(chunk, reasons, strict=True))
        skipped.extend((path, reason) for path, reason in judged if reason)
        yield [path for path, reason in judged if not reason], values
        usable += len(values)
    check_usable(usable, paths, skipped)


@dataclass(frozen=True)
class _OfPack(Generic[Made]):
    """Runs on a node: calls the function on rows of a pack."""

    function: Callable[[Tensor], Made]
    location: str
    fingerprint: str

    def __call__(self, rows: NDArray[np.int64]) -> Made:
        [images] = batches(_opened(self.location, self.fingerprint), rows, len(rows))
        return self.function(images)


@functools.cache
def _opened(location: str, fingerprint: str) -> Pack:
    try:
        pack = open_pack(location)
    except PackError as err:
        raise PackError(
            f"A node of the cluster does not see the pack {location}. Put it on a disk that all nodes share."
        ) from err
    if pack.fingerprint != fingerprint:
        raise PackError(
            f"A node of the cluster sees other images in {location}. Give all nodes the same pack."
        )
    return pack


@dataclass(frozen=True)
class _OfFiles:
    """Runs on a node: returns a number for each readable file, (B,), and a reason for each file.

    The reason is "" for a file that was readable.
    """

    function: Callable[[Tensor], NDArray[np.float64]]
    preprocessing: Preprocessing
    limits: Limits

    def __call__(self, paths: Sequence[Path]) -> tuple[NDArray[np.float64], list[str]]:
        skipped: list[tuple[Path, str]] = []
        values = [np.zeros(0)]
        with contextlib.suppress(
            ImageFolderError
        ):  # an empty chunk is no error; the caller judges all files together
            for read, pixels in read_chunks(paths, len(paths), self.preprocessing, self.limits, skipped):
                if read:
                    values.append(self.function(to_float(pixels)))
        reasons = dict(skipped)
        return np.concatenate(values), [reasons.get(path, "") for path in paths]
