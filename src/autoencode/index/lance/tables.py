"""The tables of an index that LanceDB keeps, in a folder or in object storage; LanceDB's errors become ours.

    I/settings.lance    one row: the settings, as a file with its digest, and the numbers of the vector index
    I/sources.lance     one row per folder or pack; a fingerprint where all of its images are in the index
    I/images.lance      one row per image: its file and its vector
    I/packs/            the images of folders, decoded

The Euclidean distance between vectors orders them as the scores of their codes do, see `VectorSpace.vectors`.
Each change is one commit. If two commits collide, the later one is repeated on top of the earlier.

Shapes: N rows, D code dimensions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.data.entries import Entry, check_inside
from autoencode.errors import AutoencodeError, ImageIndexError, OutputError
from autoencode.index.interface import (
    FORMAT_VERSION,
    REBUILD,
    IndexSettings,
    StoredPath,
    check_texts,
    checked,
    read_parts,
)
from autoencode.index.neighbours import CANDIDATES_PER_NEIGHBOUR, Floats
from autoencode.models.model_file import write_tensors
from autoencode.storage import first_line

SETTINGS, SOURCES, IMAGES, PACKS = "settings", "sources", "images", "packs"
SETTINGS_TABLE = f"{SETTINGS}.lance"
# LanceDB 0.34 keeps a list of the tables beside them, too.
CONTENTS = (SETTINGS_TABLE, f"{SOURCES}.lance", f"{IMAGES}.lance", PACKS, "__manifest")
UPDATING = "updating"

_KIND = "lance-index-settings"
SOURCE_COLUMNS = ("source", "folder", "folder_from_index", "fingerprint")
_SEARCH_COLUMNS = ("source", "path", "label", "sha256", "vector", "_distance")
_PRIMARY_KEY = "lance-schema:unenforced-primary-key"
# Bytes below 0x80 are never escaped, so that no %2F or %00 in a forged table can become part of a path.
_NOT_UTF8, _ESCAPED = re.compile("[%\udc80-\udcff]"), re.compile("%(25|[89A-F][0-9A-F])")
_ATTEMPTS = 10  # with waits of up to 25 s in all
_KEPT_FOR = timedelta(days=1)  # longer than a search runs in a version that it has opened
_IDS_AT_ONCE = 1000  # as a condition with the ids of a million images would be a text of 36 MB


@dataclass(frozen=True)
class VectorIndex:
    """The numbers of LanceDB's vector index (an inverted file); nlist is 0 where every vector is compared."""

    nlist: int = 0
    nprobe: int = 0
    recall: float = 1.0


@dataclass(frozen=True)
class Source:
    """A folder or pack whose images are in the index.

    Attributes:
        name: its absolute path, or its URL.
        folder: the image folder that the paths of its images are relative to.
        fingerprint: of its images, see `Pack.fingerprint`; "" until all of them were in the index once, and
            `UPDATING` while some are added or removed.
    """

    name: str
    folder: StoredPath
    fingerprint: str

    @property
    def is_whole(self) -> bool:
        """Whether all its images are in the index, and no others."""
        return self.fingerprint not in ("", UPDATING)


class Row(NamedTuple):
    """One image: its source, its path in the source's folder, its label, and the digest of its content."""

    source: str
    path: str
    label: str | None
    sha256: str


def condition(**columns: str | None) -> str | None:
    """Return the SQL condition that columns have these texts.

    None leaves a column out; without any, returns None, which selects all images.
    """
    wanted = [f"{column} = {quoted(text)}" for column, text in columns.items() if text is not None]
    return " AND ".join(wanted) or None


def quoted(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + escaped(text).replace("'", "''") + "'"


def escaped(text: str) -> str:
    """Return a path as UTF-8, which Arrow demands: other bytes are written as %FF, and % as %25."""
    return _NOT_UTF8.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", text)


def unescaped(text: Any) -> Any:  # noqa: ANN401 - None stays None
    """Return the path that `escaped` was given."""
    if not isinstance(text, str):
        return text
    return _ESCAPED.sub(lambda found: "%" if found[1] == "25" else chr(0xDC00 + int(found[1], 16)), text)


def settings_bytes(settings: IndexSettings) -> bytes:
    """Return settings as the content of a file that has its digest."""
    arrays, content = settings.to_content()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(path, _KIND, FORMAT_VERSION, tensors, content)
        return path.read_bytes()


def _settings_of(location: Path | str, content: bytes, size: int) -> IndexSettings:
    """Return the settings from `settings_bytes`.

    Raises:
        ImageIndexError: the content is damaged, forged, or of another version.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        path.write_bytes(content)
        try:
            arrays, stated = read_parts(path, _KIND)
        except ImageIndexError as err:
            raise ImageIndexError(str(err).replace(str(path), f"The settings table of {location}")) from err
    with checked(location):
        return IndexSettings.from_content(arrays, stated, size)


def images_schema(size: int) -> Any:  # noqa: ANN401
    """Return the columns of the images, with vectors of `size` dimensions."""
    import pyarrow as pa

    # The key shows LanceDB that two writers, neither of whom sees the other, add the same image.
    key = pa.field("id", pa.string(), nullable=False, metadata={_PRIMARY_KEY: "true"})
    texts = [pa.field(name, pa.string()) for name in ("source", "path", "label", "split", "sha256")]
    return pa.schema([key, *texts, pa.field("vector", pa.list_(pa.float32(), size))])


@contextlib.contextmanager
def _reading(location: Path | str) -> Iterator[None]:
    """Turn an error of LanceDB about unreadable tables into one line.

    Raises:
        ImageIndexError: LanceDB raised an error of its own.
    """
    try:
        yield
    except AutoencodeError:
        raise
    except Exception as err:
        raise ImageIndexError(f"The index {location} could not be read ({said(err)}). {REBUILD}") from err


def said(err: BaseException) -> str:
    """Return the message of an error of LanceDB, without the position in its source code."""
    return re.split(r",? (?:/|at )\S+\.rs:", first_line(err))[0][:300]


class Tables:
    """The open tables of an index. Changes by other processes become visible only at the next write."""

    def __init__(self, location: Path | str, database: Any) -> None:  # noqa: ANN401 - LanceDB is loaded late
        """Open tables that exist; see `find_tables`."""
        self.location = location
        with _reading(location):
            opened = [database.open_table(name) for name in (SETTINGS, SOURCES, IMAGES)]
            self._settings, self._sources, self._images = opened
            rows = self._settings.head(2).to_pylist()
            self.size = int(self._images.schema.field("vector").type.list_size)
            is_ours = self._images.schema.equals(images_schema(self.size))
        if len(rows) != 1 or not is_ours or not isinstance(rows[0].get("settings"), bytes):
            raise ImageIndexError(f"{location} does not hold a usable index (other tables). {REBUILD}")
        self.settings = _settings_of(location, rows[0]["settings"], self.size)
        with checked(location):
            numbers = int(rows[0]["nlist"]), int(rows[0]["nprobe"]), float(rows[0]["recall"])
            self.vector_index = VectorIndex(*numbers)

    def set_vector_index(self, nlist: int, nprobe: int, recall: float) -> None:
        """Replace the numbers of the vector index."""
        self.vector_index = VectorIndex(nlist, nprobe, recall)
        self._commit(self._settings, lambda: self._settings.update(values=vars(self.vector_index)))

    def set_settings(self, settings: IndexSettings) -> None:
        """Replace the settings."""
        values = {"settings": settings_bytes(settings)}
        self._commit(self._settings, lambda: self._settings.update(values=values))
        self.settings = settings

    def sources(self) -> list[Source]:
        """Return the folders and packs whose images are in the index."""
        with _reading(self.location):
            rows = self._sources.to_arrow().to_pylist()
            texts = [[unescaped(row[name]) for name in SOURCE_COLUMNS] for row in rows]
        with checked(self.location):
            check_texts([text for row in texts for text in row])
        return [Source(name, StoredPath(path, relative), mark) for name, path, relative, mark in texts]

    def tidy(self, older_than: timedelta = _KEPT_FOR) -> None:
        """Merge small files, add new vectors to the vector index, and delete files of old versions.

        A process that still searches a version that is older than `older_than` will miss its files.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # LanceDB warns of the files named above
            for table in (self._settings, self._sources, self._images):
                self._commit(table, functools.partial(table.optimize, cleanup_older_than=older_than))

    def start_update(self, source: Source) -> None:
        """Add a source, or mark it as incomplete, before its images change."""
        # A new source gets "", as an index of which no source was ever whole is not opened.
        was_whole = any(one.name == source.name and one.fingerprint for one in self.sources())
        self.set_source(dataclasses.replace(source, fingerprint=UPDATING if was_whole else ""))

    def set_source(self, source: Source) -> None:
        """Add a source, or replace it."""
        import pyarrow as pa

        texts = (source.name, source.folder.absolute, source.folder.relative, source.fingerprint)
        rows = pa.table([[escaped(text)] for text in texts], names=list(SOURCE_COLUMNS))
        merge = self._sources.merge_insert("source").when_matched_update_all().when_not_matched_insert_all()
        self._commit(self._sources, lambda: merge.execute(rows))

    def add(self, ids: Sequence[str], source: str, entries: Sequence[Entry], vectors: Floats) -> None:
        """Add images (N,) with their vectors (N, D) in one commit, except for ids that are there."""
        import pyarrow as pa

        columns = {
            "id": list(ids),
            "source": [escaped(source)] * len(entries),
            "path": [escaped(entry.path) for entry in entries],
            "label": [None if entry.label is None else escaped(entry.label) for entry in entries],
            "split": [entry.split for entry in entries],
            "sha256": [entry.sha256 for entry in entries],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.size),
        }
        rows = pa.table(columns, schema=images_schema(self.size))
        # A merge and no append: what a killed update wrote is written again, and must not be there twice.
        merge = self._images.merge_insert("id").when_not_matched_insert_all()
        self._commit(self._images, lambda: merge.execute(rows))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the images of these ids."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            where = f"id IN ({', '.join(map(quoted, ids[start : start + _IDS_AT_ONCE]))})"
            self._commit(self._images, functools.partial(self._images.delete, where))

    def remove_images(self, source: str) -> None:
        """Delete all images of a source."""
        self._commit(self._images, lambda: self._images.delete(condition(source=source)))

    def remove_source(self, name: str) -> None:
        """Delete a source, but not its images."""
        self._commit(self._sources, lambda: self._sources.delete(condition(source=name)))

    def ids_of(self, source: str) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
        """Return the id (N,), 32 characters, and the SHA-256 (N,), 32 bytes, of each image of a source."""
        ids, digests = bytearray(), bytearray()
        with _reading(self.location):
            query = self._images.search().where(condition(source=source)).select(["id", "sha256"])
            # Into two buffers: as Python strings, those of a million images would take 200 MB, not 64.
            for batch in query.to_batches():
                for text in batch["id"].to_pylist():
                    ids += text.encode("ascii").ljust(32)[:32]
                for text in batch["sha256"].to_pylist():
                    digests += bytes.fromhex(text).ljust(32)[:32]
        return np.frombuffer(ids, "S32"), np.frombuffer(digests, "S32")

    def vectors_of(self, source: str, digests: Sequence[str]) -> dict[str, Floats]:
        """Return the vector (D,) of each content that an image of the source has, by its SHA-256."""
        found: dict[str, Floats] = {}
        for start in range(0, len(digests), _IDS_AT_ONCE):
            part = ", ".join(map(quoted, digests[start : start + _IDS_AT_ONCE]))
            with _reading(self.location):
                query = self._images.search().where(f"{condition(source=source)} AND sha256 IN ({part})")
                table = query.select(["sha256", "vector"]).to_arrow()
                found |= zip(table["sha256"].to_pylist(), self._vectors(table), strict=True)
        return found

    def count(self, where: str | None = None, *, latest: bool = False) -> int:
        """Return the number of images that a condition selects; `latest` with the changes of others."""
        with _reading(self.location):
            if latest:
                self._images.checkout_latest()
            return int(self._images.count_rows(where))

    def nearest(
        self, vector: Floats, k: int, where: str | None, nprobe: int | None
    ) -> tuple[list[Row], Floats]:
        """Return the K images nearest to a vector (D,), in no order, and their vectors (K, D).

        `where` is a `condition`. `nprobe` lists are scanned, and more if they hold fewer than K images; None
        compares every vector.
        """
        with _reading(self.location):
            query = self._images.search(vector).distance_type("l2").limit(k).select(list(_SEARCH_COLUMNS))
            query = query if where is None else query.where(where)
            if nprobe is None:
                query = query.bypass_vector_index()
            else:
                query = query.minimum_nprobes(nprobe).maximum_nprobes(0)  # 0 is no limit
                query = query.refine_factor(CANDIDATES_PER_NEIGHBOUR)
            table = query.to_arrow()
            columns = [table[name].to_pylist() for name in Row._fields]
            rows = [Row(*map(unescaped, texts)) for texts in zip(*columns, strict=True)]
            # Whoever can write to the storage must not lead a search, which shows files, out of the folder.
            check_texts([text for row in rows for text in (row.source, row.path, row.sha256)])
            for row in rows:
                check_inside(row.path)
            return rows, self._vectors(table)

    def named(self, name: str) -> Iterator[Row]:
        """Yield the images whose file has this name."""
        with _reading(self.location):
            where = f"path = {quoted(name)} OR ends_with(path, {quoted('/' + name)})"
            query = self._images.search().where(where)
            for batch in query.select(["source", "path"]).to_batches():
                for source, path in zip(batch["source"].to_pylist(), batch["path"].to_pylist(), strict=True):
                    yield Row(unescaped(source), unescaped(path), None, "")

    def blocks(self, rows: int) -> Iterator[Floats]:
        """Yield the vectors (N, D) of all images, in no order, at most `rows` at once."""
        with _reading(self.location):
            for batch in self._images.search().select(["vector"]).to_batches(rows):
                yield self._vectors(batch)

    def sample(self, count: int) -> Floats:
        """Return the vectors (N, D) of images chosen at random."""
        chosen = np.random.default_rng(0).choice(self.count(), count, replace=False)
        with _reading(self.location):
            return self._vectors(self._images.take_offsets(np.sort(chosen).tolist()).to_arrow())

    def indexed(self) -> int:
        """Return the number of images in the vector index."""
        with _reading(self.location):
            found = [one for one in self._images.list_indices() if one.columns == ["vector"]]
            statistics = self._images.index_stats(found[0].name) if found else None
            return int(statistics.num_indexed_rows) if statistics else 0

    def create_vector_index(self, nlist: int) -> None:
        """Build the vector index anew, with one byte per dimension, and index the columns of conditions."""
        from lancedb.index import Bitmap, BTree, IvfSq

        # Without indexes of their own, a merge by id and a filter would read their whole columns.
        kinds = {"vector": IvfSq(distance_type="l2", num_partitions=nlist), "id": BTree()}
        for column, kind in (kinds | dict.fromkeys(("source", "label", "split"), Bitmap())).items():
            self._commit(self._images, functools.partial(self._images.create_index, column, config=kind))

    def _vectors(self, table: Any) -> Floats:  # noqa: ANN401
        column = table["vector"]  # of a table in chunks, of a batch in one piece
        column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        vectors: Floats = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.size)
        if len(vectors) != len(column) or not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
        return vectors

    def _commit(self, table: Any, write: Callable[[], object]) -> None:  # noqa: ANN401
        for attempt in range(_ATTEMPTS):
            try:
                write()
                return
            except Exception as err:
                # LanceDB has no class of its own for a commit that lost against another.
                if "conflict" not in str(err).lower() or attempt == _ATTEMPTS - 1:
                    raise OutputError(
                        f"Could not write to the index {self.location} ({said(err)}). "
                        "What was written is kept: give the command again."
                    ) from err
                time.sleep(random.uniform(0, 0.05 * 2**attempt))  # at random, or the same two meet again
                with _reading(self.location):
                    table.checkout_latest()
