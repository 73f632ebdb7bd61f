"""Pictures that are held in memory while the page runs: uploads and samples. None touches the disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PREFIX = "u"
HELD_BYTES = 256 * 1024**2

# Uploads at once, and further ones a second: a person dropping a folder stays below it.
UPLOADS_AT_ONCE, UPLOADS_PER_SECOND = 60, 4.0


@dataclass(frozen=True)
class Held:
    """One picture.

    Attributes:
        pixels: (H, W, 3) uint8, of the model's size.
        code: (D,), what the model makes of it, or what it was decoded from.
        name: what to call it.
        kind: where it comes from.
    """

    pixels: NDArray[np.uint8]
    code: Tensor
    name: str
    kind: Literal["upload", "sample"]


class Uploads:
    """Pictures by an id that says nothing about them; the longest unused go when there are too many.

    Args:
        most_bytes: of pixels and codes together.
    """

    def __init__(self, most_bytes: int = HELD_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, held: Held) -> str:
        """Keep a picture and return its id."""
        name = PREFIX + secrets.token_urlsafe(12)
        with self._lock:
            self._held[name] = held
            self.bytes += _size(held)
            while self.bytes > self.most_bytes and len(self._held) > 1:
                self.bytes -= _size(self._held.popitem(last=False)[1])
        return name

    def get(self, name: str) -> Held | None:
        """Return a picture, or None where it is not held, or no longer."""
        with self._lock:
            if name in self._held:
                self._held.move_to_end(name)
            return self._held.get(name)


class Allowance:
    """So many at once, and so many a second after that (a token bucket).

    Args:
        most: at once.
        per_second: what comes back.
    """

    def __init__(self, most: int = UPLOADS_AT_ONCE, per_second: float = UPLOADS_PER_SECOND) -> None:
        self.most, self.per_second = most, per_second
        self._left, self._at = float(most), time.monotonic()

    def take(self) -> float:
        """Take one; return 0, or the seconds to wait where none is left."""
        now = time.monotonic()
        self._left = min(self.most, self._left + (now - self._at) * self.per_second)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.per_second
        self._left -= 1
        return 0.0


def _size(held: Held) -> int:
    return held.pixels.nbytes + held.code.nbytes
