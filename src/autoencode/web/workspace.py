"""What the page works on: a model, the images around it, the pictures added to it, and its threads.

Shapes: N images, D code size, H height, W width. Pixels are (H, W, 3) uint8 in 0..255, codes (D,) float32.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import is_locked
from autoencode.configuration import Distance, Split
from autoencode.data.decoders import UntrustedDecoder
from autoencode.data.pack import Pack, open_pack, pack_folder
from autoencode.errors import AutoencodeError, ModelFileError, PackError
from autoencode.index import open_index
from autoencode.index.memory import FileIndex, in_memory
from autoencode.models.model_file import MODEL_NAME, load_model
from autoencode.outliers.review import Decisions
from autoencode.pixels import to_float
from autoencode.training.run import RunSettings, is_run, read_run
from autoencode.training.train import pack_path_for
from autoencode.web.jobs import JobQueue

if TYPE_CHECKING:
    from autoencode.data.entries import Entry
    from autoencode.data.pack import Progress

SPLITS: tuple[Split, ...] = get_args(Split)
SHELF_BYTES = 128 * 1024**2  # two full shelves about double the 190 MB of a server without pictures
NAMED_BYTES = 512  # of the id, the name and the slot of a picture in memory
MOST_ANIMATIONS = 4  # one for each window that is likely to be open
DECISIONS_NAME = "decisions.jsonl"

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Kind = Literal["upload", "sample"]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class GoneError(AutoencodeError):
    """A picture that does not exist, or is no longer in memory."""


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

    def pixels(self, positions: Sequence[int]) -> Pixels:
        """Return pixels (B, H, W, 3) of the images at these positions."""
        return self.pack.pixels(self.rows[np.asarray(positions, np.int64)])


class Found(NamedTuple):
    """An image of a pack: its collection and its position there."""

    collection: Collection
    position: int


@dataclass(frozen=True)
class Held:
    """A picture in memory.

    Attributes:
        pixels: (H, W, 3) uint8, of the model's size.
        code: (D,) float32, encoded from the pixels or decoded to them.
        name: shown to people.
        kind: where it comes from.
    """

    pixels: Pixels
    code: Tensor
    name: str
    kind: Kind


class _Slot(NamedTuple):
    number: int
    name: str
    kind: Kind


class Shelf:
    """Pictures held in memory by an id; the longest unused are dropped for new ones.

    None is written to disk, so that a picture of a customer or a patient is gone when the page ends.

    Args:
        height, width: H, W of every picture.
        code_size: D.
        most_bytes: memory that pictures, codes and names may take.
    """

    def __init__(self, height: int, width: int, code_size: int, most_bytes: int = SHELF_BYTES) -> None:
        count = max(1, most_bytes // (height * width * 3 + code_size * 4 + NAMED_BYTES))
        # As an array each, pictures lay between the arrays that the decoder allocates and frees, and kept
        # those pages from going back to the system: 118 MB of samples took 466 MB. Blocks take 160 MB, and
        # `empty` takes memory only as it is written to.
        self._pixels = np.empty((count, height, width, 3), np.uint8)
        self._codes = np.empty((count, code_size), np.float32)
        self._free = list(reversed(range(count)))
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = threading.Lock()  # requests read in several threads

    def put(self, held: Held, name: str | None = None) -> str:
        """Keep a copy of a picture under its id, or under a new one; return the id."""
        # Random, not counted: an id of another person's upload cannot be guessed.
        name = name or f"u{secrets.token_urlsafe(12)}"
        with self._lock:
            if not self._free:
                self._remove(next(iter(self._slots)))
            index = self._free.pop()
            self._pixels[index], self._codes[index] = held.pixels, held.code.numpy()
            self._slots[name] = _Slot(index, held.name, held.kind)
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
            return Held(self._pixels[slot.number].copy(), code, slot.name, slot.kind)

    def remove(self, name: str) -> None:
        """Drop a picture, if it is held."""
        with self._lock:
            self._remove(name)

    def _remove(self, name: str) -> None:
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._free.append(slot.number)


class Workspace:
    """One model and the images around it.

    Args:
        model: a model file, or the run folder that holds one.
        index: an index of images by this model.
        pack: images to review, if not those of the index or of the training.

    Attributes:
        launch: part of the addresses of pictures, as a browser may still hold those of another launch.
        run: settings of the run; None for a model file alone.
        uploads, samples: pictures in memory: those given or in use, and samples that nobody has used yet.
        collections: by the letter of their ids.
        review: the images that the map and the outliers are about; None if there are none.
        training: the pack that the model was trained on; None if it is not known or has changed.
        measuring, layouts, animations: queues of jobs. Three, so that a map is there at once when the codes
            are known, however long images are scored, and so that an animation waits for neither.
    """

    def __init__(self, model: Path, index: Path | None = None, pack: Pack | None = None) -> None:
        self.launch = secrets.token_hex(4)
        self.path = model_file(model)
        self.folder = self.path.parent
        self.model = load_model(self.path)
        self.run: RunSettings | None = read_run(self.folder) if is_run(self.folder) else None
        self.index: FileIndex | None = None
        if index is not None:
            self.index = in_memory(open_index(index, self.model), "The page")
        self._compared: dict[Distance, FileIndex] = {}
        self.training = self._training_pack()
        self.collections = self._collections(pack)
        self.review = next(iter(self.collections.values()), None)
        preprocessing = self.model.preprocessing
        sizes = preprocessing.height, preprocessing.width, self.model.config.code_size
        # Samples come by the hundred when a slider moves. On one shelf they pushed out the upload that a
        # person was morphing.
        self.uploads, self.samples = Shelf(*sizes), Shelf(*sizes)
        self.decoder = UntrustedDecoder(preprocessing)
        # Two models in one folder have different outliers, so that each has a log of its own.
        named = DECISIONS_NAME if self.path.name == MODEL_NAME else f"{self.path.stem}-{DECISIONS_NAME}"
        self.decisions = Decisions(self.folder / named)
        # One thread for the requests: the model uses all cores already, so that two at once would both be
        # late. The event loop goes on serving pictures and progress meanwhile.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.measuring, self.layouts = JobQueue("measuring"), JobQueue("layout")
        self.animations = JobQueue("animation", MOST_ANIMATIONS)

    @property
    def name(self) -> str:
        """Name of the run, or of the model file."""
        return readable(self.folder.resolve().name if self.run else self.path.stem)

    async def on_model(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run a function that uses the model in the model's thread, one call at a time."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: function(*args, **kwargs)
        )

    def find(self, name: str) -> Held | Found:
        """Return a picture by its id.

        Raises:
            GoneError: no picture has this id, or it is no longer in memory.
        """
        letter, number = name[:1], name[1:]
        # Checked before int(), which also takes "+1", "1_0" and digits of other scripts, and whose time grows
        # with the square of a number's length.
        if letter in self.collections and is_position(number):
            collection = self.collections[letter]
            if int(number) < len(collection):
                return Found(collection, int(number))
        held = self.uploads.get(name) or self.samples.get(name)
        if held is None:
            raise GoneError("This picture is no longer in memory. Add it again.")
        return held

    def pixels(self, name: str) -> Pixels:
        """Return the pixels (H, W, 3) of a picture."""
        found = self.find(name)
        return found.pixels if isinstance(found, Held) else found.collection.pixels([found.position])[0]

    def code(self, name: str) -> Tensor:
        """Return the code (D,) of a picture; from then on a sample is kept as long as an upload."""
        found = self.find(name)
        if isinstance(found, Held):
            if found.kind == "sample" and self.uploads.get(name) is None:
                self.uploads.put(found, name)  # before it leaves the other, so that it is always found
                self.samples.remove(name)
            return found.code
        if found.collection.codes is not None:
            return torch.from_numpy(found.collection.codes[found.position])
        return self.model.encode(to_float(self.pixels(name)[None]))[0]

    def codes(self, names: Sequence[str]) -> Tensor:
        """Return the codes (N, D) of pictures."""
        return torch.stack([self.code(name) for name in names])

    def describe(self, name: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON can hold
        """Return the facts that the page shows beside a picture."""
        found = self.find(name)
        if isinstance(found, Held):
            return {"id": name, "name": found.name, "kind": found.kind, "label": None, "split": None, **more}
        entry = found.collection.entry(found.position)
        label = None if entry.label is None else readable(entry.label)
        known = {"name": readable(entry.path), "kind": "image", "label": label, "split": entry.split}
        return {"id": name, **known, **more}

    def hold(self, held: Held) -> dict[str, Any]:
        """Keep a picture in memory and describe it."""
        shelf = self.samples if held.kind == "sample" else self.uploads
        return self.describe(shelf.put(held))

    def compared_by(self, distance: Distance | None) -> FileIndex:
        """Return the index with its codes compared by a distance; None for its own."""
        assert self.index is not None
        distance = distance or self.index.distance
        # Kept: whitening and inverted lists are fitted to all codes anew for another distance.
        if distance not in self._compared:
            self._compared[distance] = self.index.with_distance(distance)
        return self._compared[distance]

    def close(self) -> None:
        """End the processes and the threads, without waiting for work; the pictures in memory are gone."""
        self.decoder.close()
        for queue in (self.measuring, self.layouts, self.animations):
            queue.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _training_pack(self) -> Pack | None:
        if self.run is None:
            return None
        try:
            pack = open_pack(self.run.pack)
        except PackError:  # moved or deleted: the tabs that need no images work without
            return None
        # A pack of other images would call normal what the model has never seen.
        return pack if pack.fingerprint == self.run.fingerprint else None

    def _collections(self, pack: Pack | None) -> dict[str, Collection]:
        """Return the collections, the one to review first: the pack given, the index, or the training."""
        found: list[Collection] = []
        if pack is not None:
            self.model.check_preprocessing(pack.preprocessing, pack.path)
            found.append(Collection("g", pack))
        if self.index is not None:
            # An index of pretrained features holds no codes of the model.
            is_of_codes = self.index.embedding == "code"
            codes = self.index.codes[self.index.entries.rows] if is_of_codes else None
            found.append(Collection("i", self.index.pack, codes))
        if not found and self.training is not None:
            found.append(Collection("t", self.training))
        return {collection.letter: collection for collection in found}


def is_position(text: str) -> bool:
    """Whether a text from an address is a whole number that can be a position in a pack."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def model_file(model: Path) -> Path:
    """Return the model file that a path leads to.

    Raises:
        ModelFileError: the path is a folder that holds no model.
    """
    path = model / MODEL_NAME
    if not model.is_dir() or path.is_file():
        return path if model.is_dir() else model
    if not is_run(model):
        raise ModelFileError(
            f"{model} is not a run folder. Give the folder that train wrote, or a model file."
        )
    if is_locked(model):
        raise ModelFileError(
            f"Training in {model} has not finished its first epoch. Wait, then open it again."
        )
    raise ModelFileError(f"Training in {model} stopped before the end of its first epoch. Run it again.")


def readable(path: str) -> str:
    """Return a path, or a part of one, as text; bytes that are not UTF-8 become replacement characters."""
    # JSON cannot hold the surrogates that Python has for such bytes.
    return path.encode(errors="surrogateescape").decode(errors="replace")


def open_workspace(
    model: Path,
    index: Path | None = None,
    images: Path | None = None,
    progress: Progress | None = None,
) -> Workspace:
    """Open a model and the images around it; a folder of images is packed first, beside the run.

    Args:
        model: a model file, or the run folder that holds one.
        index: an index of images by this model.
        images: a folder of images to review.
        progress: called with (files packed, files to pack).

    Raises:
        AutoencodeError: one of them cannot be used.
    """
    if images is None:
        return Workspace(model, index)
    preprocessing = load_model(model_file(model)).preprocessing
    # Never the pack of a training on the same folder: that one has to stay as the training saw it.
    named = pack_path_for(images, model, preprocessing)
    out = named.with_name(f"{named.stem}-review{named.suffix}")
    return Workspace(model, index, pack_folder(images, out, preprocessing, progress=progress))
