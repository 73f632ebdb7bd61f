"""Images as vectors that search, outliers and classifiers compare, and functions over many images.

An embedding is one entry of `EMBEDDINGS`: codes of a model, or features of a pretrained network.

`over_pack` and `over_files` call a function on images, in this process or on the nodes of a Ray cluster. A
node gets the rows or the paths, reads the images itself, in the same batches, and sends back the results. Ray
Data divides the work, repeats what was lost, and keeps the order.

Shapes: B batch, N images, H height, W width, F features. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.cluster import Cluster, brief
from autoencode.data.loader import batch_slices, batches
from autoencode.data.pack import Pack, open_pack
from autoencode.data.preprocessing import check_usable, read_chunks
from autoencode.errors import AutoencodeError, ConfigError, ImageFolderError, PackError, RunError, restored
from autoencode.models.backbones import BACKBONE
from autoencode.pixels import to_float, to_pixels
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.configuration import Distance, Embedding
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.models.autoencoder import Autoencoder


@dataclass(frozen=True)
class ImageEncoder:
    """Images to vectors.

    Attributes:
        kind: name of the embedding in `EMBEDDINGS`.
        preprocessing: the size of its images, and how a file becomes one.
        size: F, features of an image.
        digest: of everything the vectors depend on but the images; equal digests, comparable vectors. ""
            for a model that was never saved.
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
        needs_model: whether the vectors depend on the weights of a model. Otherwise the model says no more
            than the size of its images.
        distance: by which vectors are compared unless another one is asked for.
        encoder: preprocessing and a model, or None for no model, to the encoder. Raises MissingExtraError
            if an optional part is not installed.
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
    # With the preprocessing: the network is given images of the size that a model of ours would see.
    text = json.dumps([BACKBONE.digest, preprocessing.to_json()], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ImageEncoder("pretrained", preprocessing, BACKBONE.size, digest, _pretrained_features)


def _pretrained_features(images: Tensor) -> NDArray[np.float32]:
    # At the top of the module, so that it is sent to nodes of a cluster by its name and not with its network.
    return BACKBONE.pooled(to_pixels(images.cpu()))


EMBEDDINGS: dict[str, EmbeddingKind] = {
    "code": EmbeddingKind("codes of the model", True, "whitened", _codes),
    # Some models' codes share a direction, which whitening takes away; pretrained features lose by it
    # (docs/results.md).
    "pretrained": EmbeddingKind(
        f"features of {BACKBONE.name}, trained on ImageNet (extra eval)", False, "cosine", _pretrained
    ),
}


def image_encoder(model: Autoencoder, kind: Embedding = "code") -> ImageEncoder:
    """Return an encoder of images of the size that a model takes.

    Args:
        model: from `load_model`.
        kind: a name in `EMBEDDINGS`: "code" for the model's codes, "pretrained" for features that do not
            depend on its weights.

    Raises:
        ConfigError: there is no embedding of that name.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    if kind not in EMBEDDINGS:
        raise ConfigError(f"Unknown embedding {kind!r}. Choose {' or '.join(EMBEDDINGS)}.")
    return EMBEDDINGS[kind].encoder(model.preprocessing, model)


Columns = Mapping[Any, NDArray[Any]]  # results for some images, each array with a row for each image
Made = TypeVar("Made", bound=Columns)

_OURS = re.compile(r"^autoencode\.errors\.(\w+): (.*)$", re.MULTILINE)
_ANY = re.compile(r"^[\w.]+(?:Error|Exception): .*$", re.MULTILINE)
# Batches that a process gets at once: few, so that little is lost with it, but handing out takes time, too.
_CHUNKS_TOGETHER, _MOST_BLOCKS = 4, 10_000


def over_pack(
    function: Callable[[Tensor], Made],
    pack: Pack,
    rows: NDArray[np.int64],
    batch_size: int,
    cluster: Cluster | None = None,
) -> Iterator[Made]:
    """Call a function on images of a pack, a batch at a time.

    Args:
        function: of images (B, 3, H, W).
        pack: the images; every node must see it.
        rows: (N,) of the pack.
        batch_size: B at most, see `batches`.
        cluster: the nodes to work on; None for this process.

    Yields:
        The results of the function, in the order of `rows`.

    Raises:
        PackError: a node sees another pack, or none.
        RunError: the cluster failed.
        AutoencodeError: the function raised it.
    """
    if cluster is None:
        yield from map(function, batches(pack, rows, batch_size))
        return
    if is_url(pack.location):
        cluster.check_reads(pack.location)
    chunks = [rows[part].tobytes() for part in batch_slices(len(rows), batch_size)]
    work = _OfPack(function, pack.location, pack.fingerprint)
    yield from cast("Iterator[Made]", _on_nodes(cluster, work, chunks, len(rows)))


def over_files(
    function: Callable[[Tensor], NDArray[np.float64]],
    paths: Sequence[Path],
    size: int,
    preprocessing: Preprocessing,
    limits: Limits,
    skipped: list[tuple[Path, str]],
    cluster: Cluster | None = None,
) -> Iterator[tuple[list[Path], NDArray[np.float64]]]:
    """Call a function on images in files, a few at a time, without those that cannot be used.

    Args:
        function: of images (B, 3, H, W) to a number each, (B,).
        paths: the files; every node must see them.
        size: files in a chunk.
        preprocessing, limits, skipped: see `read_chunks`.
        cluster: the nodes to work on; None for this process.

    Yields:
        Files that could be read, and their numbers (B,); B may be 0.

    Raises:
        ImageFolderError: no file could be used; raised after the last.
        RunError: the cluster failed.
    """
    if cluster is None:
        for read, pixels in read_chunks(paths, size, preprocessing, limits, skipped):
            yield read, function(to_float(pixels)) if read else np.zeros(0)
        return
    work = _OfFiles(function, preprocessing, limits)
    names = [os.fsencode(path.absolute()) for path in paths]
    chunks = [b"\0".join(names[start : start + size]) for start in range(0, len(names), size)]
    done = usable = 0
    for made in _on_nodes(cluster, work, chunks, len(paths)):
        here, readable = paths[done : done + len(made["reason"])], made["reason"] == ""
        for path, reason in zip(here, made["reason"].tolist(), strict=True):
            if reason:
                skipped.append((path, reason))
        yield (
            [path for path, is_readable in zip(here, readable, strict=True) if is_readable],
            made["value"][readable],
        )
        done += len(here)
        usable += int(readable.sum())
    check_usable(usable, paths, skipped)


@dataclass(frozen=True)
class _OfPack:
    """Work of a node on rows of a pack."""

    function: Callable[[Tensor], Columns]
    location: str
    fingerprint: str

    def __call__(self, chunk: bytes) -> Columns:
        rows = np.frombuffer(chunk, np.int64)
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
        raise PackError(f"A node of the cluster sees other images in {location}. Give all nodes one pack.")
    return pack


@dataclass(frozen=True)
class _OfFiles:
    """Work of a node on the paths of files: a value for each, or the reason why there is none."""

    function: Callable[[Tensor], NDArray[np.float64]]
    preprocessing: Preprocessing
    limits: Limits

    def __call__(self, chunk: bytes) -> Columns:
        paths = [Path(os.fsdecode(name)) for name in chunk.split(b"\0")]
        skipped: list[tuple[Path, str]] = []
        values = dict.fromkeys(paths, math.nan)
        try:
            for read, pixels in read_chunks(paths, len(paths), self.preprocessing, self.limits, skipped):
                if read:
                    values |= zip(read, self.function(to_float(pixels)).tolist(), strict=True)
        except ImageFolderError:
            pass  # none of these few could be used; `over_files` judges all files together
        reasons = dict(skipped)
        return {
            "value": np.array([values[path] for path in paths]),
            "reason": np.array([reasons.get(path, "") for path in paths]),
        }


def _on_nodes(
    cluster: Cluster, work: Callable[[bytes], Columns], chunks: list[bytes], count: int
) -> Iterator[Columns]:
    """Let processes on the nodes, one a CPU, do the work; yield their results, `count` rows in all."""
    if not chunks:
        return
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)
    cpus = sum(node.cpus for node in cluster.nodes)
    wanted = min(math.ceil(len(chunks) / _CHUNKS_TOGETHER), _MOST_BLOCKS)
    blocks = min(len(chunks), max(8 * cpus, wanted))
    listed = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=blocks)
    made = listed.map_batches(
        _Worker,
        fn_constructor_args=(work,),
        batch_size=1,
        num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=cpus),
    )
    done = 0
    try:
        for block in made.iter_batches(batch_size=None):
            done += len(next(iter(block.values())))
            yield block
    except ray.exceptions.RayError as err:
        raise _ours(err) from err
    if done != count:
        raise RunError(f"The cluster sent back {done} results for {count} images. Try again.")


class _Worker:
    """One of the processes; it keeps its function, and with that a model."""

    def __init__(self, work: Callable[[bytes], Columns]) -> None:
        self.work = work

    def __call__(self, batch: dict[str, NDArray[Any]]) -> Columns:
        [chunk] = batch["chunk"]
        return self.work(chunk)


def _ours(err: BaseException) -> AutoencodeError:
    """Return the error that ended the work, where it is one of ours as itself."""
    # Ray sends the traceback of an error on a node as text, not the error.
    if ours := _OURS.findall(str(err)):
        return restored(*ours[-1])  # the last was caused by the others
    first = _ANY.search(str(err))
    return RunError(f"The cluster could not do the work: {first[0] if first else brief(err)}")
