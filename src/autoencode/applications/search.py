"""Images that look alike to a model: an index of images, opened, and the nearest of them to any other.

Shapes: N images in the index, R distinct contents, Q queries, D values in a code. Images are (Q, 3, H, W) in
[0, 1], codes (Q, D).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoencode.applications import duplicates
from autoencode.applications.duplicates import NearDuplicates, NearPair
from autoencode.applications.encoders import ImageEncoder, image_encoder
from autoencode.applications.indexfile import PACK_NAME, StoredIndex, find_encoder, read_index
from autoencode.applications.nearest import Distance, Floats, Nearest, fit_cells, fit_space
from autoencode.data.batches import to_float
from autoencode.data.finding import expanded
from autoencode.data.images import Limits, read_chunks
from autoencode.data.pack import Entry, Pack, open_pack
from autoencode.data.storage import is_url
from autoencode.errors import ConfigError, ImageIndexError, PackError
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.modelfile import as_model

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
        position: its place in `Index.entries`.
    """

    path: Path
    score: float
    label: str | None
    position: int

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
        refused: the other queries, with the reason.
    """

    results: list[Neighbours]
    refused: list[tuple[Path, str]]


@dataclass(frozen=True)
class Update:
    """What `build_index` did.

    Attributes:
        encoded: distinct contents that were encoded.
        kept: distinct contents whose codes were there already.
        removed: distinct contents that are no longer in the folder.
        seconds: time spent encoding.
        refused: files that cannot be used, with the reason.
    """

    encoded: int
    kept: int
    removed: int
    seconds: float
    refused: list[Entry]


class Index:
    """An index, opened. Updates by other processes do not change what is open.

    Attributes:
        path: the folder of the index.
        features: what its codes are, "code" or "pretrained".
        distance: how codes are compared.
        entries: the indexed images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D) float32.
        folder: the image folder that the paths of the entries are relative to.
        source: what it was made of: that folder, or a pack.
        preprocessing: how images become what is encoded.
        recall: share of the true ten nearest that are found, measured when the index was made; 1 where every
            code is compared.
        near_duplicate_threshold: see `near_duplicates`.
        update: what `build_index` did to it; None for an index that was only opened.
    """

    def __init__(
        self,
        path: Path,
        stored: StoredIndex,
        encoder: ImageEncoder | None = None,
        update: Update | None = None,
    ) -> None:
        """Open an index; see `open_index`."""
        self.path, self.update = path, update
        self.source = stored.source if is_url(stored.source) else Path(stored.source)
        places = stored.folder.candidates(path)
        self.folder = next((folder for folder in places if folder.is_dir()), places[0])
        self.features, self.preprocessing = stored.features, stored.preprocessing
        self.entries, self.codes, self.space = stored.entries, stored.codes, stored.space
        self.distance = stored.space.distance
        self.recall = 1.0 if stored.cells is None else stored.cells.recall
        self.near_duplicate_threshold = stored.near_duplicate_threshold
        self._stored, self._given_encoder = stored, encoder
        self._starts = np.searchsorted(self.entries.rows, np.arange(len(self.codes) + 1))

    def __len__(self) -> int:
        """Number of indexed images."""
        return len(self.entries)

    @property
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""
        return self._stored.cells is None

    @functools.cached_property
    def encoder(self) -> ImageEncoder:
        """What made the codes.

        Raises:
            ModelFileError: the model is not where it was, or is another one by now.
            ImageIndexError: the pretrained features installed are of another version.
            MissingExtraError: pretrained features need the optional part `eval`.
        """
        return self._given_encoder or find_encoder(self.path, self._stored)

    @functools.cached_property
    def pack(self) -> Pack:
        """The images, decoded, in the order of `entries`.

        Raises:
            PackError: they are no longer there, or are others by now.
        """
        own = self.path / PACK_NAME
        pack = open_pack(own if own.is_dir() else self.source)
        if pack.fingerprint != self._stored.fingerprint:
            raise PackError(
                f"The images of {pack.path} are not those that {self.path} was made of. "
                f"Bring it in step: autoencode index MODEL {self.source} --out {self.path}"
            )
        return pack

    def compared_by(self, distance: Distance) -> Index:
        """Return this index with its codes compared in another way; nothing is written.

        Raises:
            ConfigError: an unknown distance.
        """
        if distance == self.distance:
            return self
        space = fit_space(self.codes, distance)
        stored = dataclasses.replace(self._stored, space=space, cells=fit_cells(space, self.codes))
        return Index(self.path, stored, self._given_encoder)

    @functools.cached_property
    def nearest(self) -> Nearest:
        """The codes, ready to be searched."""
        return Nearest(self.space, self.codes, self._stored.cells)

    def search(
        self,
        queries: Images,
        k: int = 10,
        *,
        limits: Limits | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> SearchResults:
        """Find the images nearest to each query; an indexed file is not its own neighbour.

        Args:
            queries: image files and folders of them; or images (Q, 3, H, W) in [0, 1]; or codes (Q, D).
            k: neighbours of each; all images, where there are fewer.
            limits: the largest files and pictures to accept.
            progress: called with (queries done, queries in all), for files.

        Raises:
            ConfigError: k is below 1, or arrays that are neither images nor codes.
            ImageFolderError: a folder is missing or has no image, or no file could be used.
            ModelFileError: the model is needed and is not where it was, or is another one by now.
        """
        if k < 1:
            raise ConfigError(f"The number of neighbours is {k}; it must be at least 1.")
        if isinstance(queries, Tensor | np.ndarray):
            found = self._found(self._codes_of(torch.as_tensor(queries)), k)
            return SearchResults([Neighbours(None, tuple(near)) for near in found], [])
        return self._search_files(queries, k, limits, progress)

    def near_duplicates(self, threshold: float | None = None, limit: int = MOST_PAIRS) -> NearDuplicates:
        """Find files with the same bytes, and pairs of different bytes that look the same to the encoder.

        Args:
            threshold: the score from which a pair is listed. The default is what 95 % of a sample of the
                index's images reach with a copy of themselves that lost a border of 2 % and was saved again
                at three quarters of the size as a JPEG of quality 50.
            limit: the most pairs to list, the nearest of all.

        Raises:
            ConfigError: a threshold or a limit that cannot be.
        """
        if threshold is None:
            threshold = self.near_duplicate_threshold
        elif not (-1 <= threshold <= 1 if self.space.is_similarity else 0 <= threshold < float("inf")):
            wanted = "from -1 to 1" if self.space.is_similarity else "from 0"
            raise ConfigError(
                f"The threshold is {threshold}; a score of the distance {self.distance} lies {wanted}."
            )
        if limit < 1:
            raise ConfigError(f"The limit of pairs is {limit}; it must be at least 1.")
        pairs, more = duplicates.nearest_pairs(self.nearest, threshold, limit)
        near = [NearPair(self._path_of(one), self._path_of(other), score) for one, other, score in pairs]
        exact = duplicates.exact_copies(self.entries, self.folder)
        listed = {*itertools.chain(*exact), *(path for pair in near for path in (pair.first, pair.second))}
        gone = frozenset(path for path in listed if not path.is_file())
        return NearDuplicates(exact, near, more, threshold, gone)

    def _search_files(
        self,
        queries: str | Path | Iterable[str | Path],
        k: int,
        limits: Limits | None,
        progress: Callable[[int, int], None] | None,
    ) -> SearchResults:
        paths = expanded(queries)
        results: list[Neighbours] = []
        refused: list[tuple[Path, str]] = []
        chunks = read_chunks(paths, INFERENCE_BATCH, self.preprocessing, limits or Limits(), refused)
        for number, (usable, pixels) in enumerate(chunks, 1):
            codes = self.encoder.encode(to_float(pixels))
            # One more than asked for: the query itself may be among them.
            for path, found in zip(usable, self._found(codes, k + 1), strict=True):
                own = path.resolve()
                others = [near for near in found if near.path.resolve() != own]
                results.append(Neighbours(path, tuple(others[:k])))
            if progress:
                progress(min(number * INFERENCE_BATCH, len(paths)), len(paths))
        return SearchResults(results, refused)

    def _codes_of(self, queries: Tensor) -> Floats:
        if queries.ndim == 4:
            return self.encoder.encode(queries)
        codes = queries.to(torch.float32).cpu().numpy()
        size = self.codes.shape[1]
        if codes.ndim != 2 or codes.shape[1] != size or not np.isfinite(codes).all():
            raise ConfigError(
                f"Queries must be images (Q, 3, H, W) or finite codes (Q, {size}); not {codes.shape}."
            )
        return codes

    def _found(self, codes: Floats, k: int) -> list[list[Neighbour]]:
        """Return the k nearest images of each code, or all; copies have the same score."""
        return [
            [
                self._neighbour(position, float(score))
                for score, row in zip(near.scores, near.rows, strict=True)
                for position in range(self._starts[row], self._starts[row + 1])
            ][:k]
            for near in self.nearest.search(codes, k)
        ]

    def _neighbour(self, position: int, score: float) -> Neighbour:
        entry = self.entries[position]
        return Neighbour(self.folder / entry.path, score, entry.label, position)

    def _path_of(self, row: int) -> Path:
        """Return the first file of this content that is there, or the first."""
        paths = [
            self.folder / self.entries[at].path for at in range(self._starts[row], self._starts[row + 1])
        ]
        return next((path for path in paths if path.is_file()), paths[0])


def open_index(path: str | Path, model: Autoencoder | str | Path | None = None) -> Index:
    """Open an index.

    Args:
        path: the folder that `build_index` made.
        model: the model it was made with, where its file is no longer in the same place. Without images to
            encode none is needed, and for pretrained features never.

    Raises:
        ImageIndexError: there is no index, it is damaged, from a newer version, or made with another model.
        ModelFileError: the model given cannot be loaded.
    """
    path = Path(path)
    stored = read_index(path)
    if model is None:
        return Index(path, stored)
    encoder = image_encoder(as_model(model), stored.features)
    if encoder.digest != stored.encoder_digest:
        raise ImageIndexError(
            f"{path} was made with another model ({stored.encoder_digest[:12]}, not {encoder.digest[:12]}): "
            "its codes cannot be compared. Index the folder with this model into another place."
        )
    return Index(path, stored, encoder)
