"""Functions called on many images, in this process or on the nodes of a Ray cluster.

A node gets the rows or the paths, reads the images itself in the same batches, and returns the results.

Shapes: B batch, N images, H height, W width. Images are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import contextlib
import functools
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
from autoencode.errors import ImageFolderError, PackError
from autoencode.pixels import to_float
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.cluster import Cluster
    from autoencode.data.preprocessing import Limits, Preprocessing

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
        # A chunk without a usable file is no error; the caller judges all files together.
        with contextlib.suppress(ImageFolderError):
            for read, pixels in read_chunks(paths, len(paths), self.preprocessing, self.limits, skipped):
                if read:
                    values.append(self.function(to_float(pixels)))
        reasons = dict(skipped)
        return np.concatenate(values), [reasons.get(path, "") for path in paths]
