"""Which contents a pack has: sorted SHA-256 digests in a file that all workers map, whatever their number.

A set of 60,000 digests takes 10 MB in each worker and has to be sent there; a map takes 2 MB once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoencode.files import write_bytes


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
