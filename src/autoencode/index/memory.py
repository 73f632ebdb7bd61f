"""The store in memory: an index is one file, read whole, and searched with FAISS.

    I/index.safetensors    the index; replaced in one rename, so that a kill leaves the old one or the new one
    I/pack/                the images, decoded; missing where a pack was indexed

There is one code for each distinct content, ordered by sha256, so that an updated index equals one built
anew. An update brings the pack up to date first and then replaces the file: a kill between the two leaves the
old index beside a pack that the next update continues from.

Shapes: N images in the index, R distinct contents, D code dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.atomic import parse_json, remove_temporaries
from autoencode.data.entries import Entries, Entry
from autoencode.data.pack import Pack, open_pack
from autoencode.embedding import MOST_FITTED
from autoencode.errors import ImageIndexError, PackError
from autoencode.index.base import EVERY_IMAGE, ImageFilter, Index, Neighbour, Update
from autoencode.index.interface import (
    CHOOSE_ANOTHER,
    FORMAT_VERSION,
    IndexSettings,
    IndexStore,
    StoredPath,
    check_array,
    check_texts,
    checked,
    read_parts,
)
from autoencode.index.inverted_lists import EXACT_LIMIT, InvertedLists, fit_inverted_lists
from autoencode.index.neighbours import (
    Floats,
    NearestNeighbours,
    OwnScores,
    Rows,
    fit_vector_space,
    lengths_of,
)
from autoencode.models.model_file import write_tensors
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.configuration import Distance, Store
    from autoencode.embedding import ImageEncoder
    from autoencode.index.request import BuildRequest

INDEX_NAME, PACK_NAME = "index.safetensors", "pack"
_KIND = "search-index"


@dataclass(frozen=True)
class StoredIndex:
    """The content of an index file.

    Attributes:
        settings: how the codes were made and are compared.
        source: the folder or pack that was indexed: an absolute path, or a URL.
        folder: the image folder that the paths of the entries are relative to.
        fingerprint: of the images, see `Pack.fingerprint`.
        entries: the images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D).
        lists: for approximate search, where there are too many codes to compare every one.
        own_scores: what the images score with each other.
    """

    settings: IndexSettings
    source: str
    folder: StoredPath
    fingerprint: str
    entries: Entries
    codes: Floats
    lists: InvertedLists | None
    own_scores: OwnScores


def write_index(path: Path, index: StoredIndex) -> None:
    """Write an index into the folder `path`, whole or not at all.

    Raises:
        OutputError: the file cannot be written; what was there before is unchanged.
    """
    # A tensor of JSON lines, as the header of a safetensors file holds 100 MB at most.
    lines = bytearray()
    for entry in index.entries:
        lines += json.dumps(entry.to_json()).encode() + b"\n"
    arrays, content = index.settings.to_content()
    arrays |= {"codes": index.codes, "entries": np.frombuffer(lines, np.uint8)}
    arrays["own_scores"] = index.own_scores.scores
    content |= {
        "source": index.source,
        "folder": asdict(index.folder),
        "fingerprint": index.fingerprint,
    }
    if index.lists is not None:
        parts, numbers = index.lists.to_content()
        arrays, content = arrays | parts, content | numbers
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path / INDEX_NAME, _KIND, FORMAT_VERSION, tensors, content)


def read_index(path: Path) -> StoredIndex:
    """Read the index in the folder `path`.

    Raises:
        ImageIndexError: the file is missing, damaged, or of another version.
    """
    arrays, content = read_parts(path / INDEX_NAME, _KIND)
    lists = None
    with checked(path):
        codes = arrays["codes"]
        count, size = codes.shape if codes.ndim == 2 else (0, 0)
        if "centroids" in arrays:
            lists = InvertedLists.from_content(arrays, content)
        settings = IndexSettings.from_content(arrays, content, size)
        stored = StoredIndex(
            settings=settings,
            source=content["source"],
            folder=StoredPath(**content["folder"]),
            fingerprint=content["fingerprint"],
            entries=Entries(Entry.from_json(parse_json(line)) for line in io.BytesIO(arrays["entries"].data)),
            codes=codes,
            lists=lists,
            own_scores=OwnScores(arrays["own_scores"], settings.vector_space.is_similarity),
        )
        check_texts([stored.source, stored.fingerprint, *vars(stored.folder).values()])
        check_array("codes", codes, (count, size))
        stored.own_scores.check()
        # Whatever the digest says: whoever forges a file can give it a digest, and FAISS checks no bounds.
        if lists:
            lists.check(count, size)
        rows = np.array([-1 if entry.row is None else entry.row for entry in stored.entries])
        steps = np.diff(rows, prepend=-1)
        if not len(rows) or rows[-1] != count - 1 or steps[0] != 1 or not np.isin(steps, (0, 1)).all():
            raise ValueError("not an entry for each code, in their order")
    return stored


@dataclass(frozen=True)
class _Part:
    """The images that match a filter, ready to be searched.

    Attributes:
        nearest: the distinct contents among them.
        positions: (n,) where each image is in `FileIndex.entries`, ordered by content.
        starts: where the images of each content start in `positions`, and its length.
    """

    nearest: NearestNeighbours
    positions: Rows
    starts: Rows


class FileIndex(Index):
    """An index held in memory.

    Attributes:
        entries: the indexed images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D) float32.
        folder: the image folder that the paths of the entries are relative to.
        source: what was indexed: that folder, or a pack by its path or URL.
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
        super().__init__(stored.settings, stored.codes.shape[1], encoder, update)
        self.path = path
        self.source = stored.source if is_url(stored.source) else Path(stored.source)
        self.folder = stored.folder.folder(path)
        self.entries, self.codes, self.sources = stored.entries, stored.codes, (stored.source,)
        self.recall = 1.0 if stored.lists is None else stored.lists.recall
        self.update_command = f"autoencode index {self.source} --out {path}"
        self._stored = stored
        self._starts = _starts(self.entries.rows, len(self.codes))
        self._part: tuple[ImageFilter, _Part] | None = None

    @property
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""
        return self._stored.lists is None

    @functools.cached_property
    def pack(self) -> Pack:
        """The images, decoded, in the order of `entries`.

        Raises:
            PackError: the pack is missing, or holds other images by now.
        """
        own = self.path / PACK_NAME  # tried first, as the index and its pack may have been moved together
        pack = open_pack(own if own.is_dir() else self.source)
        if pack.fingerprint != self._stored.fingerprint:
            raise PackError(
                f"The images of {pack.location} are not those that {self.path} was made from. "
                f"Update it: {self.update_command}"
            )
        return pack

    def with_distance(self, distance: Distance) -> FileIndex:
        """Return this index with its codes compared by another distance; nothing is written.

        Raises:
            ConfigError: the distance is unknown.
        """
        if distance == self.distance:  # fitting the inverted lists again would change nothing
            return self
        space = fit_vector_space(self.codes, distance)
        settings = dataclasses.replace(self._settings, vector_space=space)
        lists = fit_inverted_lists(space, self.codes)
        own = OwnScores.of(space, self.codes)
        stored = dataclasses.replace(self._stored, settings=settings, lists=lists, own_scores=own)
        return FileIndex(self.path, stored, self._encoder)

    @functools.cached_property
    def nearest(self) -> NearestNeighbours:
        """The codes, ready to be searched."""
        return NearestNeighbours(self.vector_space, self.codes, self._stored.lists)

    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files."""
        return (self.folder / entry.path for entry in self.entries)

    def _count(self, only: ImageFilter) -> int:
        return len(self.entries) if only == EVERY_IMAGE else len(self._part_of(only).positions)

    def _labels(self) -> list[str]:
        return sorted({entry.label for entry in self.entries if entry.label is not None})

    def _search_codes(self, codes: Floats, k: int, only: ImageFilter) -> list[list[Neighbour]]:
        part = self._part_of(only)
        return [
            [
                self._neighbour(position, float(score), length)
                for score, row in zip(near.scores, near.rows, strict=True)
                for position in part.positions[part.starts[row] : part.starts[row + 1]].tolist()
            ][:k]
            for near, length in zip(part.nearest.search(codes, k), lengths_of(codes), strict=True)
        ]

    @functools.cached_property
    def _own(self) -> OwnScores:
        own = self._stored.own_scores
        return own if self._settings.reduction is None else own.with_lengths(self.codes)

    def _part_of(self, only: ImageFilter) -> _Part:
        """Return the images that match a filter; those of the last filter are kept."""
        if only == EVERY_IMAGE:
            return _Part(self.nearest, np.arange(len(self.entries)), self._starts)
        kept = self._part
        if kept is None or kept[0] != only:
            positions = np.flatnonzero(self._mask(only))
            rows, contents = np.unique(self.entries.rows[positions], return_inverse=True)
            # Few images are compared one by one: the lists that a query scans may hold none of them.
            lists = self._stored.lists if len(rows) > EXACT_LIMIT else None
            if lists is not None:
                lists = lists.of(rows)
            nearest = NearestNeighbours(self.vector_space, self.codes[rows], lists)
            # Returned from the local name: another thread may replace the attribute at any moment.
            kept = self._part = only, _Part(nearest, positions, _starts(contents, len(rows)))
        return kept[1]

    def _mask(self, only: ImageFilter) -> NDArray[np.bool_]:
        mask = np.ones(len(self.entries), np.bool_)
        if only.label is not None:
            mask &= self.entries.with_label(only.label)
        if only.split is not None:
            mask &= self.entries.in_split(only.split)
        return mask

    def _neighbour(self, position: int, score: float, length: float) -> Neighbour:
        entry, percentile = self.entries[position], self._own.percentile(score, length)
        return Neighbour(self.folder / entry.path, score, entry.label, position, percentile)


def _starts(rows: Rows, count: int) -> Rows:
    return np.searchsorted(rows, np.arange(count + 1))


def in_memory(index: Index, purpose: str) -> FileIndex:
    """Return the index if it is held in memory.

    Raises:
        ConfigError: the index is not held in memory; the message begins with the purpose.
    """
    if not isinstance(index, FileIndex):
        raise index._needs_memory(purpose)
    return index


class FileStore(IndexStore):
    """Keeps an index of one source in a folder."""

    name: Store = "file"
    contents = (INDEX_NAME, PACK_NAME)

    def holds(self, location: Path | str) -> bool:
        """Whether an index file, usable or not, is in the folder."""
        return isinstance(location, Path) and (location / INDEX_NAME).is_file()

    def open(self, location: Path | str) -> FileIndex:
        """Read the index in the folder; see `open_index`."""
        path = Path(location)
        return FileIndex(path, read_index(path))

    def build(self, request: BuildRequest, location: Path | str) -> FileIndex:
        """Build the index in the folder, or update it; see `build_index`."""
        out, source = Path(location), request.source_name
        with self.lock(out, request.folder):
            old = read_index(out) if self.holds(out) else None
            if old is not None and old.source != source:
                raise ImageIndexError(f"{out} is an index of {old.source}, not of {source}. {CHOOSE_ANOTHER}")
            encoder = request.encoder(out, old.settings if old else None)
            pack = request.pack(encoder, out / PACK_NAME)
            remove_temporaries(out)  # under the lock, as those of a process that is writing look the same
            stored, encoder, update = _updated(old, encoder, pack, request, out)
            if stored is not old:
                write_index(out, stored)
        return FileIndex(out, stored, encoder, update)


def _updated(
    old: StoredIndex | None, encoder: ImageEncoder, pack: Pack, request: BuildRequest, out: Path
) -> tuple[StoredIndex, ImageEncoder, Update]:
    """Return the index of the images of `pack`, the old one itself where nothing differs, and its encoder."""
    # Sorted, so that the order of the codes does not depend on that in which images came.
    contents, first, code_rows = np.unique(pack.entries.digests, return_index=True, return_inverse=True)
    pack_rows = pack.entries.rows[first]
    known = np.unique(old.entries.digests) if old else contents[:0]
    _, kept, old_rows = np.intersect1d(contents, known, assume_unique=True, return_indices=True)
    missing = np.setdiff1d(np.arange(len(contents)), kept, assume_unique=True)
    update = Update(len(missing), len(kept), len(known) - len(kept), 0.0, pack.skipped)

    before = old.settings if old else None
    distance, model = request.distance_for(encoder, before), request.stored_model_path(out, encoder, before)
    folder = StoredPath.of(pack.folder, out)
    # A new path of the model or the images is noted without encoding or fitting anything.
    if old and old.fingerprint == pack.fingerprint and old.settings.vector_space.distance == distance:
        if (old.settings.model_path, old.folder) == (model, folder):
            return old, before.fitted(encoder), update  # type: ignore[union-attr]
        settings = dataclasses.replace(old.settings, model_path=model)
        return dataclasses.replace(old, settings=settings, folder=folder), settings.fitted(encoder), update
    reduction = before.reduction if before else None
    if reduction is not None and reduction.is_outgrown(len(contents)):
        # Vectors of two reductions cannot be compared: all images are encoded again.
        reduction, kept, old_rows, missing = None, kept[:0], old_rows[:0], np.arange(len(contents))
        update = dataclasses.replace(update, encoded=len(missing), kept=0)

    # A random sample first, as contents are ordered by their digest; each part in the order of the shards.
    order = np.concatenate(
        [part[np.argsort(pack_rows[part])] for part in np.split(missing, [min(MOST_FITTED, len(missing))])]
    )
    started, done = time.perf_counter(), 0
    encoder, reduction, batches = request.encoding(encoder, reduction, pack, pack_rows[order])
    codes = np.empty((len(contents), encoder.size), np.float32)
    # One by one, as all at once would copy the old codes in memory.
    for row, old_row in zip(kept.tolist(), old_rows.tolist(), strict=True):
        codes[row] = old.codes[old_row]  # type: ignore[union-attr]
    for batch in batches:
        codes[order[done : done + len(batch)]] = batch
        done += len(batch)
    update = dataclasses.replace(update, seconds=time.perf_counter() - started)
    space = fit_vector_space(codes, distance)
    entries = pack.entries.take(np.arange(len(pack.entries)))  # a copy, as the pack keeps its own rows
    entries.set_rows(code_rows)
    stored = StoredIndex(
        settings=IndexSettings(encoder.kind, encoder.digest, encoder.preprocessing, model, space, reduction),
        source=request.source_name,
        folder=folder,
        fingerprint=pack.fingerprint,
        entries=entries,
        codes=codes,
        lists=fit_inverted_lists(space, codes),
        own_scores=OwnScores.of(space, codes),
    )
    return stored, encoder, update
