"""Where an index that LanceDB keeps is, in a folder or in object storage: found there, or made.

The groups in which LanceDB looks for neighbours: made, kept up, and searched as widely as is needed.

Shapes: S vectors of a sample, N rows, D values in a vector.

An index that LanceDB keeps, opened: of the images only those that a query finds are read.

Shapes: Q queries, D values in a code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from autoencode.errors import ConfigError, ImageIndexError, MissingExtraError, OutputError
from autoencode.index.base import ALL, MOST_PAIRS, Chosen, Index, Neighbour, Update, needs_memory
from autoencode.index.lance.tables import (
    IMAGES,
    SETTINGS,
    SOURCES,
    Cells,
    Tables,
    filter_of,
    images_schema,
    said,
    settings_bytes,
    sources_schema,
)
from autoencode.index.neighbours import (
    EXACT_LIMIT,
    RECALL_NEIGHBOURS,
    Floats,
    fewest_probes,
    prepare_faiss,
    ranked,
)
from autoencode.index.settings import AGAIN, IndexSettings
from autoencode.storage import RemoteFolder

if TYPE_CHECKING:
    from autoencode.embedding import ImageEncoder
    from autoencode.index.duplicates import NearDuplicates

_SCHEMES = ("s3://", "gs://", "az://")


def find_tables(place: Path | str) -> Tables | None:
    """Open the tables of the index at `place`; None if there is none.

    Raises:
        ImageIndexError: they are damaged.
        StorageError: the storage cannot be reached.
        MissingExtraError: LanceDB is not installed.
    """
    if not is_lance_index(place):
        return None
    database = _connect(place)
    try:
        database.open_table(SETTINGS)
    except Exception as err:
        if isinstance(err, ValueError) and "not found" in str(err):  # its maker was killed before that
            return None
        raise ImageIndexError(f"The index {place} could not be read ({said(err)}). {AGAIN}") from err
    return Tables(place, database)


def is_lance_index(place: Path | str) -> bool:
    """Whether there is an index of LanceDB at `place`, usable or not.

    Raises:
        StorageError: the storage cannot be reached.
        ConfigError: a URL of another kind.
    """
    if isinstance(place, Path):
        return (place / f"{SETTINGS}.lance").is_dir()
    if not place.startswith(_SCHEMES):
        raise ConfigError(
            f"Cannot keep an index at {place}. Give a folder, or a URL of {', '.join(_SCHEMES)}."
        )
    return RemoteFolder(place).stamp(f"{SETTINGS}.lance") is not None


def create_tables(place: Path | str, settings: IndexSettings, size: int) -> Tables:
    """Make the tables of a new index; of several who do so at once, one's settings are those of all.

    Raises:
        ImageIndexError: there are images of an index that has lost its settings.
        OutputError: they cannot be written.
        StorageError: the storage cannot be reached.
        MissingExtraError: LanceDB is not installed.
    """
    import pyarrow as pa

    database = _connect(place)
    cells = Cells()
    line = {"settings": [settings_bytes(settings)], **{name: [value] for name, value in vars(cells).items()}}
    kinds = {"settings": pa.binary(), "cells": pa.int64(), "probes": pa.int64(), "recall": pa.float64()}
    try:
        database.create_table(SOURCES, schema=sources_schema(), exist_ok=True)
        images = database.create_table(IMAGES, schema=images_schema(size), exist_ok=True)
        # Whoever else makes the index now writes its settings before the first image.
        if images.count_rows() and not is_lance_index(place):
            raise ImageIndexError(f"{place} has images, and has lost what their codes are. {AGAIN}")
        database.create_table(SETTINGS, pa.table(line, schema=pa.schema(list(kinds.items()))))
    except ImageIndexError:
        raise
    except Exception as err:
        if "already exists" not in str(err):
            raise OutputError(f"Could not write to the index {place} ({said(err)}).") from err
    return Tables(place, database)


def _connect(place: Path | str) -> Any:  # noqa: ANN401
    try:
        import lancedb
    except ImportError as err:
        raise MissingExtraError("lance", "An index kept by LanceDB") from err
    options = RemoteFolder(place).lance_options() if isinstance(place, str) else None
    try:
        return lancedb.connect(str(place), storage_options=options)
    except Exception as err:
        raise ImageIndexError(f"Could not open the index {place} ({said(err)}).") from err


_NEW_SHARE = 0.1  # of images outside the cells, which are compared one by one
_MORE_CELLS = 2  # cells are made anew when so many times as many are wanted
_BLOCK_ROWS = 65_536
# Each of the sample costs a query for each step, and each query journeys to the store.
_RECALL_SAMPLE, _FIRST_PROBES = 100, 8
_NEAREST = RECALL_NEIGHBOURS + 1


def keep_fast(tables: Tables, exact_limit: int = EXACT_LIMIT) -> None:
    """Group the vectors into cells where they are too many to compare each, or put what is new into them.

    The cells that a query looks into are as many as find nearly all of the true nearest, as measured for a
    sample, with which every vector is compared in one pass.
    """
    count = tables.count()
    if count <= exact_limit:
        tables.tidy()
        return
    cells, wanted = tables.cells().cells, round(math.sqrt(count))
    if not cells or wanted > _MORE_CELLS * cells:
        cells = wanted
        tables.make_cells(cells)
    elif count - tables.indexed() > _NEW_SHARE * count:
        tables.extend_cells()
    else:
        return
    sample = tables.sample(min(_RECALL_SAMPLE, count))
    limits = _farthest(tables, sample)

    def recall_with(probes: int) -> float:
        found = [tables.nearest(vector, _NEAREST, None, probes)[1] for vector in sample]
        near = [_squares(vector, vectors) for vector, vectors in zip(sample, found, strict=True)]
        hits = [min(_NEAREST, int((one <= limit).sum())) for one, limit in zip(near, limits, strict=True)]
        return (sum(hits) / len(hits) - 1) / RECALL_NEIGHBOURS  # each finds itself, which is no neighbour

    tables.set_cells(Cells(cells, *fewest_probes(recall_with, cells, _FIRST_PROBES)))


def _farthest(tables: Tables, sample: Floats) -> NDArray[np.float64]:
    """Return the squared distance (S,) within which the nearest of each vector of a sample (S, D) lie."""
    prepare_faiss()
    best = np.full((len(sample), _NEAREST), np.inf)
    for block in tables.blocks(_BLOCK_ROWS):
        _, rows = faiss.knn(sample, block, min(_NEAREST, len(block)), metric=faiss.METRIC_L2)
        both = np.concatenate([best, _squares(sample[:, None], block[rows])], axis=1)
        best = np.sort(both, axis=1)[:, :_NEAREST]
    return np.asarray(best[:, -1])


def _squares(one: Floats, other: Floats) -> NDArray[np.float64]:
    return np.asarray(np.square(one.astype(np.float64) - other).sum(-1))


class LanceIndex(Index):
    """An index that LanceDB keeps, in a folder or in object storage. It may be of several folders."""

    def __init__(
        self, tables: Tables, encoder: ImageEncoder | None = None, update: Update | None = None
    ) -> None:
        """Open an index; see `open_index`."""
        super().__init__(tables.settings, tables.size, encoder, update)
        self.path = tables.place
        self.again = f"autoencode index MODEL FOLDER --out {self.path}"
        self._tables, self._cells = tables, tables.cells()
        self.recall = self._cells.recall
        sources = tables.sources()
        self.unfinished = tuple(source.name for source in sources if not source.is_whole)
        self._folders: dict[str, Path] = {}
        for source in sources:
            places = source.folder.candidates(self.path)
            self._folders[source.name] = next((place for place in places if place.is_dir()), places[0])

    @property
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""
        return not self._cells.cells

    def near_duplicates(self, threshold: float | None = None, limit: int = MOST_PAIRS) -> NearDuplicates:
        """Reject: every pair would have to be compared where the vectors are.

        Raises:
            ConfigError: always.
        """
        raise needs_memory(self.path, "Finding near-duplicates")

    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files that are named as `like` is."""
        return (self._folder(row.source) / row.path for row in self._tables.named(like.name))

    def _count(self, chosen: Chosen) -> int:
        return self._tables.count(_where(chosen))

    def _found(self, codes: Floats, k: int, chosen: Chosen) -> list[list[Neighbour]]:
        # Of few images every one is compared: the cells looked into may hold none of them.
        is_exact = self.is_exact or (chosen != ALL and self._count(chosen) <= EXACT_LIMIT)
        probes = None if is_exact else self._cells.probes
        return [self._nearest(vector, k, _where(chosen), probes) for vector in self.space.vectors(codes)]

    def _nearest(self, vector: Floats, k: int, where: str | None, probes: int | None) -> list[Neighbour]:
        rows, vectors = self._tables.nearest(vector, k, where, probes)
        order = sorted(range(len(rows)), key=lambda place: (rows[place].sha256, rows[place].path))
        found = ranked(self.space, vector, vectors[order], np.arange(len(order)), k)
        near = [rows[order[place]] for place in found.rows.tolist()]
        return [
            Neighbour(self._folder(row.source) / row.path, score, row.label, None)
            for row, score in zip(near, found.scores.tolist(), strict=True)
        ]

    def _folder(self, source: str) -> Path:
        if source not in self._folders:
            raise ImageIndexError(f"{self.path} has an image of {source}, which is not among its folders.")
        return self._folders[source]


def open_lance_index(place: Path | str) -> LanceIndex:
    """Open the index at `place`; see `open_index`.

    Raises:
        ImageIndexError: there is none, none of its folders is finished, or it is damaged.
        StorageError: the storage cannot be reached.
        MissingExtraError: LanceDB is not installed.
    """
    tables = find_tables(place)
    if tables is None:
        raise ImageIndexError(
            f"No index at {place}. Make one: autoencode index MODEL FOLDER --store lance --out {place}"
        )
    sources = tables.sources()
    if not any(source.fingerprint for source in sources):
        source = sources[0].name if sources else "FOLDER"
        raise ImageIndexError(
            f"The index {place} is not finished. Run again: autoencode index MODEL {source} --out {place}"
        )
    return LanceIndex(tables)


def _where(chosen: Chosen) -> str | None:
    return filter_of((("label", chosen.label), ("split", chosen.split)))
