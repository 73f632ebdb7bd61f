"""Batches of a pack, a function of (seed, epoch, step, rank) alone: there is no state to restore.

Several processes compute a batch together, each its local batch, which is a run of images of the batch.

On a CPU a thread reads and converts one batch ahead. On a GPU images stay bytes until they are there
(see `DeviceImages`).

Shapes: B batch, H height, W width. Batches are (B, 3, H, W) float32 in [0, 1], channels last in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.pixels import to_float

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autoencode.data.pack import Pack, Progress

# Bytes of pixels that are copied to a device at once.
_CHUNK_BYTES = 64 * 1024**2

# Asking for the next shards of a remote pack looks at the disk; not at every step.
STEPS_BETWEEN_FETCHES = 16


class LocalBatch(NamedTuple):
    """The part of a batch that one process computes.

    Attributes:
        first: position of its first image in the batch.
        end: one past the position of its last image.
        batch_size: images in the whole batch.
        counted: images that count: all of its own, or 0 if a small batch left it none. It then computes
            the first image of the batch with weight 0, so that every process takes every step.
    """

    first: int
    end: int
    batch_size: int
    counted: int

    @property
    def positions(self) -> slice:
        """Positions of its images in the batch."""
        return slice(self.first, self.end)

    @property
    def weight(self) -> float:
        """Factor of its mean in the mean over the batch, in [0, 1]."""
        return self.counted / self.batch_size

    def strided(self, number: int, count: int) -> tuple[slice, LocalBatch]:
        """Choose each image whose position in the batch is `number` modulo `count`, as a batch of its own.

        Returns:
            The indices of the chosen among the images of this local batch, and their part of the new batch.
        """
        start = (number - self.first) % count
        images = len(range(start, self.counted, count))
        size = len(range(number, self.batch_size, count))
        if not images:
            return slice(0, 1), LocalBatch(0, 1, size, 0)
        first = (self.first + start) // count
        return slice(start, self.counted, count), LocalBatch(first, first + images, size, images)

    def micro_batches(self, count: int) -> list[LocalBatch]:
        """Divide it into at most `count` parts whose sizes differ by one image at most."""
        if not self.counted:
            return [self]
        count = min(count, self.counted)
        ends = [self.first + self.counted * number // count for number in range(count + 1)]
        return [LocalBatch(first, end, self.batch_size, end - first) for first, end in pairwise(ends)]


def local_batch(batch_size: int, rank: int, world_size: int) -> LocalBatch:
    """Return the local batch of process `rank` of `world_size`; sizes differ by one image at most."""
    first, end = batch_size * rank // world_size, batch_size * (rank + 1) // world_size
    if first == end:
        return LocalBatch(0, 1, batch_size, 0)
    return LocalBatch(first, end, batch_size, end - first)


def random_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part, and on nothing else."""
    # A hash makes the seed: sums of small numbers as seeds would give correlated streams, and equal ones for
    # (1, 2) and (2, 1).
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches that show each of `images` once; the last may be smaller.

    A last batch of a single image is joined to the one before: batch normalisation needs two values for a
    variance, and a step on one image would count as much as one on a whole batch.
    """
    whole, left = divmod(images, batch_size)
    return whole + (left > 1 or (left == 1 and whole == 0))


def batch_slice(step: int, images: int, batch_size: int) -> slice:
    """Return the slice of `images` in the batch of a step; the last batch has all that are left."""
    is_last = step == steps_per_epoch(images, batch_size) - 1
    return slice(step * batch_size, images if is_last else (step + 1) * batch_size)


def batch_slices(images: int, batch_size: int) -> list[slice]:
    """Return the `batch_slice` of every step."""
    return [batch_slice(step, images, batch_size) for step in range(steps_per_epoch(images, batch_size))]


def epoch_order(
    rows: NDArray[np.int64], seed: int, epoch: int, rows_per_shard: int = 1, window: int = 0
) -> NDArray[np.int64]:
    """Return `rows` in the random order of this epoch.

    Args:
        rows: (N,).
        seed, epoch: the order is a function of both.
        rows_per_shard: rows stored together on disk or in object storage.
        window: rows that may be in use at once, a whole number of shards; 0 for all. Shards of a window are
            drawn without replacement and their rows shuffled, until no shard is left.
    """
    generator = np.random.Generator(np.random.Philox(random_seed("order", seed, epoch)))
    if not window:
        return generator.permutation(rows)
    shards = rows // rows_per_shard
    drawn = generator.permutation(np.unique(shards))
    turn = np.empty(int(drawn.max(initial=-1)) + 1, np.int64)
    turn[drawn] = np.arange(len(drawn)) // (window // rows_per_shard)
    mixed = generator.permutation(len(rows))
    # A stable sort by window keeps the order of the permutation within each window.
    return rows[mixed[np.argsort(turn[shards[mixed]], kind="stable")]]


class DeviceImages:
    """Images of a pack as batches on a GPU.

    All pixels are kept there as bytes where they fit, and a batch is gathered there. Otherwise the pixels of
    a batch are copied one batch ahead, as bytes as well, beside the computation.

    Args:
        pack: where the pixels are.
        rows: (N,) rows of the pack that will be asked for, in any order.
        device: the GPU. Any other device works, and gains nothing.
        room: bytes that may be kept there; 0 for none.
    """

    def __init__(self, pack: Pack, rows: NDArray[np.int64], device: torch.device, room: int) -> None:
        import torch

        self._pack, self._rows, self._device = pack, np.unique(rows), device
        self._pixels: Tensor | None = None
        # A stream of its own lets a copy run beside the computation.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        shape = (pack.preprocessing.height, pack.preprocessing.width, 3)
        row_bytes = math.prod(shape)
        if len(self._rows) * row_bytes <= room:
            self._pixels = torch.empty((len(self._rows), *shape), dtype=torch.uint8, device=device)
            step = max(1, _CHUNK_BYTES // row_bytes)
            for start in range(0, len(self._rows), step):
                if pack.window:
                    pack.prefetch(self._rows[start:][: 2 * pack.window])
                chunk = torch.from_numpy(pack.pixels(self._rows[start : start + step]))
                self._pixels[start : start + step] = chunk.to(device)

    @property
    def is_resident(self) -> bool:
        """Whether all pixels are on the device."""
        return self._pixels is not None

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Begin to read the images of `rows` (B,), from any thread; `finish` takes the result."""
        import torch

        if self._pixels is not None:
            return self._pinned(torch.from_numpy(np.searchsorted(self._rows, rows)))
        pixels = self._pinned(torch.from_numpy(self._pack.pixels(rows)))
        with torch.cuda.stream(self._stream):  # does nothing without a stream
            return pixels.to(self._device, non_blocking=True)

    def finish(self, found: Tensor) -> Tensor:
        """Return the batch of what `read` returned."""
        import torch

        if self._pixels is not None:
            return to_float(self._pixels.index_select(0, found.to(self._device, non_blocking=True)))
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            found.record_stream(current)  # its memory was given out for the other stream
        return to_float(found)

    def _pinned(self, values: Tensor) -> Tensor:
        """Return values from where a copy to the GPU runs beside the computation."""
        import torch

        if self._stream is None:
            return values
        with torch.cuda.device(self._device):  # pinning in another thread would open GPU 0 as well
            return values.pin_memory()


def batches(
    pack: Pack,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    start: int = 0,
    stop: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """Yield images of `rows` in the order given; the next batch is read while this one is in use.

    Args:
        pack: where the pixels are.
        rows: rows of the pack.
        batch_size: B; the last batch may be smaller, or one image larger (see `steps_per_epoch`).
        start: first batch to yield, counted from 0.
        stop: the batch to end before; by default none is left out.
        progress: called with (images done, images in all) when the next batch is asked for.
    """
    done = start * batch_size
    for images, _ in local_batches(pack, rows, batch_size, 0, 1, start=start, stop=stop):
        yield images
        done += len(images)
        if progress:
            progress(done, len(rows))


def local_batches(
    pack: Pack,
    rows: NDArray[np.int64],
    batch_size: int,
    rank: int,
    world_size: int,
    *,
    start: int = 0,
    stop: int | None = None,
    device: DeviceImages | None = None,
) -> Iterator[tuple[Tensor, LocalBatch]]:
    """Yield the images of process `rank` of `world_size` for each batch, with their positions in the batch.

    Other arguments are those of `batches`. The local batches of all processes together are the batch of one
    process at the same step.

    Args:
        device: the images of the pack on a GPU, for batches there; None for batches on the CPU.
    """
    fetch: Callable[[NDArray[np.int64]], Any] = (
        device.read if device else lambda rows: to_float(pack.pixels(rows))
    )
    fetches = pack.window and not (device and device.is_resident)
    steps = steps_per_epoch(len(rows), batch_size)
    stop = steps if stop is None else stop

    def read(step: int) -> tuple[Tensor, LocalBatch]:
        batch = rows[batch_slice(step, len(rows), batch_size)]
        if fetches and (step - start) % STEPS_BETWEEN_FETCHES == 0:
            pack.prefetch(rows[step * batch_size :][: 2 * pack.window])
        local = local_batch(len(batch), rank, world_size)
        return fetch(batch[local.positions]), local

    # One thread, one batch ahead: reading overlaps with computing, in the memory of two batches.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        upcoming = reader.submit(read, start) if start < stop else None
        for step in range(start, stop):
            assert upcoming is not None
            found, local = upcoming.result()
            upcoming = reader.submit(read, step + 1) if step + 1 < stop else None
            yield device.finish(found) if device else found, local
