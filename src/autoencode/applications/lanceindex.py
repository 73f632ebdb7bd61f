"""An index that LanceDB keeps, opened: of the images only those that a query finds are read.

Shapes: Q queries, D values in a code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from autoencode.applications.duplicates import NearDuplicates
from autoencode.applications.encoders import ImageEncoder
from autoencode.applications.index import ALL, MOST_PAIRS, Chosen, Index, Neighbour, Update, needs_memory
from autoencode.applications.lanceplaces import find_tables
from autoencode.applications.lancerows import filter_of
from autoencode.applications.lancetables import Tables
from autoencode.applications.nearest import EXACT_LIMIT, Floats, ranked
from autoencode.errors import ImageIndexError


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
        """Refuse: every pair would have to be compared where the vectors are.

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
