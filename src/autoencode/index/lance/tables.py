"""What is in the tables of an index that LanceDB keeps: rows, columns, and names as text.

Shapes: D values in a vector.

The tables of an index that LanceDB keeps, in a folder or in object storage; their errors become ours.

    I/settings.lance    one row: the settings, as a file with its digest, and the cells of the search
    I/sources.lance     a row for each folder or pack: its images are all there where it has a fingerprint
    I/images.lance      a row for each image: which file it is, and its vector
    I/packs/            the images of folders, decoded

Vectors are what `Space.vectors` makes of codes: their Euclidean distance orders them as their scores do.
Each change is one commit. Of two at once the later is tried again on what the other left.

Shapes: N rows, D values in a vector.
"""

from __future__ import annotations

import contextlib
import functools
import random
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from autoencode.data.manifest import Entry, check_inside
from autoencode.errors import AutoencodeError, ConfigError, ImageIndexError, OutputError
from autoencode.index.neighbours import FOUND_PER_WANTED, Floats
from autoencode.index.settings import AGAIN, IndexSettings, Place, check_settings, check_texts, settings_of
from autoencode.models.model_file import read_tensors, write_tensors
from autoencode.storage import first_line

SETTINGS, SOURCES, IMAGES, PACKS = "settings", "sources", "images", "packs"
TABLE_NAMES = tuple(f"{name}.lance" for name in (SETTINGS, SOURCES, IMAGES))
ID_BYTES = 32  # hexadecimal digits
UPDATING = "updating"
SOURCE_COLUMNS = ("source", "folder", "folder_from_index", "fingerprint")

_KIND, _VERSION = "lance-index-settings", 1
_KEY = "lance-schema:unenforced-primary-key"
# A byte that is no text, and the sign that stands before its number.
_ODD, _NUMBERED = re.compile("[%\udc80-\udcff]"), re.compile("%(25|[89A-F][0-9A-F])")


@dataclass(frozen=True)
class Cells:
    """How an approximate search is done; see `nearest.Cells`. Without cells every vector is compared."""

    cells: int = 0
    probes: int = 0
    recall: float = 1.0


@dataclass(frozen=True)
class Source:
    """A folder or pack whose images are in the index.

    Attributes:
        name: its absolute path, or its URL.
        folder: the image folder that the paths of its images are relative to.
        fingerprint: of its images, see `Pack.fingerprint`; "" until all of them were there for once, and
            `UPDATING` while some are taken in or out.
    """

    name: str
    folder: Place
    fingerprint: str

    @property
    def is_whole(self) -> bool:
        """Whether all its images are there, and no others."""
        return self.fingerprint not in ("", UPDATING)


class Row(NamedTuple):
    """One image: of which source, where it is in that folder, its label and the digest of its content."""

    source: str
    path: str
    label: str | None
    sha256: str


def filter_of(values: Iterable[tuple[str, str | None]]) -> str | None:
    """Return what selects the images whose columns have these values, where one is given; None for all."""
    wanted = [f"{column} = {quoted(value)}" for column, value in values if value is not None]
    return " AND ".join(wanted) or None


def settings_bytes(settings: IndexSettings) -> bytes:
    """Return settings as the content of a file that has its digest."""
    arrays, content = settings.to_content()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(path, _KIND, _VERSION, tensors, content)
        return path.read_bytes()


def settings_from(place: Path | str, content: bytes, size: int) -> IndexSettings:
    """Read settings of codes of `size` values from `settings_bytes`.

    Raises:
        ImageIndexError: it is damaged, forged, or of a newer version.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SETTINGS
        path.write_bytes(content)
        try:
            tensors, stated, _ = read_tensors(path, _KIND, _VERSION, ImageIndexError, advice=AGAIN)
            settings = IndexSettings(
                **settings_of({name: tensor.numpy() for name, tensor in tensors.items()}, stated)
            )
            check_settings(settings, size)
        except ImageIndexError as err:
            raise ImageIndexError(str(err).replace(str(path), f"The table of settings of {place}")) from err
        except (ConfigError, KeyError, TypeError, ValueError) as err:
            raise ImageIndexError(f"{place} does not hold a usable index ({err}). {AGAIN}") from err
    return settings


def images_schema(size: int) -> Any:  # noqa: ANN401
    """Return the columns of the images, with vectors of `size` values."""
    import pyarrow as pa

    # By its key LanceDB notices that two writers, neither of whom sees the other, add the same image.
    key = pa.field("id", pa.string(), nullable=False, metadata={_KEY: "true"})
    texts = [pa.field(name, pa.string()) for name in ("source", "path", "label", "split", "sha256")]
    return pa.schema([key, *texts, pa.field("vector", pa.list_(pa.float32(), size))])


def sources_schema() -> Any:  # noqa: ANN401
    """Return the columns of the sources."""
    import pyarrow as pa

    return pa.schema([(name, pa.string()) for name in SOURCE_COLUMNS])


def text_of(path: str) -> str:
    """Return a path as text that is UTF-8: what is none is written as %FF, and % as %25."""
    return _ODD.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path)


def read_text(text: Any) -> Any:  # noqa: ANN401 - None stays None
    """Return what `text_of` was given."""
    if not isinstance(text, str):
        return text
    return _NUMBERED.sub(lambda found: "%" if found[1] == "25" else chr(0xDC00 + int(found[1], 16)), text)


def quoted(text: str) -> str:
    """Return a name as it stands in a condition."""
    return "'" + text_of(text).replace("'", "''") + "'"


def listed(texts: Sequence[str]) -> str:
    """Return names as they stand in a condition on one of them."""
    return f"({', '.join(map(quoted, texts))})"


_ATTEMPTS = 10
_KEPT_FOR = timedelta(days=1)
_IDS_AT_ONCE = 1000
_COLUMNS = ("source", "path", "label", "sha256", "vector", "_distance")

Result = TypeVar("Result")


class Tables:
    """The tables, opened. Of changes by others nothing is seen, but by what is written on top of them."""

    def __init__(self, place: Path | str, database: Any) -> None:  # noqa: ANN401 - LanceDB comes when needed
        """Open tables that are there; see `find_tables`."""
        self.place = place
        with reading(place):
            opened = [database.open_table(name) for name in (SETTINGS, SOURCES, IMAGES)]
            self._settings, self._sources, self._images = opened
            line = self._settings.head(2).to_pylist()
            kind = self._images.schema.field("vector").type
            self.size = int(kind.list_size)
            is_ours = self._images.schema.equals(images_schema(self.size))
        if len(line) != 1 or not is_ours or not isinstance(line[0].get("settings"), bytes):
            raise ImageIndexError(f"{place} does not hold a usable index (other tables). {AGAIN}")
        self.settings = settings_from(place, line[0]["settings"], self.size)

    def cells(self) -> Cells:
        """Return how an approximate search is done."""
        with reading(self.place):
            line = self._settings.head(1).to_pylist()[0]
            return Cells(int(line["cells"]), int(line["probes"]), float(line["recall"]))

    def set_cells(self, cells: Cells) -> None:
        """Say how an approximate search is done."""
        self._commit(self._settings, lambda: self._settings.update(values=vars(cells)))

    def set_settings(self, settings: IndexSettings) -> None:
        """Replace what the index states of itself."""
        values = {"settings": settings_bytes(settings)}
        self._commit(self._settings, lambda: self._settings.update(values=values))
        self.settings = settings

    def sources(self) -> list[Source]:
        """Return whose images are in the index."""
        with reading(self.place):
            lines = self._sources.to_arrow().to_pylist()
            texts = [[read_text(line[name]) for name in SOURCE_COLUMNS] for line in lines]
        try:
            check_texts([text for line in texts for text in line])
        except ValueError as err:
            raise ImageIndexError(f"{self.place} does not hold a usable index ({err}). {AGAIN}") from err
        return [Source(name, Place(absolute, near), mark) for name, absolute, near, mark in texts]

    def tidy(self, older_than: timedelta = _KEPT_FOR) -> None:
        """Put small files together, and delete those that only versions older than that need.

        Whoever searches such a version meanwhile, in a process that opened it then, will miss them.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is said above
            for table in (self._settings, self._sources, self._images):
                self._commit(table, functools.partial(table.optimize, cleanup_older_than=older_than))

    def set_source(self, source: Source) -> None:
        """Add a source, or say what is new of it."""
        import pyarrow as pa

        values = (source.name, source.folder.absolute, source.folder.relative, source.fingerprint)
        line = {name: [text_of(value)] for name, value in zip(SOURCE_COLUMNS, values, strict=True)}
        rows = pa.table(line, schema=sources_schema())
        merge = self._sources.merge_insert("source").when_matched_update_all().when_not_matched_insert_all()
        self._commit(self._sources, lambda: merge.execute(rows))

    def add(self, ids: Sequence[str], source: str, entries: Sequence[Entry], vectors: Floats) -> None:
        """Add images (N,) with their vectors (N, D) in one commit, but for those whose id is there."""
        import pyarrow as pa

        columns = {
            "id": list(ids),
            "source": [text_of(source)] * len(entries),
            "path": [text_of(entry.path) for entry in entries],
            "label": [None if entry.label is None else text_of(entry.label) for entry in entries],
            "split": [entry.split for entry in entries],
            "sha256": [entry.sha256 for entry in entries],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.size),
        }
        rows = pa.table(columns, schema=images_schema(self.size))
        merge = self._images.merge_insert("id").when_not_matched_insert_all()
        self._commit(self._images, lambda: merge.execute(rows))

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the images of these ids."""
        for start in range(0, len(ids), _IDS_AT_ONCE):
            where = f"id IN {listed(ids[start : start + _IDS_AT_ONCE])}"
            self._commit(self._images, functools.partial(self._images.delete, where))

    def count_of(self, source: str) -> int:
        """Return how many images of a source there are, after what others have changed too."""
        with reading(self.place):
            self._images.checkout_latest()
        return self.count(f"source = {quoted(source)}")

    def remove_images(self, source: str) -> int:
        """Delete all images of a source; return how many they were."""
        count = self.count_of(source)
        where = f"source = {quoted(source)}"
        self._commit(self._images, functools.partial(self._images.delete, where))
        return count

    def remove_source(self, name: str) -> None:
        """Delete what is known of a source."""
        where = f"source = {quoted(name)}"
        self._commit(self._sources, functools.partial(self._sources.delete, where))

    def ids_of(self, source: str) -> tuple[NDArray[np.bytes_], NDArray[np.bytes_]]:
        """Return the id (N,) and the SHA-256 (N,), 32 bytes, of each image of a source."""
        ids, digests = bytearray(), bytearray()
        with reading(self.place):
            query = self._images.search().where(f"source = {quoted(source)}").select(["id", "sha256"])
            for batch in query.to_batches():
                for line in batch["id"].to_pylist():
                    ids += line.encode("ascii").ljust(ID_BYTES)[:ID_BYTES]
                for line in batch["sha256"].to_pylist():
                    digests += bytes.fromhex(line).ljust(32)[:32]
        return np.frombuffer(ids, f"S{ID_BYTES}"), np.frombuffer(digests, "S32")

    def vectors_of(self, source: str, digests: Sequence[str]) -> dict[str, Floats]:
        """Return the vector (D,) of each content, by its SHA-256, of which the source has an image."""
        found: dict[str, Floats] = {}
        for start in range(0, len(digests), _IDS_AT_ONCE):
            part = listed(digests[start : start + _IDS_AT_ONCE])
            with reading(self.place):
                query = self._images.search().where(f"source = {quoted(source)} AND sha256 IN {part}")
                table = query.select(["sha256", "vector"]).to_arrow()
                found |= zip(table["sha256"].to_pylist(), self._vectors(table), strict=True)
        return found

    def count(self, where: str | None = None) -> int:
        """Return how many images there are, or how many of them are meant by `where`."""
        with reading(self.place):
            return int(self._images.count_rows(where))

    def nearest(
        self, vector: Floats, k: int, where: str | None, probes: int | None
    ) -> tuple[list[Row], Floats]:
        """Return the nearest K to a vector (D,), in no order, and their vectors (K, D).

        Args:
            vector: what to look for.
            k: how many.
            where: which images are meant; see `filter_of`.
            probes: cells to look into, and more where they hold fewer than K; None compares every vector.
        """
        with reading(self.place):
            query = self._images.search(vector).distance_type("l2").limit(k).select(list(_COLUMNS))
            query = query if where is None else query.where(where)
            if probes is None:
                query = query.bypass_vector_index()
            else:
                query = query.minimum_nprobes(probes).maximum_nprobes(0).refine_factor(FOUND_PER_WANTED)
            table = query.to_arrow()
            columns = [table[name].to_pylist() for name in ("source", "path", "label", "sha256")]
            rows = [Row(*map(read_text, line)) for line in zip(*columns, strict=True)]
            check_texts([text for row in rows for text in (row.source, row.path, row.sha256)])
            for row in rows:
                check_inside(row.path)
            return rows, self._vectors(table)

    def named(self, name: str) -> Iterator[Row]:
        """Yield the images whose file has this name, and perhaps others."""
        with reading(self.place):
            where = f"path = {quoted(name)} OR ends_with(path, {quoted('/' + name)})"
            query = self._images.search().where(where)
            for batch in query.select(["source", "path"]).to_batches():
                for source, path in zip(batch["source"].to_pylist(), batch["path"].to_pylist(), strict=True):
                    yield Row(read_text(source), read_text(path), None, "")

    def blocks(self, rows: int) -> Iterator[Floats]:
        """Yield the vectors (N, D) of all images, in no order, at most so many at once."""
        with reading(self.place):
            for batch in self._images.search().select(["vector"]).to_batches(rows):
                yield self._vectors(batch)

    def sample(self, count: int) -> Floats:
        """Return so many vectors (N, D), from all over the table."""
        chosen = np.random.default_rng(0).choice(self.count(), count, replace=False)
        with reading(self.place):
            return self._vectors(self._images.take_offsets(np.sort(chosen).tolist()).to_arrow())

    def indexed(self) -> int:
        """Return how many images are in cells."""
        with reading(self.place):
            found = [one for one in self._images.list_indices() if one.columns == ["vector"]]
            statistics = self._images.index_stats(found[0].name) if found else None
            return int(statistics.num_indexed_rows) if statistics else 0

    def make_cells(self, cells: int) -> None:
        """Group the vectors anew, a byte a value, and order the columns that images are chosen by."""
        from lancedb.index import Bitmap, BTree, IvfSq

        kinds = {"vector": IvfSq(distance_type="l2", num_partitions=cells), "id": BTree()}
        for column, kind in (kinds | dict.fromkeys(("source", "label", "split"), Bitmap())).items():
            self._commit(self._images, functools.partial(self._images.create_index, column, config=kind))

    def extend_cells(self) -> None:
        """Put what is new into the cells, and small files together."""
        self.tidy()

    def _vectors(self, table: Any) -> Floats:  # noqa: ANN401
        column = table["vector"]
        column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        vectors: Floats = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.size)
        if len(vectors) != len(column) or not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
        return vectors

    def _commit(self, table: Any, write: Callable[[], Result]) -> Result:  # noqa: ANN401
        for attempt in range(_ATTEMPTS):
            try:
                return write()
            except Exception as err:
                if "conflict" not in str(err).lower() or attempt == _ATTEMPTS - 1:
                    raise OutputError(
                        f"Could not write to the index {self.place} ({said(err)}). "
                        "What was written is kept: give the command again."
                    ) from err
                time.sleep(random.uniform(0, 0.05 * 2**attempt))
                with reading(self.place):
                    table.checkout_latest()
        raise AssertionError


@contextlib.contextmanager
def reading(place: Path | str) -> Iterator[None]:
    """Make what LanceDB says of tables that it cannot read one line.

    Raises:
        ImageIndexError: it cannot.
    """
    try:
        yield
    except AutoencodeError:
        raise
    except Exception as err:
        raise ImageIndexError(f"The index {place} could not be read ({said(err)}). {AGAIN}") from err


def said(err: BaseException) -> str:
    """Return what LanceDB says, without where in its source it says so."""
    return re.split(r",? (?:/|at )\S+\.rs:", first_line(err))[0][:300]
