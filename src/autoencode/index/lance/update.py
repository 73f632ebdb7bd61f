"""Make an index that LanceDB keeps, or bring one in step with a folder: codes are written as they are made.

A new index learns how codes are compared from a sample, before it writes any: whoever adds to it later, from
whatever machine, compares in the same way. An image is known by the digest of its source, path and content,
so what a killed update has written is found again, and two that do the same leave one of each.

Shapes: N images, R distinct contents, D values in a code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import exclusive, names_in
from autoencode.data.loader import epoch_order
from autoencode.data.remote import named
from autoencode.errors import ConfigError, ImageIndexError, OutputError
from autoencode.index.base import Update
from autoencode.index.lance.store import LanceIndex, create_tables, find_tables, is_lance_index, keep_fast
from autoencode.index.lance.tables import ID_BYTES, PACKS, TABLE_NAMES, UPDATING, Source, Tables
from autoencode.index.memory import is_index
from autoencode.index.neighbours import Floats, Rows, fit_space
from autoencode.index.request import ANOTHER, Request, codes_of
from autoencode.index.settings import IndexSettings, Place, check_encoder
from autoencode.storage import RemoteFolder, folder_or_url

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.embedding import ImageEncoder

SAMPLE = 20_000  # contents that whitening is learned from
_VALUES_WRITTEN = 8 * 1024**2  # a commit of 32 MB


def build_lance_index(request: Request, out: Path | str) -> LanceIndex:
    """Index the images of a folder, or bring the index in step with it; see `build_index`."""
    with _alone(out):
        tables = find_tables(out)
        old = None if tables is None else tables.settings
        encoder = request.encoder(old)
        if old is not None:
            check_encoder(out, old, encoder, ANOTHER)
            if request.distance not in (None, old.space.distance):
                raise ConfigError(
                    f"{out} compares codes by {old.space.distance}, and goes on to: it does not keep the "
                    f"codes themselves. {ANOTHER}"
                )
        model = None if request.model_path is None else Place.of(request.model_path, out)
        # Of an index in storage, each machine has its model elsewhere.
        if tables is not None and isinstance(out, Path) and model not in (None, tables.settings.model):
            tables.set_settings(dataclasses.replace(tables.settings, model=model))
        name = named(request.source)
        pack = request.pack(encoder, _inside(out, PACKS, _pack_name(name)))
        whole = Source(name, Place.of(pack.folder, out), pack.fingerprint)
        # An index whose newest version was lost has fewer rows than it says: they are counted.
        if tables is not None and whole in tables.sources() and tables.count_of(name) == len(pack):
            kept = len(np.unique(pack.entries.digests))
            return LanceIndex(tables, encoder, Update(0, kept, 0, 0.0, pack.skipped))
        update = _Update(encoder, pack, whole, tables, request)
        if update.removed and not update.kept:
            raise ConfigError(
                f"{out} has {update.removed:,} images of {name}, and none of them is there now. Are they "
                "another machine's, or another folder's? To take them out of the index first: --remove."
            )
        if tables is None:
            space = fit_space(update.sample(), request.distance_of(encoder, None))
            settings = IndexSettings(encoder.kind, encoder.digest, pack.preprocessing, model, space)
            tables = create_tables(out, settings, encoder.size)
            check_encoder(out, tables.settings, encoder, ANOTHER)
        return LanceIndex(tables, encoder, update.write(tables))


def remove_source(index: str | Path, source: str | Path) -> int:
    """Take the images of a folder or pack out of an index that LanceDB keeps; return how many they were.

    The folder is not touched, and need not be there any more. After a kill the same call goes on.

    Args:
        index: the folder of the index, or its URL.
        source: as it was given to `build_index`; a relative path is taken from here.

    Raises:
        ImageIndexError: there is no such index, it is kept in a file, damaged, or being written.
        ConfigError: it has no images of that folder.
        StorageError: the storage cannot be reached.
        OutputError: it cannot be written.
        MissingExtraError: LanceDB is not installed.
    """
    place, given = folder_or_url(index), folder_or_url(source)
    if not is_lance_index(place):
        kept = "An index in a file is of one folder: delete it." if is_index(Path(index)) else ""
        raise ImageIndexError(f"No index that LanceDB keeps at {place}. {kept}".strip())
    with _alone(place):
        tables = find_tables(place)
        sources = [] if tables is None else tables.sources()
        name = given if isinstance(given, str) else str(given.resolve())
        found = next((one for one in sources if one.name == name), None)
        if tables is None or found is None:
            others = ", ".join(one.name for one in sources) or "nothing"
            raise ConfigError(f"{place} has no images of {name}. It is of: {others}.")
        tables.set_source(dataclasses.replace(found, fingerprint=UPDATING))
        count = tables.remove_images(name)
        _remove_pack(_inside(place, PACKS, _pack_name(name)))
        tables.remove_source(name)
        tables.tidy(timedelta())
        return count


def _remove_pack(pack: Path | str) -> None:
    if isinstance(pack, Path):
        shutil.rmtree(pack, ignore_errors=True)
        return
    remote = RemoteFolder(pack)
    for name in remote.listing():
        remote.delete(name)


def _pack_name(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _inside(out: Path | str, *names: str) -> Path | str:
    return "/".join([out, *names]) if isinstance(out, str) else out.joinpath(*names)


@contextlib.contextmanager
def _alone(out: Path | str) -> Iterator[None]:
    """Let one process update an index in a folder; in storage several may, and lose nothing."""
    if isinstance(out, str):
        yield
        return
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Choose another output.")
    if is_index(out):
        raise OutputError(f"{out} is an index in a file. Choose another output, or --store file.")
    if names_in(out) - {PACKS, *TABLE_NAMES}:
        raise OutputError(f"{out} is not an index of LanceDB, and not empty. Choose another output.")
    busy = f"Another process is writing {out}. Wait until it is done, or choose another output."
    with exclusive(out, busy, ImageIndexError):
        yield


class _Update:
    """One source, brought in step: what is missing is encoded, a random sample of it first."""

    def __init__(
        self, encoder: ImageEncoder, pack: Pack, whole: Source, tables: Tables | None, request: Request
    ) -> None:
        """Compare the images of the source with those that are in the index."""
        self.size, self.pack, self.whole = encoder.size, pack, whole
        digests = pack.entries.digests
        self.ids = _ids(whole.name, pack)
        self.stored, there = (self.ids[:0], digests[:0]) if tables is None else tables.ids_of(whole.name)
        self.fresh = np.flatnonzero(~np.isin(self.ids, self.stored))
        contents, self.there = np.unique(digests), np.unique(there)
        is_missing = ~np.isin(contents, self.there)
        self.kept, self.removed = int((~is_missing).sum()), int((~np.isin(self.there, contents)).sum())
        self.order = _order(pack, np.isin(digests, contents[is_missing]))
        self.seconds = 0.0  # spent encoding
        self._codes = self._encoded(encoder, request)
        self._first: list[Floats] = []

    def sample(self) -> Floats:
        """Return the codes (S, D) of a random sample of what is missing."""
        self._first = _taken(self._codes, SAMPLE)
        return np.concatenate(self._first)

    def write(self, tables: Tables) -> Update:
        """Write what is missing and delete what is gone; then say that the source is whole."""
        was = next((one for one in tables.sources() if one.name == self.whole.name), None)
        changing = UPDATING if was and was.fingerprint else ""
        tables.set_source(dataclasses.replace(self.whole, fingerprint=changing))
        self._write_known(tables)
        self._write_encoded(tables)
        gone = self.stored[~np.isin(self.stored, self.ids)]
        tables.delete([one.decode("ascii") for one in gone.tolist()])
        if tables.count_of(self.whole.name) != len(self.pack):
            raise self._disturbed()
        tables.set_source(self.whole)
        keep_fast(tables)
        return Update(len(self.order), self.kept, self.removed, self.seconds, self.pack.skipped)

    def _encoded(self, encoder: ImageEncoder, request: Request) -> Iterator[Floats]:
        done, started = 0, time.perf_counter()
        for codes in codes_of(encoder, self.pack, self.order, request.cluster):
            self.seconds += time.perf_counter() - started
            yield codes
            started = time.perf_counter()
            done += len(codes)
            if request.progress:
                request.progress(done, len(self.order))

    def _write_encoded(self, tables: Tables) -> None:
        """Write the images of each content as it is encoded, a commit at a time."""
        rows = self.pack.entries.rows[self.fresh]
        by_row = np.argsort(rows, kind="stable")
        rows, fresh = rows[by_row], self.fresh[by_row]
        most, start = max(1, _VALUES_WRITTEN // self.size), 0
        while part := self._first or _taken(self._codes, most):
            self._first = []
            vectors = tables.settings.space.vectors(np.concatenate(part))
            written = self.order[start : start + len(vectors)]
            start += len(vectors)
            begin, end = np.searchsorted(rows, written), np.searchsorted(rows, written, "right")
            which = np.repeat(np.arange(len(vectors)), end - begin)  # of the contents, for each of its copies
            copies = np.concatenate([np.arange(one, last) for one, last in zip(begin, end, strict=True)])
            self._add(tables, fresh[copies], vectors[which])

    def _write_known(self, tables: Tables) -> None:
        """Write images whose contents have vectors already: copies, and files that were moved."""
        is_known = np.isin(self.pack.entries.digests[self.fresh], self.there)
        fresh, most = self.fresh[is_known], max(1, _VALUES_WRITTEN // self.size)
        for start in range(0, len(fresh), most):
            part = fresh[start : start + most]
            contents = [str(self.pack.entries[place].sha256) for place in part.tolist()]
            found = tables.vectors_of(self.whole.name, sorted(set(contents)))
            if not found.keys() >= set(contents):
                raise self._disturbed()
            self._add(tables, part, np.stack([found[content] for content in contents]))

    def _disturbed(self) -> ImageIndexError:
        return ImageIndexError(
            f"Another process changed the images of {self.whole.name} in the index meanwhile. Give the "
            "command again."
        )

    def _add(self, tables: Tables, places: Rows, vectors: Floats) -> None:
        entries = [self.pack.entries[place] for place in places.tolist()]
        ids = [one.decode("ascii") for one in self.ids[places].tolist()]
        tables.add(ids, self.whole.name, entries, vectors)


def _ids(source: str, pack: Pack) -> NDArray[np.bytes_]:
    """Return the id (N,) of each image: what it is known by in the index."""
    found, start = bytearray(), source.encode("utf-8", "surrogateescape") + b"\0"
    for entry in pack.entries:
        text = f"{entry.path}\0{entry.sha256}".encode("utf-8", "surrogateescape")
        found += hashlib.blake2b(start + text, digest_size=ID_BYTES // 2).hexdigest().encode()
    return np.frombuffer(found, f"S{ID_BYTES}")


def _order(pack: Pack, is_missing: NDArray[np.bool_]) -> Rows:
    """Return the row (R,) of each content to encode: a random sample first, then the others as they lie."""
    rows = np.unique(pack.entries.rows[is_missing])
    mixed = epoch_order(rows, 0, 0, pack.rows_per_shard, pack.window)
    sample = np.sort(mixed[:SAMPLE])
    return np.concatenate([sample, np.setdiff1d(rows, sample)])


def _taken(codes: Iterator[Floats], count: int) -> list[Floats]:
    taken: list[Floats] = []
    while count > 0 and (batch := next(codes, None)) is not None:
        taken.append(batch)
        count -= len(batch)
    return taken
