"""What the page works on: a model, the images around it, and the threads that do the work.

Shapes: N images, D code size, H height, W width. Pixels are (H, W, 3) in 0..255, codes (D,).
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.atomic import is_locked
from autoencode.configuration import Distance, Split
from autoencode.data.decoders import UntrustedDecoder
from autoencode.data.loader import batches
from autoencode.data.manifest import Entry
from autoencode.data.pack import Pack, open_pack, pack_folder
from autoencode.errors import AutoencodeError, ModelFileError, PackError
from autoencode.evaluation.quality import CheckUp, check_up
from autoencode.index import open_index
from autoencode.index.memory import FileIndex, in_memory
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.model_file import MODEL_NAME, load_model
from autoencode.outliers.calibration import fit_reference, reference_name
from autoencode.outliers.review import Decisions, Ranking, rank_pack
from autoencode.pixels import to_float
from autoencode.projection import CodeMap, Layout, code_map, in_effects, neighbour_map
from autoencode.training.run import RunSettings, is_run, read_run
from autoencode.training.train import pack_path_for
from autoencode.web.jobs import Job, Report, run_apart
from autoencode.web.uploads import PREFIX, Allowance, Held, Uploads

SPLITS: tuple[Split, ...] = get_args(Split)
CHECKED_IMAGES = 512
MOST_ANIMATIONS = 4  # made or kept at once: one for each window that is likely to be open
DECISIONS_NAME = "decisions.jsonl"

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class GoneError(AutoencodeError):
    """A picture that is not there, or no longer held."""


class Collection:
    """Images that stay: those of a pack, each known by its place in the pack's entries.

    Args:
        letter: what the ids of its images begin with.
        pack: where they are.
        codes: (N, D), what the model makes of each entry; None where that is not known yet.
    """

    def __init__(self, letter: str, pack: Pack, codes: Vectors | None = None) -> None:
        self.letter, self.pack, self.codes = letter, pack, codes
        self.rows = pack.rows()

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def splits(self) -> NDArray[np.int8]:
        """The split (N,) of each, as its place in `SPLITS`."""
        splits = np.zeros(len(self), np.int8)
        for place, split in enumerate(SPLITS):
            splits[self.pack.entries.in_split(split)] = place
        return splits

    def entry(self, position: int) -> Entry:
        """Return what is known of one image."""
        return self.pack.entries[position]

    def pixels(self, positions: Sequence[int]) -> Pixels:
        """Return pixels (B, H, W, 3) of the images at these places."""
        return self.pack.pixels(self.rows[np.asarray(positions, np.int64)])


class Found(NamedTuple):
    """An image that stays: its collection and its place there."""

    collection: Collection
    position: int


class Workspace:
    """One model and the images around it.

    Args:
        model: a model file, or the run folder that holds one.
        index: an index of images by this model.
        pack: images to review, where they are others than those of the index or of the training.

    Attributes:
        launch: tells the pictures of this start from those of another, which a browser may still hold.
        run: what the run was started with; None for a model file alone.
        collections: by the letter of their ids.
        review: the images that the map and the outliers are about; None where there are none.
        training: the pack that the model was trained on; None where it is not known or has changed.
    """

    def __init__(self, model: Path, index: Path | None = None, pack: Pack | None = None) -> None:
        self.launch = secrets.token_hex(4)
        self.path = model_file(model)
        self.folder = self.path.parent
        self.model: Autoencoder = load_model(self.path)
        self.run: RunSettings | None = read_run(self.folder) if is_run(self.folder) else None
        self.index: FileIndex | None = None
        if index is not None:
            self.index = in_memory(open_index(index, self.model), "The page")
        self.training = self._training_pack()
        self.collections = self._collections(pack)
        self.review = next(iter(self.collections.values()), None)
        preprocessing = self.model.preprocessing
        self.uploads, self.decoder, self.allowance = (
            Uploads(preprocessing.height, preprocessing.width, self.model.config.code_size),
            UntrustedDecoder(preprocessing),
            Allowance(),
        )
        named = DECISIONS_NAME if self.path.name == MODEL_NAME else f"{self.path.stem}-{DECISIONS_NAME}"
        self.decisions = Decisions(self.folder / named)
        # One thread for what a person waits for, so that a slow answer delays only the next; one for jobs;
        # and one each for jobs that would hold up the others, or wait for them while somebody looks on: a map
        # is there at once where the codes are known, however long images are scored.
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._job_threads = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._layout_threads = ThreadPoolExecutor(1, thread_name_prefix="layout")
        self._animation_threads = ThreadPoolExecutor(1, thread_name_prefix="animation")
        self._animations: OrderedDict[Hashable, Job[bytes]] = OrderedDict()
        self._encoding = threading.Lock()
        self.check_up: Job[CheckUp] = Job(self._check_up, self._job_threads)
        self.ranking: Job[Ranking] = Job(self._rank, self._job_threads)
        self.maps: dict[Layout, Job[CodeMap]] = {
            "pca": Job(self._principal_map, self._layout_threads),
            "umap": Job(self._neighbour_map, self._layout_threads),
        }

    @property
    def name(self) -> str:
        """What to call it."""
        return readable(self.folder.resolve().name if self.run else self.path.stem)

    async def on_model(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run what uses the model in its thread, one call at a time; the page goes on being served."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: function(*args, **kwargs)
        )

    def find(self, name: str) -> Held | Found:
        """Return a picture by its id.

        Raises:
            GoneError: there is none.
        """
        letter, number = name[:1], name[1:]
        if letter in self.collections and number.isascii() and number.isdecimal() and len(number) < 10:
            collection = self.collections[letter]
            if int(number) < len(collection):
                return Found(collection, int(number))
        held = self.uploads.get(name) if letter == PREFIX else None
        if held is None:
            raise GoneError("This picture is no longer held. Give it again.")
        return held

    def pixels(self, name: str) -> Pixels:
        """Return the pixels (H, W, 3) of a picture."""
        found = self.find(name)
        return found.pixels if isinstance(found, Held) else found.collection.pixels([found.position])[0]

    def code(self, name: str) -> Tensor:
        """Return the code (D,) of a picture; a sample is kept as an upload is, from then on."""
        found = self.find(name)
        if isinstance(found, Held):
            self.uploads.use(name)
            return found.code
        if found.collection.codes is not None:
            return torch.from_numpy(found.collection.codes[found.position])
        return self.model.encode(to_float(self.pixels(name)[None]))[0]

    def codes(self, names: Sequence[str]) -> Tensor:
        """Return the codes (N, D) of pictures."""
        return torch.stack([self.code(name) for name in names])

    def describe(self, name: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - what JSON can hold
        """Return what the page shows beside a picture."""
        found = self.find(name)
        if isinstance(found, Held):
            return {"id": name, "name": found.name, "kind": found.kind, "label": None, "split": None, **more}
        entry = found.collection.entry(found.position)
        label = None if entry.label is None else readable(entry.label)
        known = {"name": readable(entry.path), "kind": "image", "label": label, "split": entry.split}
        return {"id": name, **known, **more}

    def compared_by(self, distance: Distance) -> FileIndex:
        """Return the index with its codes compared in one way, made at its first use."""
        assert self.index is not None
        if distance not in self._compared:
            self._compared[distance] = self.index.with_distance(distance)
        return self._compared[distance]

    def animation(self, key: Hashable, work: Callable[[Report], bytes]) -> Job[bytes]:
        """Return the making of an animation, begun by whom first asks; the longest unused are forgotten."""
        if key not in self._animations:
            self._animations[key] = Job(work, self._animation_threads)
        self._animations.move_to_end(key)
        while len(self._animations) > MOST_ANIMATIONS:
            self.forget_animation(next(iter(self._animations)))
        return self._animations[key]

    def forget_animation(self, key: Hashable) -> None:
        """Stop making an animation, or keeping it."""
        job = self._animations.pop(key, None)
        if job is not None:
            job.stop()

    def close(self) -> None:
        """End the processes and the threads; what is held is gone."""
        self.decoder.close()
        jobs: list[Job[Any]] = [self.check_up, self.ranking, *self.maps.values(), *self._animations.values()]
        for job in jobs:
            job.stop()
        for threads in (self._threads, self._job_threads, self._layout_threads, self._animation_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _training_pack(self) -> Pack | None:
        if self.run is None:
            return None
        try:
            pack = open_pack(self.run.pack)
        except PackError:
            return None
        return pack if pack.fingerprint == self.run.fingerprint else None

    def _collections(self, pack: Pack | None) -> dict[str, Collection]:
        """The images to review come first; they are the index's own where nothing else is said."""
        self._compared: dict[Distance, FileIndex] = {}
        found: list[Collection] = []
        if pack is not None:
            self.model.check_preprocessing(pack.preprocessing, pack.path)
            found.append(Collection("g", pack))
        if self.index is not None:
            codes = None
            if self.index.embedding == "code":
                codes = self.index.codes[self.index.entries.rows]
            found.append(Collection("i", self.index.pack, codes))
        if not found and self.training is not None:
            found.append(Collection("t", self.training))
        return {collection.letter: collection for collection in found}

    def _check_up(self, report: Report) -> CheckUp:
        assert self.training is not None
        done, total = 0, min(CHECKED_IMAGES, len(self.training.held_out().rows))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report("measuring held-out images", done, total)

        return check_up(self.model, self.training, CHECKED_IMAGES, advance)

    def _rank(self, report: Report) -> Ranking:
        assert self.training is not None
        assert self.review is not None
        reference = fit_reference(
            self.model,
            self.training,
            self.folder / reference_name("code"),
            progress=lambda done, total: report("fitting to normal images", done, total),
        )
        return rank_pack(
            self.model,
            self.review.pack,
            reference,
            lambda done, total: report("scoring images", done, total),
        )

    def _principal_map(self, report: Report) -> CodeMap:
        return code_map(self.model, self._review_codes(report))

    def _neighbour_map(self, report: Report) -> CodeMap:
        """In a process, as the first part of it tells nothing and cannot be stopped."""
        centred = in_effects(self.model, self._review_codes(report))

        def tell(done: int, total: int) -> None:
            report("laying out images, rounds" if total else "finding neighbours", done, total)

        return run_apart(neighbour_map, centred, report=tell)

    def _review_codes(self, report: Report) -> Vectors:
        assert self.review is not None
        with self._encoding:
            if self.review.codes is None:
                self.review.codes = self._encoded(self.review, report)
            return self.review.codes

    def _encoded(self, collection: Collection, report: Report) -> Vectors:
        rows, places = np.unique(collection.rows, return_inverse=True)
        codes = np.empty((len(rows), self.model.config.code_size), np.float32)
        done = 0
        for images in batches(collection.pack, rows, INFERENCE_BATCH):
            codes[done : done + len(images)] = self.model.encode(images).numpy()
            done += len(images)
            report("encoding images", done, len(rows))
        return codes[places]


def model_file(model: Path) -> Path:
    """Return the model file that a path leads to.

    Raises:
        ModelFileError: it is a folder without one.
    """
    path = model / MODEL_NAME
    if not model.is_dir() or path.is_file():
        return path if model.is_dir() else model
    if not is_run(model):
        raise ModelFileError(f"{model} is no run folder. Give the folder that train wrote, or a model file.")
    if is_locked(model):
        raise ModelFileError(
            f"Training in {model} has not finished its first epoch. Wait, then open it again."
        )
    raise ModelFileError(
        f"Training in {model} stopped before its first epoch was done. Give its command again."
    )


def readable(path: str) -> str:
    """Return a path, or a part of one, for people to read: bytes that are not UTF-8 are shown as such."""
    return path.encode(errors="surrogateescape").decode(errors="replace")


def open_workspace(
    model: Path,
    index: Path | None = None,
    images: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Workspace:
    """Open a model with what there is around it; images are packed first, beside the run.

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
