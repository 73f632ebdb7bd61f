"""The store of LanceDB: an index in a folder or in object storage, of which a query reads only what it needs.

Shapes: Q queries, D code dimensions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencode.errors import ConfigError, ImageIndexError, MissingExtraError, OutputError
from autoencode.index.base import EVERY_IMAGE, ImageFilter, Index, Neighbour, Update
from autoencode.index.interface import (
    CHOOSE_ANOTHER,
    REBUILD,
    IndexSettings,
    IndexStore,
    StoredPath,
)
from autoencode.index.inverted_lists import EXACT_LIMIT
from autoencode.index.lance.tables import (
    CONTENTS,
    IMAGES,
    PACKS,
    SETTINGS,
    SETTINGS_TABLE,
    SOURCE_COLUMNS,
    SOURCES,
    Source,
    Tables,
    VectorIndex,
    condition,
    images_schema,
    said,
    settings_bytes,
)
from autoencode.index.lance.update import SourceUpdate
from autoencode.index.neighbours import OWN_SAMPLE, Floats, OwnScores, fit_vector_space, lengths_of, rank
from autoencode.storage import RemoteFolder

if TYPE_CHECKING:
    from autoencode.configuration import Store
    from autoencode.embedding import ImageEncoder
    from autoencode.index.request import BuildRequest


class LanceIndex(Index):
    """An index that LanceDB keeps. It may be of several folders."""

    def __init__(
        self, tables: Tables, encoder: ImageEncoder | None = None, update: Update | None = None
    ) -> None:
        """Open an index; see `open_index`."""
        super().__init__(tables.settings, tables.size, encoder, update)
        self.path = tables.location
        self.update_command = f"autoencode index FOLDER --out {self.path}"
        self._tables, self._vector_index = tables, tables.vector_index
        self.recall = self._vector_index.recall
        sources = tables.sources()
        self.unfinished = tuple(source.name for source in sources if not source.is_whole)
        self._folders = {source.name: source.folder.folder(self.path) for source in sources}
        self.sources = tuple(self._folders)

    @property
    def is_exact(self) -> bool:
        """Whether a query is compared with every code."""
        return not self._vector_index.nlist

    def files(self, like: Path) -> Iterator[Path]:
        """Yield the indexed files that have the same name as `like`."""
        return (self._folder(row.source) / row.path for row in self._tables.named(like.name))

    def _count(self, only: ImageFilter) -> int:
        return self._tables.count(condition(**vars(only)))

    def _search_codes(self, codes: Floats, k: int, only: ImageFilter) -> list[list[Neighbour]]:
        # Few images are compared one by one: the lists that a query scans may hold none of them.
        is_exact = self.is_exact or (only != EVERY_IMAGE and self._count(only) <= EXACT_LIMIT)
        nprobe, where = None if is_exact else self._vector_index.nprobe, condition(**vars(only))
        queries = zip(self.vector_space.vectors(codes), lengths_of(codes), strict=True)
        return [self._nearest(vector, length, k, where, nprobe) for vector, length in queries]

    def _nearest(
        self, vector: Floats, length: float, k: int, where: str | None, nprobe: int | None
    ) -> list[Neighbour]:
        rows, vectors = self._tables.nearest(vector, k, where, nprobe)
        own = self._settings.own
        # Images of equal scores come in an order of their own, as in an index in memory.
        order = sorted(range(len(rows)), key=lambda index: (rows[index].sha256, rows[index].path))
        found = rank(self.vector_space, vector, vectors[order], np.arange(len(order)), k)
        near = [rows[order[index]] for index in found.rows.tolist()]
        return [
            Neighbour(
                self._folder(row.source) / row.path,
                score,
                row.label,
                None,
                None if own is None else own.percentile(score, length),
            )
            for row, score in zip(near, found.scores.tolist(), strict=True)
        ]

    def _folder(self, source: str) -> Path:
        if source not in self._folders:
            raise ImageIndexError(f"{self.path} has an image of {source}, which is not among its folders.")
        return self._folders[source]


class LanceStore(IndexStore):
    """Keeps an index of one or several sources in a folder or in object storage."""

    name: Store = "lance"
    contents = CONTENTS
    schemes = ("s3://", "gs://", "az://")

    def holds(self, location: Path | str) -> bool:
        """Whether a settings table, usable or not, is in the folder or at the URL."""
        if isinstance(location, Path):
            return (location / SETTINGS_TABLE).is_dir()
        return RemoteFolder(location).stamp(SETTINGS_TABLE) is not None

    def open(self, location: Path | str) -> LanceIndex:
        """Open the index; see `open_index`."""
        tables = find_tables(location)
        if tables is None:
            raise self.nothing_at(location)
        sources = tables.sources()
        if not any(source.fingerprint for source in sources):
            source = sources[0].name if sources else "FOLDER"
            raise ImageIndexError(
                f"The index {location} is not finished. Run again: autoencode index {source} --out {location}"
            )
        return LanceIndex(tables)

    def build(self, request: BuildRequest, location: Path | str) -> LanceIndex:
        """Build the index, or update the images of one source in it; see `build_index`."""
        with self._writing(location, request.folder):
            tables = find_tables(location) if self.holds(location) else None
            old = None if tables is None else tables.settings
            encoder = request.encoder(location, old)
            # Vectors, not codes, are in the table: another distance would need every image encoded again.
            if old is not None and request.distance not in (None, old.vector_space.distance):
                raise ConfigError(
                    f"{location} compares codes by {old.vector_space.distance}, which cannot be changed, as "
                    f"the codes themselves are not kept. {CHOOSE_ANOTHER}"
                )
            model = request.stored_model_path(location, encoder, old)
            # In storage the path is left alone: each machine that updates the index has its model elsewhere.
            if tables is not None and isinstance(location, Path) and model != tables.settings.model_path:
                tables.set_settings(dataclasses.replace(tables.settings, model_path=model))
            name = request.source_name
            pack = request.pack(encoder, _pack_location(location, name))
            whole = Source(name, StoredPath.of(pack.folder, location), pack.fingerprint)
            # Counted, as an index whose newest version was lost has fewer rows than its sources say.
            if tables is not None and whole in tables.sources() and _count(tables, name) == len(pack):
                kept = len(np.unique(pack.entries.digests))
                fitted = tables.settings.fitted(encoder)
                return LanceIndex(tables, fitted, Update(0, kept, 0, 0.0, pack.skipped))
            update = SourceUpdate(encoder, pack, whole, tables, request)
            if update.removed and not update.kept:
                raise ConfigError(
                    f"{location} has {update.removed:,} images of {name}, and none of them is there now. Are "
                    "they another machine's, or another folder's? To remove them from the index: --remove."
                )
            if tables is None:
                sample = update.sample()
                space = fit_vector_space(sample, request.distance_for(encoder, None))
                # Scores are measured when all images are there; lengths are lost when codes become vectors.
                own = OwnScores(np.zeros(0), space.is_similarity)
                own = own if update.reduction is None else own.with_lengths(sample[:OWN_SAMPLE])
                settings = IndexSettings(
                    encoder.kind, encoder.digest, encoder.preprocessing, model, space, update.reduction, own
                )
                tables = create_tables(location, settings, update.encoder.size)
                # Another process may have created them first, with another model.
                tables.settings.check_encoder(location, encoder, CHOOSE_ANOTHER)
            return LanceIndex(tables, update.encoder, update.write(tables))

    def remove_source(self, location: Path | str, source: str) -> int:
        """Remove the images of a source; see `remove_source`. After a kill, the same call continues."""
        with self._writing(location):
            tables = find_tables(location)
            sources = [] if tables is None else tables.sources()
            found = next((one for one in sources if one.name == source), None)
            if tables is None or found is None:
                others = ", ".join(one.name for one in sources) or "nothing"
                raise ConfigError(f"{location} has no images of {source}. It is of: {others}.")
            # Marked first and deleted last, so that a kill between leaves a source known as unfinished.
            tables.start_update(found)
            count = _count(tables, source)
            tables.remove_images(source)
            _remove_pack(_pack_location(location, source))
            tables.remove_source(source)
            tables.tidy(timedelta())  # images that were removed can be read from no older version
            return count

    @contextlib.contextmanager
    def _writing(self, location: Path | str, source: Path | None = None) -> Iterator[None]:
        """Let one process write an index in a folder; in storage several may, and lose nothing."""
        # Object storage has no locks; there, each commit is tried again on top of those of other writers.
        with contextlib.nullcontext() if isinstance(location, str) else self.lock(location, source):
            yield


def _count(tables: Tables, source: str) -> int:
    return tables.count(condition(source=source), latest=True)


def find_tables(location: Path | str) -> Tables | None:
    """Open the tables of the index at `location`; None if its maker was killed before they were complete.

    Raises:
        ImageIndexError: the tables are damaged, or of another version.
        MissingExtraError: LanceDB is not installed.
    """
    database = _connect(location)
    try:
        database.open_table(SETTINGS)
    except Exception as err:
        if isinstance(err, ValueError) and "not found" in str(err):
            return None
        raise ImageIndexError(f"The index {location} could not be read ({said(err)}). {REBUILD}") from err
    return Tables(location, database)


def create_tables(location: Path | str, settings: IndexSettings, size: int) -> Tables:
    """Create the tables of a new index; if several processes do so at once, the settings of one win.

    Raises:
        ImageIndexError: there are images whose settings are lost.
        OutputError: the tables cannot be written.
        MissingExtraError: LanceDB is not installed.
    """
    import pyarrow as pa

    database = _connect(location)
    values = {"settings": settings_bytes(settings), **vars(VectorIndex())}
    types = {"settings": pa.binary(), "nlist": pa.int64(), "nprobe": pa.int64(), "recall": pa.float64()}
    row = pa.table({name: [value] for name, value in values.items()}, schema=pa.schema(list(types.items())))
    try:
        sources = pa.schema([(name, pa.string()) for name in SOURCE_COLUMNS])
        database.create_table(SOURCES, schema=sources, exist_ok=True)
        images = database.create_table(IMAGES, schema=images_schema(size), exist_ok=True)
        # Another process that creates the index right now writes its settings before its first image.
        if images.count_rows() and not LanceStore().holds(location):
            raise ImageIndexError(f"{location} has images, and has lost what their codes are. {REBUILD}")
        database.create_table(SETTINGS, row)
    except ImageIndexError:
        raise
    except Exception as err:
        if "already exists" not in str(err):
            raise OutputError(f"Could not write to the index {location} ({said(err)}).") from err
    return Tables(location, database)


def _connect(location: Path | str) -> Any:  # noqa: ANN401
    try:
        import lancedb
    except ImportError as err:
        raise MissingExtraError("lance", "An index kept by LanceDB") from err
    options = RemoteFolder(location).lance_options() if isinstance(location, str) else None
    try:
        return lancedb.connect(str(location), storage_options=options)
    except Exception as err:
        raise ImageIndexError(f"Could not open the index {location} ({said(err)}).") from err


def _pack_location(index: Path | str, source: str) -> Path | str:
    """Return where the images of a folder are kept, decoded, in an index in a folder or at a URL."""
    name = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{index}/{PACKS}/{name}" if isinstance(index, str) else index / PACKS / name


def _remove_pack(pack: Path | str) -> None:
    if isinstance(pack, Path):
        shutil.rmtree(pack, ignore_errors=True)
        return
    remote = RemoteFolder(pack)
    for name in remote.listing():
        remote.delete(name)
