"""An index on disk: the codes of images, which files they are of, and how they are compared.

    I/index.safetensors    all of it; replaced in one rename, so that an index is the old one or the new one
    I/pack/                the images, decoded; not there where a pack was indexed

Codes are what the index's encoder makes of an image: the codes of a model, or pretrained features. There is
one for each distinct content, ordered by sha256: an updated index is the same as one made anew.

Shapes: R distinct contents, D values in a code.

An index that is held in memory, and opening any index.

Shapes: N images in the index, R distinct contents, D values in a code.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import parse_json
from autoencode.data.manifest import Entries, Entry
from autoencode.data.pack import Pack, open_pack
from autoencode.embedding import ImageEncoder, image_encoder
from autoencode.errors import ConfigError, ImageIndexError, PackError
from autoencode.index import duplicates
from autoencode.index.base import ALL, MOST_PAIRS, Chosen, Index, Neighbour, Update, needs_memory
from autoencode.index.duplicates import NearDuplicates, NearPair
from autoencode.index.lance.store import is_lance_index, open_lance_index
from autoencode.index.neighbours import EXACT_LIMIT, Cells, Floats, Nearest, Rows, fit_cells, fit_space
from autoencode.index.settings import (
    AGAIN,
    IndexSettings,
    Place,
    check_array,
    check_settings,
    check_texts,
    settings_of,
)
from autoencode.models.model_file import as_model, read_tensors, write_tensors
from autoencode.storage import folder_or_url, is_url

if TYPE_CHECKING:
    from autoencode.configuration import Distance
    from autoencode.models.autoencoder import Autoencoder

INDEX_NAME, PACK_NAME = "index.safetensors", "pack"
_KIND, _VERSION = "search-index", 1


@dataclass(frozen=True)
class StoredIndex(IndexSettings):
    """What the file of an index holds, beside its settings.

    Attributes:
        source: the folder or pack that was indexed, absolute.
        folder: the image folder that the paths of the entries are relative to.
        fingerprint: of the images, see `Pack.fingerprint`.
        entries: the images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D).
        cells: groups of codes, where there are too many to compare each.
        near_duplicate_threshold: see `Index.near_duplicates`.
    """

    source: str
    folder: Place
    fingerprint: str
    entries: Entries
    codes: Floats
    cells: Cells | None
    near_duplicate_threshold: float


def is_index(path: Path) -> bool:
    """Whether there is an index at `path`, usable or not."""
    return (path / INDEX_NAME).is_file()


def write_index(path: Path, index: StoredIndex) -> None:
    """Write an index into the folder `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written; what was there before is unchanged.
    """
    lines = bytearray()
    for entry in index.entries:
        lines += json.dumps(entry.to_json()).encode() + b"\n"
    arrays, content = index.to_content()
    arrays |= {"codes": index.codes, "entries": np.frombuffer(lines, np.uint8)}
    content |= {
        "source": index.source,
        "folder": asdict(index.folder),
        "fingerprint": index.fingerprint,
        "near_duplicate_threshold": index.near_duplicate_threshold,
    }
    if index.cells is not None:
        arrays |= {"centroids": index.cells.centroids, "assignment": index.cells.assignment}
        content |= {"probes": index.cells.probes, "recall": index.cells.recall}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path / INDEX_NAME, _KIND, _VERSION, tensors, content)


def read_index(path: Path) -> StoredIndex:
    """Read what `write_index` wrote.

    Raises:
        ImageIndexError: there is none, it is damaged, or a newer version wrote it.
    """
    if not is_index(path):
        raise ImageIndexError(f"No index at {path}. Make one: autoencode index MODEL FOLDER --out {path}")
    tensors, content, _ = read_tensors(path / INDEX_NAME, _KIND, _VERSION, ImageIndexError, advice=AGAIN)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    cells = None
    try:
        if "centroids" in arrays:
            cells = Cells(arrays["centroids"], arrays["assignment"], content["probes"], content["recall"])
        stored = StoredIndex(
            **settings_of(arrays, content),
            source=content["source"],
            folder=Place(**content["folder"]),
            fingerprint=content["fingerprint"],
            entries=Entries(Entry.from_json(parse_json(line)) for line in io.BytesIO(arrays["entries"].data)),
            codes=arrays["codes"],
            cells=cells,
            near_duplicate_threshold=float(content["near_duplicate_threshold"]),
        )
        _check(stored)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as err:
        raise ImageIndexError(f"{path} does not hold a usable index ({err}). {AGAIN}") from err
    return stored


def _check(index: StoredIndex) -> None:
    """Reject parts that do not fit together: FAISS would read outside them.

    Raises:
        ValueError: names the part.
    """
    check_texts([index.source, index.fingerprint, *vars(index.folder).values()])
    count, size = index.codes.shape if index.codes.ndim == 2 else (0, 0)
    check_settings(index, size)
    check_array("codes", index.codes, (count, size))
    if cells := index.cells:
        check_array("centroids", cells.centroids, (len(cells.centroids), size))
        groups = range(len(cells.centroids))
        if cells.assignment.shape != (count,) or cells.assignment.dtype != np.int64:
            raise ValueError("not a cell for each code")
        if not _within(cells.assignment, groups) or type(cells.probes) is not int:
            raise ValueError("cells that are not there")
        if not 1 <= cells.probes <= len(groups):
            raise ValueError("more cells to look into than there are, or none")
    rows = np.array([-1 if entry.row is None else entry.row for entry in index.entries])
    if not len(rows) or (rows[0], rows[-1]) != (0, count - 1) or not _within(np.diff(rows), range(2)):
        raise ValueError("not an entry for each code, in their order")


def _within(values: np.ndarray[Any, Any], allowed: range) -> bool:
    return bool(((values >= allowed.start) & (values < allowed.stop)).all())


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of the images, ready to be searched.

    Attributes:
        nearest: the distinct contents among them.
        positions: (n,) the place of each image in `FileIndex.entries`, ordered by content.
        starts: where the images of each content start in `positions`, and its length.
    """

    nearest: Nearest
    positions: Rows
    starts: Rows


class FileIndex(Index):
    """An index held in memory, as it is in its file.

    Attributes:
        entries: the indexed images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D) float32.
        folder: the image folder that the paths of the entries are relative to.
        source: what it was made of: that folder, or a pack.
        near_duplicate_threshold: see `near_duplicates`.
    """

    path: Path

    def __init__(
        self,
        path: Path,
        stored: StoredIndex,
        encoder: ImageEncoder | None = None,
        update: Update | None = None,
    ) -> None:
        """Open an index; see `open_index`."""
        super().__init__(stored, stored.codes.shape[1], encoder, update)
        self.path = path
        self.source = stored.source if is_url(stored.source) else Path(stored.source)
        places = stored.folder.candidates(path)
        self.folder = next((folder for folder in places if folder.is_dir()), places[0])
        self.entries, self.codes = stored.entries, stored.codes
        self.recall = 1.0 if stored.cells is None else stored.cells.recall
        self.near_duplicate_threshold = stored.near_duplicate_threshold
        self.again = f"autoencode index MODEL {self.source} --out {path}"
        self._stored = stored
        self._starts = _starts(self.entries.rows, len(self.codes))
        self._part: tuple[Chosen, _Part] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""
        return self._stored.cells is None

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
                f"The images of {pack.location} are not those that {self.path} was made of. "
                f"Bring it in step: {self.again}"
            )
        return pack

    def compared_by(self, distance: Distance) -> FileIndex:
        """Return this index with its codes compared in another way; nothing is written.

        Raises:
            ConfigError: an unknown distance.
        """
        if distance == self.distance:
            return self
        space = fit_space(self.codes, distance)
        stored = dataclasses.replace(self._stored, space=space, cells=fit_cells(space, self.codes))
        return FileIndex(self.path, stored, self._given_encoder)

    @functools.cached_property
    def nearest(self) -> Nearest:
        """The codes, ready to be searched."""
        return Nearest(self.space, self.codes, self._stored.cells)

    def near_duplicates(self, threshold: float | None = None, limit: int = MOST_PAIRS) -> NearDuplicates:
        """Find files with the same bytes, and pairs of different bytes that look the same to the encoder."""
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

    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files."""
        return (self.folder / entry.path for entry in self.entries)

    def _count(self, chosen: Chosen) -> int:
        return len(self.entries) if chosen == ALL else len(self._part_of(chosen).positions)

    def _found(self, codes: Floats, k: int, chosen: Chosen) -> list[list[Neighbour]]:
        part = self._part_of(chosen)
        return [
            [
                self._neighbour(position, float(score))
                for score, row in zip(near.scores, near.rows, strict=True)
                for position in part.positions[part.starts[row] : part.starts[row + 1]].tolist()
            ][:k]
            for near in part.nearest.search(codes, k)
        ]

    def _part_of(self, chosen: Chosen) -> _Part:
        """Return the images meant; the last that were asked for are kept."""
        if chosen == ALL:
            return _Part(self.nearest, np.arange(len(self.entries)), self._starts)
        kept = self._part
        if kept is None or kept[0] != chosen:
            positions = np.flatnonzero(self._mask(chosen))
            rows, contents = np.unique(self.entries.rows[positions], return_inverse=True)
            cells = self._stored.cells if len(rows) > EXACT_LIMIT else None
            if cells is not None:
                cells = dataclasses.replace(cells, assignment=cells.assignment[rows])
            nearest = Nearest(self.space, self.codes[rows], cells)
            # Another thread may replace what is kept at any moment.
            kept = self._part = chosen, _Part(nearest, positions, _starts(contents, len(rows)))
        return kept[1]

    def _mask(self, chosen: Chosen) -> NDArray[np.bool_]:
        mask = np.ones(len(self.entries), np.bool_)
        if chosen.label is not None:
            mask &= self.entries.with_label(chosen.label)
        if chosen.split is not None:
            mask &= self.entries.in_split(chosen.split)
        return mask

    def _neighbour(self, position: int, score: float) -> Neighbour:
        entry = self.entries[position]
        return Neighbour(self.folder / entry.path, score, entry.label, position)

    def _path_of(self, row: int) -> Path:
        """Return the first file of this content that is there, or the first."""
        paths = [
            self.folder / self.entries[at].path for at in range(self._starts[row], self._starts[row + 1])
        ]
        return next((path for path in paths if path.is_file()), paths[0])


def _starts(rows: Rows, count: int) -> Rows:
    return np.searchsorted(rows, np.arange(count + 1))


def open_index(path: str | Path, model: Autoencoder | str | Path | None = None) -> Index:
    """Open an index.

    Args:
        path: what `build_index` made: a folder, or the URL of one in storage (extra `lance`).
        model: the model it was made with, where its file is no longer in the same place. Without images to
            encode none is needed, and for pretrained features never.

    Raises:
        ImageIndexError: there is no index, it is damaged, not finished, from a newer version, or made with
            another model.
        ModelFileError: the model given cannot be loaded.
        MissingExtraError: an index kept by LanceDB needs the optional part `lance`.
        StorageError: the storage cannot be reached.
    """
    place = folder_or_url(path)
    if isinstance(place, str) or is_lance_index(place):
        opened: Index = open_lance_index(place)
    else:
        opened = FileIndex(place, read_index(place))
    if model is not None:
        opened.use(image_encoder(as_model(model), opened.embedding))
    return opened


def in_memory(index: Index, purpose: str) -> FileIndex:
    """Return the index where it is held in memory.

    Raises:
        ConfigError: it is not; `purpose` is what needs it to be.
    """
    if not isinstance(index, FileIndex):
        raise needs_memory(index.path, purpose)
    return index
