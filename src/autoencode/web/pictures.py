"""The pictures of the page: those of packs by their position, and those held in memory by an id.

Pictures in memory are those a person added and those a model drew. None is written to disk, so that a picture
of a customer or a patient is gone when the page ends.

Shapes: N images, D code size, H height, W width. Pixels are (H, W, 3) uint8 in 0..255, codes (D,) float32.
"""

from __future__ import annotations

import functools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.configuration import Split
from autoencode.data.pack import Pack

if TYPE_CHECKING:
    from autoencode.data.entries import Entry
    from autoencode.data.preprocessing import Preprocessing
    from autoencode.index.memory import FileIndex

SPLITS: tuple[Split, ...] = get_args(Split)
SHELF_BYTES = 128 * 1024**2  # two full shelves about double the 190 MB of a server without pictures
KEPT_CODES = 1024  # of pictures that are moved: 1 MB of 256 values each
FILE_BYTES = 64 * 1024**2  # of the uploads as they were given, re-encoded; about 200 photographs
NAMED_BYTES = 512  # of the id, the name and the slot of a picture in memory

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Kind = Literal["upload", "sample"]


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

    def without_folder(self) -> str | None:
        """Return what to do about the folder of the images if it is not there; None if it is."""
        if self.path(0) is None or self.pack.folder.is_dir():
            return None
        folder = readable(str(self.pack.folder))
        return (
            f"The folder {folder} is not there. You see small copies that were made of its pictures: "
            "put it back."
        )

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


def collections_of(
    given: Pack | None, index: FileIndex | None, training: Pack | None, preprocessing: Preprocessing | None
) -> dict[str, Collection]:
    """Return the collections by their letters, the one to review first: images given, indexed, or trained on.

    Images of another size than the model's, whose `preprocessing` is given, come last: it has no codes and
    no scores of them.
    """
    found = [] if given is None else [Collection("g", given)]
    trained = [] if training is None else [Collection("t", training)]
    if index is not None:
        # An index of pretrained features holds no codes of the model.
        codes = index.codes[index.entries.rows] if index.embedding == "code" else None
        indexed = Collection("i", index.pack, codes)
        is_alike = preprocessing in (None, indexed.pack.preprocessing)
        found += [indexed, *trained] if is_alike or found else [*trained, indexed]
    else:
        found += trained
    return {collection.letter: collection for collection in found}


@dataclass(frozen=True)
class Held:
    """A picture in memory.

    Attributes:
        pixels: (H, W, 3) uint8, of the model's size.
        code: (D,) float32, encoded from the pixels or decoded to them.
        name: shown to people.
        kind: where it comes from.
        file: an upload at up to 2560 pixels, re-encoded here; None for a sample, and once memory is needed.
        given: an upload as it was given, for a restorer alone; it is never sent. None as `file` is.
    """

    pixels: Pixels
    code: Tensor
    name: str
    kind: Kind
    file: bytes | None = None
    given: bytes | None = None


class _Slot(NamedTuple):
    number: int
    name: str
    kind: Kind


class Shelf:
    """Pictures held in memory by an id; the longest unused are dropped for new ones.

    Args:
        height, width: H, W of every picture.
        code_size: D.
        most_bytes: memory that pictures, codes and names may take.
        file_bytes: memory that uploads at their larger size may take; the oldest lose it first.
    """

    def __init__(
        self,
        height: int,
        width: int,
        code_size: int,
        most_bytes: int = SHELF_BYTES,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        count = max(1, most_bytes // (height * width * 3 + code_size * 4 + NAMED_BYTES))
        # As an array each, pictures lay between the arrays that the decoder allocates and frees, and kept
        # those pages from going back to the system: 118 MB of samples took 466 MB. Blocks take 160 MB, and
        # `empty` takes memory only as it is written to.
        self._pixels = np.empty((count, height, width, 3), np.uint8)
        self._codes = np.empty((count, code_size), np.float32)
        self._free = list(reversed(range(count)))
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._files: OrderedDict[str, tuple[bytes, bytes | None]] = OrderedDict()
        self._file_room = file_bytes
        self._lock = threading.Lock()  # requests read in several threads

    def put(self, held: Held, name: str | None = None) -> str:
        """Keep a copy of a picture under its id, or under a new one; return the id."""
        # Random, not counted: an id of another person's upload cannot be guessed.
        name = name or f"u{secrets.token_urlsafe(12)}"
        with self._lock:
            self._remove(name)  # two requests may move one sample at once
            if not self._free:
                self._remove(next(iter(self._slots)))
            index = self._free.pop()
            self._pixels[index], self._codes[index] = held.pixels, held.code.numpy()
            self._slots[name] = _Slot(index, held.name, held.kind)
            if held.file is not None:
                self._files[name] = held.file, held.given
                self._file_room -= len(held.file) + len(held.given or b"")
            while self._file_room < 0:
                self._forget_file(next(iter(self._files)))
        return name

    def get(self, name: str) -> Held | None:
        """Return a copy of a picture, or None if it is not held."""
        with self._lock:
            slot = self._slots.get(name)
            if slot is None:
                return None
            self._slots.move_to_end(name)
            # Copies: the slot can be given to another picture while a request still uses this one.
            code = torch.from_numpy(self._codes[slot.number].copy())
            pixels = self._pixels[slot.number].copy()
            file, given = self._files.get(name, (None, None))
            return Held(pixels, code, slot.name, slot.kind, file, given)

    def remove(self, name: str) -> None:
        """Drop a picture, if it is held."""
        with self._lock:
            self._remove(name)

    def _remove(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._free.append(slot.number)
            self._forget_file(name)

    def _forget_file(self, name: str) -> None:
        file, given = self._files.pop(name, (b"", None))
        self._file_room += len(file) + len(given or b"")


class KeptCodes:
    """Codes of pictures that were encoded: a morph asks for the same ones as often as it moves.

    The longest unused give way to new ones.

    Args:
        encode: returns the codes (N, D) of pictures by their ids; all that are missing are encoded together,
            which takes hardly longer than one.
        code_size: D.
        count: how many are kept.
    """

    def __init__(
        self, encode: Callable[[Sequence[str]], Tensor], code_size: int, count: int = KEPT_CODES
    ) -> None:
        self._encode = encode
        self._codes = np.empty((count, code_size), np.float32)  # a block, as in `Shelf`
        self._free = list(range(count))
        self._rows = OrderedDict[str, int]()

    def of(self, names: Sequence[str]) -> Vectors:
        """Return the codes (N, D) of pictures."""
        found = {name: self._codes[self._rows[name]] for name in names if name in self._rows}
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            found |= zip(missing, self._encode(missing).numpy(), strict=True)
        codes = np.stack([found[name] for name in names])  # copies: `_keep` may give a row to another picture
        for name, code in found.items():
            self._keep(name, code)
        return codes

    def _keep(self, name: str, code: Vectors) -> None:
        if name not in self._rows:
            row = self._free.pop() if self._free else self._rows.popitem(last=False)[1]
            self._rows[name], self._codes[row] = row, code
        self._rows.move_to_end(name)
