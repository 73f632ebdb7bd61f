"""Pictures that are held in memory while the page runs: uploads and samples. None touches the disk."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PREFIX = "u"
HELD_BYTES = 128 * 1024**2  # of each of the two kinds
NAMED_BYTES = 512  # what the id of a picture takes, its name, and its place in the order

# Uploads at once, and further ones a second: a person dropping a folder stays below it.
UPLOADS_AT_ONCE, UPLOADS_PER_SECOND = 60, 4.0

Kind = Literal["upload", "sample"]


@dataclass(frozen=True)
class Held:
    """One picture.

    Attributes:
        pixels: (H, W, 3) uint8, of the model's size.
        code: (D,) float32, what the model makes of it, or what it was decoded from.
        name: what to call it.
        kind: where it comes from.
    """

    pixels: NDArray[np.uint8]
    code: Tensor
    name: str
    kind: Kind


class Uploads:
    """Pictures by an id that says nothing about them; the longest unused go when there are too many.

    Samples are drawn by the hundred, so that those which nobody has used yet have bounds of their own: they
    push out no upload, and no sample that is worked with.

    Args:
        height, width: of the pictures.
        code_size: D.
        most_bytes: that pictures in use take, and again those that were only drawn.
    """

    def __init__(self, height: int, width: int, code_size: int, most_bytes: int = HELD_BYTES) -> None:
        self._used = _Shelf(height, width, code_size, most_bytes)
        self._drawn = _Shelf(height, width, code_size, most_bytes)
        self._lock = threading.Lock()

    def put(self, held: Held) -> str:
        """Keep a copy of a picture and return its id."""
        name = PREFIX + secrets.token_urlsafe(12)
        with self._lock:
            (self._drawn if held.kind == "sample" else self._used).put(name, held)
        return name

    def get(self, name: str) -> Held | None:
        """Return a copy of a picture, or None where it is not held, or no longer."""
        with self._lock:
            return self._used.get(name) or self._drawn.get(name)

    def use(self, name: str) -> None:
        """Keep a sample as long as uploads are kept, from now on."""
        with self._lock:
            drawn = self._drawn.get(name)
            if drawn is not None:
                self._drawn.remove(name)
                self._used.put(name, drawn)


class _Place(NamedTuple):
    slot: int
    name: str
    kind: Kind


class _Shelf:
    """So many pictures of one size, in one block of pixels and one of codes.

    As arrays of their own they lay between those that the model works with, which then could not go back to
    the system: pictures of 256 MB kept 1.9 GB. Of a block, the system gives what has been written to.
    """

    def __init__(self, height: int, width: int, code_size: int, most_bytes: int) -> None:
        slots = max(1, most_bytes // (height * width * 3 + code_size * 4 + NAMED_BYTES))
        self._pixels = np.empty((slots, height, width, 3), np.uint8)
        self._codes = np.empty((slots, code_size), np.float32)
        self._free = list(reversed(range(slots)))
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def put(self, name: str, held: Held) -> None:
        if not self._free:
            self.remove(next(iter(self._places)))
        slot = self._free.pop()
        self._pixels[slot], self._codes[slot] = held.pixels, held.code.numpy()
        self._places[name] = _Place(slot, held.name, held.kind)

    def get(self, name: str) -> Held | None:
        place = self._places.get(name)
        if place is None:
            return None
        self._places.move_to_end(name)
        code = torch.from_numpy(self._codes[place.slot].copy())
        return Held(self._pixels[place.slot].copy(), code, place.name, place.kind)

    def remove(self, name: str) -> None:
        self._free.append(self._places.pop(name).slot)


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
