"""The images of a pack as the page knows them: each by its position, and where one is in another pack.

Shapes: N images, H height, W width, D code dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from autoencode.configuration import Split
from autoencode.data.pack import Pack
from autoencode.web.shelf import Pixels

if TYPE_CHECKING:
    from autoencode.data.entries import Entry

SPLITS: tuple[Split, ...] = get_args(Split)

Vectors = NDArray[np.float32]


class Collection:
    """The images of a pack, each known by its position in the pack's entries.

    Args:
        letter: first letter of the ids of its images.
        pack: the images.
        codes: (N, D), the code of each entry; None before they are computed.
    """

    def __init__(self, letter: str, pack: Pack, codes: Vectors | None = None) -> None:
        self.letter, self.pack, self.codes = letter, pack, codes
        self.rows = pack.rows()

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def splits(self) -> NDArray[np.int8]:
        """The split of each image, (N,), as its position in `SPLITS`."""
        # At its first use: one digest per image, too slow for the start of a page on a large pack.
        splits = np.zeros(len(self), np.int8)
        for number, split in enumerate(SPLITS):
            splits[self.pack.entries.in_split(split)] = number
        return splits

    def entry(self, position: int) -> Entry:
        """Return the path, label and split of one image."""
        return self.pack.entries[position]

    def path(self, position: int) -> Path | None:
        """Return the file of one image; None where only the pack is at hand."""
        folder = self.pack.folder
        return folder / self.pack.entries[position].path if folder.is_absolute() else None

    def pixels(self, positions: Sequence[int]) -> Pixels:
        """Return pixels (B, H, W, 3) of the images at these positions."""
        return self.pack.pixels(self.rows[np.asarray(positions, np.int64)])


class Found(NamedTuple):
    """An image of a pack: its collection and its position there."""

    collection: Collection
    position: int


def positions_in(other: Collection, one: Collection) -> NDArray[np.int64]:
    """Return where each image of `one` is in `other`, (N,): the same file and content; -1 if nowhere."""
    if one.pack.folder != other.pack.folder:
        return np.full(len(one), -1)
    known = {(entry.path, entry.sha256): at for at, entry in enumerate(other.pack.entries)}
    found = (known.get((entry.path, entry.sha256), -1) for entry in one.pack.entries)
    return np.fromiter(found, np.int64, len(one))


def readable(path: str) -> str:
    """Return a path, or a part of one, as text; bytes that are not UTF-8 become replacement characters."""
    # JSON cannot hold the surrogates that Python has for such bytes.
    return path.encode(errors="surrogateescape").decode(errors="replace")


def is_position(text: str) -> bool:
    """Whether a text from an address is a whole number that can be a position in a pack."""
    return text.isascii() and text.isdecimal() and len(text) < 10
