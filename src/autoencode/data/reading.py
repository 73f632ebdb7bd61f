"""Which contents a pack has: sorted SHA-256 digests in a file that all workers map, whatever their number.

A set of 60,000 digests takes 10 MB in each worker and has to be sent there; a map takes 2 MB once.

Read, hash and decode files in workers, each to its row.

Neither tasks nor outcomes are kept as objects, so that memory hardly grows with the number of files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import make_folder, write_bytes
from autoencode.data import workers
from autoencode.data.decoding import read_bytes
from autoencode.data.preprocessing import read_image
from autoencode.errors import ImageError

if TYPE_CHECKING:
    from autoencode.data.manifest import Entries
    from autoencode.data.preprocessing import Limits, Preprocessing
    from autoencode.data.shards import Shards


@dataclass(frozen=True)
class KnownDigests:
    """A set of digests; only its path is sent to another process.

    Attributes:
        path: the file; None for the empty set.
    """

    path: Path | None = None

    @classmethod
    def written(cls, path: Path, digests: NDArray[np.bytes_]) -> KnownDigests:
        """Return the set of `digests` (N,), 32 bytes each, kept in the file `path`.

        Raises:
            OutputError: it cannot be written.
        """
        if not len(digests):
            return cls()
        write_bytes(path, np.unique(digests).tobytes())
        return cls(path)

    def __contains__(self, digest: bytes) -> bool:
        """Whether a digest of 32 bytes is one of them."""
        if self.path is None:
            return False
        place = int(np.searchsorted(self._sorted, np.array(digest, "S32")))
        return place < len(self._sorted) and self._sorted[place : place + 1].tobytes() == digest

    @functools.cached_property
    def _sorted(self) -> NDArray[np.bytes_]:
        assert self.path is not None
        return np.memmap(self.path, "S32", "r")


class _Outcome(NamedTuple):
    """What a worker found: the digest of what it could read, and a reason if the file is unusable."""

    digest: bytes | None
    reason: str | None = None


@dataclass(frozen=True)
class Decoder:
    """What a worker does with (path, row): read and hash; decode and write what is not yet known."""

    folder: Path
    preprocessing: Preprocessing
    limits: Limits
    shards: Shards
    known: KnownDigests = field(default_factory=KnownDigests)

    def __call__(self, task: tuple[str, int]) -> _Outcome:
        """Do one task.

        Raises:
            OutputError: the row could not be written.
        """
        path, row = task
        digest = None
        try:
            content = read_bytes(f"{self.folder}/{path}", self.limits.max_bytes)
            digest = hashlib.sha256(content).digest()
            if digest not in self.known:
                workers.allow(self.limits.seconds_for(len(content)))
                self.shards.write(row, read_image(content, self.preprocessing, self.limits))
        except ImageError as err:
            return _Outcome(digest, str(err))
        except MemoryError:
            return _Outcome(digest, "too large for the memory of this machine")
        return _Outcome(digest)


class _Tasks:
    """(path, row) of the files to read, each made when it is asked for, as is the shard it goes to."""

    def __init__(
        self, listed: Entries, chosen: NDArray[np.int64], rows: NDArray[np.int64], shards: Shards
    ) -> None:
        self._listed, self._chosen, self._rows, self._shards = listed, chosen, rows, shards
        numbers, counts = np.unique(rows // shards.rows_per_shard, return_counts=True)
        self._left = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._to_reserve, self._used = dict(self._left), set[int]()

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int, /) -> tuple[str, int]:
        row = int(self._rows[index])
        shard = row // self._shards.rows_per_shard
        if count := self._to_reserve.pop(shard, 0):
            self._shards.reserve(shard * self._shards.rows_per_shard, count)
        return self._listed.path(int(self._chosen[index])), row

    def done(self, index: int, *, is_usable: bool) -> None:
        """Take note that a file was read; a shard all of whose files were is finished, if any can be used."""
        shard = int(self._rows[index]) // self._shards.rows_per_shard
        self._left[shard] -= 1
        if is_usable:
            self._used.add(shard)
        if not self._left[shard] and shard in self._used:
            self._shards.finish([shard * self._shards.rows_per_shard])


def read_all(
    listed: Entries,
    chosen: NDArray[np.int64],
    rows: NDArray[np.int64],
    decoder: Decoder,
    known: NDArray[np.bytes_],
    worker_count: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Let workers read files, and set in `listed` what they find. Each shard is finished once it is full.

    Args:
        listed: entries, in which those to read are unread.
        chosen: which (T,) to read.
        rows: where the pixels of each go (T,), ascending, from the first row of a shard.
        decoder: what the workers do.
        known: digests (K,), 32 bytes each, of what is in the pack.
        worker_count: processes.
        progress: called with (files read, files to read).

    Raises:
        OutputError: a row could not be written.
        AutoencodeError: no worker could be started.
    """
    report = progress or (lambda done, total: None)
    report(0, len(chosen))
    if not len(chosen):
        return
    make_folder(decoder.shards.folder)
    decoder = replace(decoder, known=KnownDigests.written(decoder.shards.known, known))
    tasks = _Tasks(listed, chosen, rows, decoder.shards)
    results = workers.run(decoder, tasks, seconds=decoder.limits.seconds_per_file, workers=worker_count)
    with contextlib.closing(results):
        for done, (index, result) in enumerate(results, 1):
            outcome = _Outcome(None, result.reason) if isinstance(result, workers.Lost) else result
            listed.set_content(int(chosen[index]), outcome.digest, outcome.reason)
            tasks.done(index, is_usable=outcome.reason is None)
            report(done, len(chosen))
