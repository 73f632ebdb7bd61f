"""Images that look alike to a model: what an index of images does, wherever it keeps them.

Shapes: Q queries, D values in a code. Images are (Q, 3, H, W) in [0, 1], codes (Q, D).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.configuration import Split
from autoencode.data.preprocessing import Limits, read_chunks
from autoencode.data.sources import expanded
from autoencode.errors import ConfigError
from autoencode.index.settings import IndexSettings, check_encoder, find_encoder
from autoencode.models.autoencoder import INFERENCE_BATCH
from autoencode.pixels import to_float

if TYPE_CHECKING:
    from autoencode.data.manifest import Entry
    from autoencode.embedding import ImageEncoder
    from autoencode.index.duplicates import NearDuplicates
    from autoencode.index.neighbours import Floats

MOST_PAIRS = 10_000

Images = str | Path | Iterable[str | Path] | Tensor | NDArray[Any]


@dataclass(frozen=True)
class Neighbour:
    """One image of the index that is near a query.

    Attributes:
        path: the file, as it was when the index was made.
        score: a similarity in [-1, 1] for the distances "whitened" and "cosine", where higher is nearer; a
            distance from 0 for "l2", where lower is nearer.
        label: the first sub-folder, if it is in one.
        position: its place in `FileIndex.entries`; None in an index that is not held in memory.
    """

    path: Path
    score: float
    label: str | None
    position: int | None

    @property
    def is_gone(self) -> bool:
        """Whether the file is no longer there."""
        return not self.path.is_file()


@dataclass(frozen=True)
class Neighbours:
    """What was found for one query.

    Attributes:
        query: its file; None where images or codes were given.
        found: the neighbours, nearest first.
    """

    query: Path | None
    found: tuple[Neighbour, ...]


@dataclass(frozen=True)
class SearchResults:
    """What `Index.search` found.

    Attributes:
        results: one a query that could be used, in the order given.
        skipped: the other queries, with the reason.
    """

    results: list[Neighbours]
    skipped: list[tuple[Path, str]]


@dataclass(frozen=True)
class Update:
    """What `build_index` did.

    Attributes:
        encoded: distinct contents that were encoded.
        kept: distinct contents whose codes were there already.
        removed: distinct contents that are no longer in the folder.
        seconds: time spent encoding.
        skipped: files that cannot be used, with the reason.
    """

    encoded: int
    kept: int
    removed: int
    seconds: float
    skipped: list[Entry]


@dataclass(frozen=True)
class Chosen:
    """Which images of an index are meant: those of a label, of a split, or of both; None is any.

    Attributes:
        label: the first sub-folder.
        split: see `split_of`.
    """

    label: str | None = None
    split: Split | None = None

    def __post_init__(self) -> None:
        """Reject a split that does not exist.

        Raises:
            ConfigError: it is none.
        """
        if self.split is not None and self.split not in get_args(Split):
            raise ConfigError(f"Unknown split {self.split!r}. Choose one of: {', '.join(get_args(Split))}.")

    def __str__(self) -> str:
        named = {"label": self.label, "split": self.split}
        return " and ".join(f"the {name} {value!r}" for name, value in named.items() if value is not None)


ALL = Chosen()


def needs_memory(path: Path | str, purpose: str) -> ConfigError:
    """Return the error that something can only be done with an index that is held in memory."""
    return ConfigError(
        f"{purpose} needs an index that is held in memory, and {path} is kept by LanceDB. "
        "Make another: autoencode index MODEL FOLDER --store file --out OTHER"
    )


class Index(ABC):
    """An index, opened. Updates by other processes do not change what is open.

    Attributes:
        path: the folder of the index, or its URL.
        embedding: what its codes are, "code" or "pretrained".
        distance: how codes are compared.
        preprocessing: how images become what is encoded.
        recall: share of the true ten nearest that are found, measured when the index was made; 1 where every
            code is compared.
        update: what `build_index` did to it; None for an index that was only opened.
        unfinished: folders whose images are not all in it yet: an update is running, or was ended.
        again: the command that brings it in step.
    """

    path: Path | str
    recall: float
    unfinished: tuple[str, ...] = ()
    again: str

    def __init__(
        self,
        settings: IndexSettings,
        size: int,
        encoder: ImageEncoder | None = None,
        update: Update | None = None,
    ) -> None:
        """Open an index of codes of `size` values; see `open_index`."""
        self.update = update
        self.embedding, self.preprocessing = settings.embedding, settings.preprocessing
        self.space, self.distance = settings.space, settings.space.distance
        self._settings, self._size, self._given_encoder = settings, size, encoder

    def __len__(self) -> int:
        """Number of indexed images."""
        return self.count()

    @property
    @abstractmethod
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """What made the codes.

        Raises:
            ModelFileError: the model is not where it was, or is another one by now.
            ImageIndexError: the pretrained features installed are of another version.
            MissingExtraError: pretrained features need the optional part `eval`.
        """
        return self._given_encoder or find_encoder(self.path, self._settings)

    def use(self, encoder: ImageEncoder) -> None:
        """Encode queries with this encoder, wherever the one that made the codes is now.

        Raises:
            ImageIndexError: it did not make them.
        """
        advice = "Index the folder with this model into another place."
        check_encoder(self.path, self._settings, encoder, advice)
        self._given_encoder = encoder

    def count(self, label: str | None = None, split: Split | None = None) -> int:
        """Return how many images there are, of a label, of a split, or of both.

        Raises:
            ConfigError: there is no such split.
        """
        return self._count(Chosen(label, split))

    def search(
        self,
        queries: Images,
        k: int = 10,
        *,
        label: str | None = None,
        split: Split | None = None,
        limits: Limits | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SearchResults:
        """Find the images nearest to each query; an indexed file is not its own neighbour.

        Args:
            queries: image files and folders of them; or images (Q, 3, H, W) in [0, 1]; or codes (Q, D).
            k: neighbours of each; all images, where there are fewer.
            label: look among the images of this first sub-folder alone.
            split: look among those of this split alone, such as "test".
            limits: the largest files and pictures to accept.
            progress: called with (queries done, queries in all), for files.

        Raises:
            ConfigError: k is below 1, arrays that are neither images nor codes, or no image is of that label
                or split.
            ImageFolderError: a folder is missing or has no image, or no file could be used.
            ModelFileError: the model is needed and is not where it was, or is another one by now.
        """
        if k < 1:
            raise ConfigError(f"The number of neighbours is {k}; it must be at least 1.")
        chosen = Chosen(label, split)
        if chosen != ALL and not self._count(chosen):
            raise ConfigError(f"No image of {self.path} has {chosen}.")
        if isinstance(queries, Tensor | np.ndarray):
            found = self._found(self._codes_of(torch.as_tensor(queries)), k, chosen)
            return SearchResults([Neighbours(None, tuple(near)) for near in found], [])
        return self._search_files(queries, k, chosen, limits, progress)

    @abstractmethod
    def near_duplicates(self, threshold: float | None = None, limit: int = MOST_PAIRS) -> NearDuplicates:
        """Find files with the same bytes, and pairs of different bytes that look the same to the encoder.

        Args:
            threshold: the score from which a pair is listed. The default is what 95 % of a sample of the
                index's images reach with a copy of themselves that lost a border of 2 % and was saved again
                at three quarters of the size as a JPEG of quality 50.
            limit: the most pairs to list, the nearest of all.

        Raises:
            ConfigError: a threshold or a limit that cannot be, or the index is not held in memory.
        """

    def _search_files(
        self,
        queries: str | Path | Iterable[str | Path],
        k: int,
        chosen: Chosen,
        limits: Limits | None,
        progress: Callable[[int, int], None] | None,
    ) -> SearchResults:
        paths = expanded(queries)
        results: list[Neighbours] = []
        skipped: list[tuple[Path, str]] = []
        chunks = read_chunks(paths, INFERENCE_BATCH, self.preprocessing, limits or Limits(), skipped)
        for number, (usable, pixels) in enumerate(chunks, 1):
            codes = self.encoder.encode(to_float(pixels))
            # One more than asked for: the query itself may be among them.
            for path, found in zip(usable, self._found(codes, k + 1, chosen), strict=True):
                own = path.resolve()
                others = [near for near in found if near.path.resolve() != own]
                results.append(Neighbours(path, tuple(others[:k])))
            if progress:
                progress(min(number * INFERENCE_BATCH, len(paths)), len(paths))
        return SearchResults(results, skipped)

    def _codes_of(self, queries: Tensor) -> Floats:
        if queries.ndim == 4:
            return self.encoder.encode(queries)
        codes = queries.to(torch.float32).cpu().numpy()
        if codes.ndim != 2 or codes.shape[1] != self._size or not np.isfinite(codes).all():
            raise ConfigError(
                f"Queries must be images (Q, 3, H, W) or finite codes (Q, {self._size}); not {codes.shape}."
            )
        return codes

    @abstractmethod
    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files; of an index that is not held in memory only those named as `like` is."""

    @abstractmethod
    def _count(self, chosen: Chosen) -> int:
        """Return how many images are meant."""

    @abstractmethod
    def _found(self, codes: Floats, k: int, chosen: Chosen) -> list[list[Neighbour]]:
        """Return the k nearest images of each code (Q, D), or all; copies have the same score."""
