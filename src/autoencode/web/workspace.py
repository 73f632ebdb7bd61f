"""The workspace of the page: a model, an index, the images around them, added pictures, and threads.

Each of them may be missing: an index of pretrained features is searched and mapped without a model, and a
page of nothing offers to make both.

Shapes: N images, D code size, H height, W width. Pixels are (H, W, 3) uint8 in 0..255, codes (D,) float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autoencode.atomic import is_locked
from autoencode.configuration import Distance
from autoencode.data.decoders import UntrustedDecoder
from autoencode.data.decoding import read_bytes
from autoencode.data.pack import Pack, open_known_pack, pack_folder
from autoencode.data.preprocessing import Preprocessing, read_image
from autoencode.errors import AutoencodeError, ImageError, ModelFileError, PackError
from autoencode.index import open_index, store_at
from autoencode.index.memory import FileIndex, in_memory
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.model_file import MODEL_NAME, load_any
from autoencode.models.restorer import Restorer
from autoencode.outliers.review import Decisions
from autoencode.pixels import to_float, to_pixels
from autoencode.training.run import RunSettings, is_run, read_run
from autoencode.training.train import pack_path_for
from autoencode.web.jobs import JobQueue, Together, one_core
from autoencode.web.originals import Originals
from autoencode.web.pictures import (
    Found,
    Held,
    KeptCodes,
    Pixels,
    Shelf,
    Vectors,
    collections_of,
    is_position,
    positions_in,
    readable,
)
from autoencode.web.results import FOLDER_NAME, Results
from autoencode.web.tags import TAGS_NAME, Tags

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.outliers.review import Ranking

MOST_RESTORED = 2  # pictures before and after, 400 MB of the largest
MOST_ANIMATIONS = 4  # one for each window that is likely to be open
DECISIONS_NAME = "decisions.jsonl"
INDEX_NAME = "search-index"  # in a run folder: the index that the page makes of its images

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class GoneError(AutoencodeError):
    """A picture that does not exist, or is no longer in memory."""


class NoModelError(AutoencodeError):
    """A model was asked for on a page without one."""


class Workspace:
    """A model, an index and the images around them; each may be missing.

    Args:
        model: a model file, or the run folder that holds one.
        index: an index of images, by this model or by none; the default is the one in the run folder.
        pack: images to review, if not those of the index or of the training.

    Attributes:
        launch: part of the addresses of pictures, as a browser may still hold those of another launch.
        folder: the run, or the index of a page without a model; where decisions are kept.
        restorer: the model, if it is one without codes.
        run: settings of the run; None for a model file alone.
        uploads, samples: pictures in memory: those given or in use, and samples that nobody has used yet.
        collections: by the letter of their ids.
        review: the images that the page is about; None if there are none.
        training: the pack that the model was trained on; None if it is not known or has changed.
        can_start: whether other runs may be opened, and trainings started, from the page.
        tags: what a person called the images under review.
        results: of long work, kept for the next start.
        encoding, decoding: ids of pictures to codes (N, D), a code (D,) to pixels (H, W, 3); requests that
            ask at once are answered together.
        searching: the thread that searches the index, which waits for no morph.
        compared: the index by each distance that was asked for: whitening and lists are fitted to all codes.
        ranking: of images under review by their outlier scores, the one that was asked for last.
        selections: of images under review, a bit each, by their hash; the oldest are dropped.
        preprocessing: how an image becomes the one that is shown as the model's view.
        measuring, comparing, layouts, sliding, restoring, animations: queues of jobs: none waits long.
    """

    def __init__(
        self, model: Path | None = None, index: Path | None = None, pack: Pack | None = None
    ) -> None:
        self.launch = secrets.token_hex(4)
        self.path = None if model is None else model_file(model)
        self.folder = (index or Path()) if self.path is None else self.path.parent
        loaded = None if self.path is None else load_any(self.path)
        self._model = loaded if isinstance(loaded, Autoencoder) else None
        self.restorer = loaded if isinstance(loaded, Restorer) else None
        is_of_run = self.path is not None and is_run(self.folder)
        self.run: RunSettings | None = read_run(self.folder) if is_of_run else None
        if index is None and is_of_run and store_at(self.folder / INDEX_NAME):
            index = self.folder / INDEX_NAME
        self.index: FileIndex | None = None
        if index is not None:
            self.index = in_memory(open_index(index, self._model), "The page")
        self.compared: dict[Distance, FileIndex] = {}
        self.index_decoder: UntrustedDecoder | None = None
        self.training = self._training_pack()
        if self._model is not None and pack is not None:
            self._model.check_preprocessing(pack.preprocessing, pack.path)
        own = None if self._model is None else self._model.preprocessing
        self.collections = collections_of(pack, self.index, self.training, own)
        self.review = next(iter(self.collections.values()), None)
        self.preprocessing = Preprocessing() if loaded is None else loaded.preprocessing
        if loaded is None and self.review is not None:
            self.preprocessing = self.review.pack.preprocessing
        code_size = self._model.config.code_size if self._model else 0
        sizes = self.preprocessing.height, self.preprocessing.width, code_size
        # Samples come by the hundred when a slider moves. On one shelf they pushed out the upload that a
        # person was morphing.
        self.uploads, self.samples = Shelf(*sizes), Shelf(*sizes)
        self.decoder, self.originals = UntrustedDecoder(self.preprocessing), Originals(self.preprocessing)
        # Two models in one folder have different outliers, so that each has a log of its own.
        prefix = f"{self.path.stem}-" if self.path and self.path.name != MODEL_NAME else ""
        self.decisions = Decisions(self.folder / f"{prefix}{DECISIONS_NAME}")
        self.tags = Tags(self.folder / f"{prefix}{TAGS_NAME}")
        self.results = Results(self.folder / f"{prefix}{FOLDER_NAME}")
        self.can_start = False
        self.selections = OrderedDict[str, bytes]()
        self.ranking: Ranking | None = None
        self._modelling, self.searching = one_core("model"), one_core("search")
        self._encoded = KeptCodes(self._encode, code_size)
        self.encoding = Together(self._codes_of_each, self._modelling)
        self.decoding = Together(self._decode, self._modelling)
        self.measuring, self.comparing = JobQueue("measuring"), JobQueue("comparing")
        self.layouts, self.sliding = JobQueue("layout"), JobQueue("sliding")
        self.restoring = JobQueue("restoring", MOST_RESTORED)
        self.animations = JobQueue("animation", MOST_ANIMATIONS)

    @property
    def model(self) -> Autoencoder:
        """The autoencoder.

        Raises:
            NoModelError: there is none.
        """
        if self._model is None:
            raise NoModelError("This page has no model for that. Open the run folder of a training.")
        return self._model

    @property
    def has_model(self) -> bool:
        """Whether there is an autoencoder."""
        return self._model is not None

    @property
    def name(self) -> str:
        """Name of the run, the model file or the index."""
        if self.path is not None and self.run is None:
            return readable(self.path.stem)
        return readable(self.folder.resolve().name) if self.review or self.run else "autoencode"

    async def on_model(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run a function that uses the model in the model's thread, one call at a time."""
        return await asyncio.get_running_loop().run_in_executor(
            self._modelling, lambda: function(*args, **kwargs)
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
        # Samples first: one that `code` moves meanwhile is in both, and then among the uploads.
        held = self.samples.get(name) or self.uploads.get(name)
        if held is None:
            what = (
                "no longer in memory. Add it again" if letter == "u" else "not among those that are open here"
            )
            raise GoneError(f"This picture is {what}.")
        return held

    def pixels(self, name: str) -> Pixels:
        """Return the pixels (H, W, 3) of a picture as the model sees it."""
        found = self.find(name)
        if isinstance(found, Held):
            return found.pixels
        pixels = found.collection.pixels([found.position])[0]
        # Images of an index that was made without this model have another size.
        is_of_model = found.collection.pack.preprocessing == self.preprocessing
        return pixels if is_of_model else self.resized(name, self.decoder, pixels)

    def resized(self, name: str, decoder: UntrustedDecoder, pixels: Pixels) -> Pixels:
        """Return a picture with the preprocessing of a decoder: from its file, else from other pixels."""
        held, path = self.find(name), self.file(name)
        with contextlib.suppress(ImageError):
            if isinstance(held, Held) and held.file is not None:
                return decoder.decode(held.file)
            if path is not None:
                return decoder.decode(read_bytes(path, decoder.limits.max_bytes))
        return read_image(Image.fromarray(pixels), decoder.preprocessing)

    def indexed(self, name: str) -> int | None:
        """Return the position in the index of a picture; None if it is not there."""
        found = self.find(name)
        if isinstance(found, Held) or self.index is None:
            return None
        if found.collection.letter == "i":
            return found.position
        twin = self._twins[found.position] if found.collection is self.review else -1
        return None if twin < 0 else int(twin)

    def vectors(self) -> Vectors | None:
        """Return the vectors (N, D) of all images under review in an index without a model, or None."""
        if self.index is None or self.review is None or self.index.embedding == "code":
            return None
        rows = self.index.entries.rows
        if self.review.letter == "i":
            return self.index.codes[rows]
        return self.index.codes[rows[self._twins]] if (self._twins >= 0).all() else None

    @property
    def index_name(self) -> str:
        """The name, for people, of what the images of the index are compared by."""
        return "" if self.index is None else self.index.encoder_name.removeprefix("compared by ")

    def of_index(self, position: int) -> str:
        """Return the id of an image of the index: that of the images under review, if it is among them."""
        at = self._own.get(position)
        return f"i{position}" if at is None or self.review is None else f"{self.review.letter}{at}"

    @functools.cached_property
    def _twins(self) -> NDArray[np.int64]:
        """Where each image under review is in the index, (N,), or -1."""
        assert self.review is not None
        return positions_in(self.collections["i"], self.review)

    @functools.cached_property
    def _own(self) -> dict[int, int]:
        is_apart = self.review is not None and self.review.letter != "i"
        return {int(there): at for at, there in enumerate(self._twins if is_apart else ()) if there >= 0}

    def file(self, name: str) -> Path | None:
        """Return the image file of a picture; None for one in memory, and for images out of storage."""
        found = self.find(name)
        return None if isinstance(found, Held) else found.collection.path(found.position)

    def code(self, name: str) -> Tensor:
        """Return the code (D,) of a picture; from then on a sample is kept as long as an upload."""
        return self.codes([name])[0]

    def codes(self, names: Sequence[str]) -> Tensor:
        """Return the codes (N, D) of pictures; as `code`."""
        known = {name: code for name in names if (code := self._known_code(name)) is not None}
        encoded = [name for name in names if name not in known]
        known |= zip(encoded, torch.from_numpy(self._encoded.of(encoded)), strict=True) if encoded else ()
        return torch.stack([known[name] for name in names])

    def _known_code(self, name: str) -> Tensor | None:
        found = self.find(name)
        if isinstance(found, Held):
            if found.kind == "sample" and self.uploads.get(name) is None:
                self.uploads.put(found, name)  # before it leaves the other, so that it is always found
                self.samples.remove(name)
            return found.code
        codes = found.collection.codes
        return None if codes is None else torch.from_numpy(codes[found.position])

    def _codes_of_each(self, asked: list[list[str]]) -> Sequence[Tensor]:
        together = self.codes([name for names in asked for name in names])
        return torch.split(together, [len(names) for names in asked])

    def _decode(self, codes: list[Tensor]) -> Pixels:
        return to_pixels(self.model.decode(torch.stack(codes)))

    def _encode(self, names: Sequence[str]) -> Tensor:
        return self.model.encode(to_float(np.stack([self.pixels(name) for name in names])))

    def describe(self, name: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON can hold
        """Return the facts that the page shows beside a picture."""
        found = self.find(name)
        if isinstance(found, Held):
            return {"id": name, "name": found.name, "kind": found.kind, "label": None, "split": None, **more}
        entry = found.collection.entry(found.position)
        label = None if entry.label is None else readable(entry.label)
        # An index has splits, too, for a later training; before that they mean nothing to a person.
        split = None if self.path is None else entry.split
        path = readable(entry.path)
        return {"id": name, "name": path, "kind": "image", "label": label, "split": split, **more}

    def hold(self, held: Held) -> dict[str, Any]:
        """Keep a picture in memory and describe it."""
        return self.describe((self.samples if held.kind == "sample" else self.uploads).put(held))

    def close(self) -> None:
        """End the processes and the threads, without waiting for work; the pictures in memory are gone."""
        for one in vars(self).values():
            if isinstance(one, JobQueue | UntrustedDecoder | Originals):
                one.close()
        for threads in (self._modelling, self.searching):
            threads.shutdown(wait=False, cancel_futures=True)

    def _training_pack(self) -> Pack | None:
        if self.run is None:
            return None
        try:
            pack = open_known_pack(self.run.pack, self.run.fingerprint, self.folder)
        except PackError:  # deleted: the tabs that need no images work without
            return None
        # A pack of other images would call normal what the model has never seen.
        return pack if pack.fingerprint == self.run.fingerprint else None


def model_file(model: Path) -> Path:
    """Return the model file that a path leads to.

    Raises:
        ModelFileError: the path is a folder that holds no model.
    """
    path = model / MODEL_NAME
    if not model.is_dir() or path.is_file():
        return path if model.is_dir() else model
    if not is_run(model):
        raise ModelFileError(f"{model} is not a run folder. Leave it out, and choose a folder in the page.")
    if is_locked(model):
        raise ModelFileError(
            f"Training in {model} has not finished its first epoch. Wait, then open it again."
        )
    raise ModelFileError(f"Training in {model} stopped before the end of its first epoch. Run it again.")


def open_workspace(
    model: Path | None = None,
    index: Path | None = None,
    images: Path | None = None,
    progress: Progress | None = None,
) -> Workspace:
    """Open a model, an index, or both, and the images around them.

    Args:
        model: a model file, the run folder that holds one, or an index, to work without a model.
        index: an index of images, by this model or by none.
        images: a folder of images to review; it is packed first, beside the run.
        progress: called with (files packed, files to pack).

    Raises:
        AutoencodeError: one of them cannot be used.
    """
    if model is not None and index is None and store_at(model) is not None:
        model, index = None, model
    if images is None:
        return Workspace(model, index)
    if model is None:
        raise ModelFileError("Images to review need a model that judges them. Give a run folder as well.")
    preprocessing = load_any(model_file(model)).preprocessing
    # Never the pack of a training on the same folder: that one has to stay as the training saw it.
    named = pack_path_for(images, model, preprocessing)
    out = named.with_name(f"{named.stem}-review{named.suffix}")
    return Workspace(model, index, pack_folder(images, out, preprocessing, progress=progress))
