"""Decode files into rows of pixels, in processes of this machine or on the nodes of a Ray cluster.

A process of this machine writes its rows into the shards itself. A node returns them and the caller writes
them: the pack may be on a disk that the node does not see.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import write_bytes
from autoencode.data import workers
from autoencode.data.decoding import read_bytes, upright_size
from autoencode.data.preprocessing import Limits, read_image
from autoencode.errors import ConfigError, ImageError, RunError

if TYPE_CHECKING:
    from autoencode.cluster import Cluster
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.data.shards import Shards

# Files sent to a node at once, and bytes of pixels it returns at once; up to four such chunks per CPU are in
# memory.
_MOST_FILES, _MOST_BYTES = 32, 8 * 1024**2

# Photos of phones and cameras fit easily; a larger file is not a photo.
UPLOAD_LIMITS = Limits(max_pixels=64_000_000, max_bytes=32 * 1024**2)
# Memory of the whole process: 64 million pixels with alpha are 256 MB, and decoding holds about 3 copies.
_UPLOAD_MEMORY_BYTES = 2 * 1024**3


class Outcome(NamedTuple):
    """The result for a file: the digest of its content, None if unreadable, and the reason if unusable."""

    digest: bytes | None
    reason: str | None = None


Read = tuple[Outcome, NDArray[np.uint8] | None]  # with the pixels (H, W, 3) of content that is not packed yet


@dataclass(frozen=True)
class Decoder:
    """Does tasks (path, row): reads and hashes a file; decodes and writes it if its content is new.

    Attributes:
        folder: the images.
        preprocessing, limits: see `read_image`.
        shards: where the pixels go.
        known_digests: a file of the sorted digests, 32 bytes each, of content that is packed; None for none.
    """

    folder: Path
    preprocessing: Preprocessing
    limits: Limits
    shards: Shards
    known_digests: Path | None = None

    def with_known_digests(self, digests: NDArray[np.bytes_]) -> Decoder:
        """Return a decoder that knows the contents of these digests (K,), 32 bytes each.

        Raises:
            OutputError: the file of digests could not be written.
        """
        if not len(digests):
            return self
        write_bytes(self.shards.known_digests, np.unique(digests).tobytes())
        return replace(self, known_digests=self.shards.known_digests)

    def __call__(self, task: tuple[str, int]) -> Outcome:
        """Do one task.

        Raises:
            OutputError: the row could not be written.
        """
        path, row = task
        outcome, pixels = self.read(path)
        if pixels is not None:
            self.shards.write(row, pixels)
        return outcome

    def read(self, path: str) -> Read:
        """Return the outcome for a file, and its pixels (H, W, 3) unless it is unusable or packed already."""
        digest = None
        try:
            content = read_bytes(f"{self.folder}/{path}", self.limits.max_bytes)
            digest = hashlib.sha256(content).digest()
            if self.is_packed(digest):
                return Outcome(digest), None
            workers.set_time_limit(self.limits.seconds_for(len(content)))
            return Outcome(digest), read_image(content, self.preprocessing, self.limits)
        except ImageError as err:
            return Outcome(digest, str(err)), None
        except MemoryError:
            return Outcome(digest, "too large for the memory of this machine"), None

    def is_packed(self, digest: bytes) -> bool:
        """Whether the content of a digest of 32 bytes is known."""
        if self.known_digests is None:
            return False
        position = int(np.searchsorted(self._digests, np.array(digest, "S32")))
        return self._digests[position : position + 1].tobytes() == digest

    @functools.cached_property
    def _digests(self) -> NDArray[np.bytes_]:
        # A memory map, shared by all workers: as a set, 60,000 digests take 10 MB per worker, not 2 MB once.
        assert self.known_digests is not None
        return np.memmap(self.known_digests, "S32", "r")


class Whole(NamedTuple):
    """A file that was read: digest, size of the image in pixels, and its pixels or why there are none."""

    digest: bytes
    width: int
    height: int
    pixels: NDArray[np.uint8] | None
    reason: str


@dataclass(frozen=True)
class WholeReader:
    """Reads a file given by its path, for what is done with images besides packing.

    Attributes:
        preprocessing, limits: see `read_image`.
    """

    preprocessing: Preprocessing
    limits: Limits

    def __call__(self, path: str) -> Whole:
        """Return the file; a worker that takes too long is ended from outside."""
        digest = b"\0" * 32
        try:
            content = read_bytes(path, self.limits.max_bytes)
            digest = hashlib.sha256(content).digest()
            workers.set_time_limit(self.limits.seconds_for(len(content)))
            pixels = read_image(content, self.preprocessing, self.limits)
            return Whole(digest, *upright_size(content, self.limits.max_pixels), pixels, "")
        except ImageError as err:
            return Whole(digest, 0, 0, None, str(err))
        except MemoryError:
            return Whole(digest, 0, 0, None, "too large for the memory of this machine")


Task = tuple[str, int]  # the path of a file in the folder, and the row for its pixels
# Runs the tasks and yields (index, outcome) in any order, after the row was written.
Decode = Callable[[Decoder, workers.Items[Task]], Generator[tuple[int, Outcome]]]


def decode_here(worker_count: int | None) -> Decode:
    """Return a `Decode` with processes of this machine, by default as many as there are cores.

    Raises:
        ConfigError: `worker_count` is less than 1.
    """
    count = workers.available_cores() if worker_count is None else worker_count
    if count < 1:
        raise ConfigError(f"The number of workers must be 1 or more, not {count}.")

    def decode(decoder: Decoder, tasks: workers.Items[Task]) -> Generator[tuple[int, Outcome]]:
        for index, result in workers.run(
            decoder, tasks, seconds=decoder.limits.seconds_per_file, workers=count
        ):
            yield index, _outcome(result)

    return decode


def decode_on(cluster: Cluster) -> Decode:
    """Return a `Decode` on the nodes of a cluster, with a process per CPU.

    The pack gets the same bytes as from `decode_here`. The folder must be on a disk that all nodes see.
    Content that is packed already is decoded again, because its digests are on this machine; it is not
    written again.

    Raises:
        RunError: in the generator: a node does not see the folder, or the cluster failed.
    """

    def decode(decoder: Decoder, tasks: workers.Items[Task]) -> Generator[tuple[int, Outcome]]:
        folder = decoder.folder.absolute()
        cluster.check_sees(folder, folder)
        on_node = _OnNode(replace(decoder, folder=folder, known_digests=None))
        size = max(1, min(_MOST_FILES, _MOST_BYTES // decoder.shards.row_bytes))
        chunks = (
            [tasks[index][0] for index in range(start, min(start + size, len(tasks)))]
            for start in range(0, len(tasks), size)
        )
        for index, result in enumerate(itertools.chain.from_iterable(cluster.run(on_node, chunks))):
            yield index, _written(decoder, tasks[index], result)

    return decode


@dataclass(frozen=True)
class _OnNode:
    """Runs on a node: decodes files, given by path; a hang or crash loses only that file."""

    decoder: Decoder

    def __call__(self, paths: list[str]) -> list[Read | workers.Lost]:
        return [self._worker.call(path) for path in paths]

    @functools.cached_property
    def _worker(self) -> workers.PersistentWorker[str, Read]:
        return workers.PersistentWorker(self.decoder.read, seconds=self.decoder.limits.seconds_per_file)


def _written(decoder: Decoder, task: Task, result: Read | workers.Lost) -> Outcome:
    """Write the pixels that a node returned for a task; return the outcome.

    Raises:
        RunError: the node could not read a file that is readable here.
        OutputError: the row could not be written.
    """
    if isinstance(result, workers.Lost):
        return _outcome(result)
    path, row = task
    outcome, pixels = result
    if outcome.digest is None:
        # If a node lost the disk, its files would all be recorded as skipped.
        with contextlib.suppress(ImageError):
            read_bytes(f"{decoder.folder}/{path}", decoder.limits.max_bytes)
            raise RunError(
                f"A node of the cluster could not read {path} ({outcome.reason}), but this machine can. "
                f"Put {decoder.folder} on a disk that all nodes share."
            )
    elif pixels is not None and not decoder.is_packed(outcome.digest):
        decoder.shards.write(row, pixels)
    return outcome


def _outcome(result: Outcome | workers.Lost) -> Outcome:
    return Outcome(None, result.reason) if isinstance(result, workers.Lost) else result


class UntrustedDecoder:
    """Decodes one file at a time in another process: a hang or a crash loses only that file.

    Args:
        preprocessing: the size of the pixels, and how files are resized to it.
        limits: the largest file, image and time to accept.
        memory_bytes: address space of the process; macOS and Windows do not limit it.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: Limits = UPLOAD_LIMITS,
        memory_bytes: int = _UPLOAD_MEMORY_BYTES,
    ) -> None:
        self.preprocessing, self.limits = preprocessing, limits
        function = functools.partial(_decode, preprocessing, limits, memory_bytes)
        self._worker: workers.PersistentWorker[bytes, NDArray[np.uint8]] = workers.PersistentWorker(
            function, seconds=limits.seconds_per_file
        )

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Return the image in `content` as pixels (H, W, 3) in 0..255, sRGB.

        Raises:
            ImageError: the file cannot be used; the message is the plain reason.
        """
        if len(content) > self.limits.max_bytes:
            raise ImageError(f"more bytes than the limit of {self.limits.max_bytes:,}")
        decoded = self._worker.call(content)
        if isinstance(decoded, workers.Lost):
            raise ImageError(f"cannot be decoded: {decoded.reason}")
        return decoded

    def close(self) -> None:
        """End the process."""
        self._worker.close()


def _decode(
    preprocessing: Preprocessing, limits: Limits, memory_bytes: int, content: bytes
) -> NDArray[np.uint8]:
    workers.limit_memory(memory_bytes)
    workers.set_time_limit(limits.seconds_for(len(content)))
    return read_image(content, preprocessing, limits)
