"""The update of one source in an index that LanceDB keeps, and the upkeep of its vector index.

A new index fits its vector space to a random sample, before it writes any vector: whoever adds images later,
from whatever machine, then compares them in the same way. An image is known by the digest of its source, path
and content, so that what a killed update wrote is found again, and two processes that add the same image
leave one.

Shapes: N images, R distinct contents, S vectors of a sample, D code dimensions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from typing import TYPE_CHECKING

import faiss
import numpy as np
from numpy.typing import NDArray

from autoencode.data.loader import epoch_order
from autoencode.embedding import MOST_FITTED
from autoencode.errors import ImageIndexError
from autoencode.index.base import Update
from autoencode.index.inverted_lists import EXACT_LIMIT, RECALL_NEIGHBOURS, smallest_nprobe
from autoencode.index.lance.tables import condition
from autoencode.index.neighbours import OWN_SAMPLE, Floats, OwnScores, Rows, configure_faiss

if TYPE_CHECKING:
    from autoencode.data.pack import Pack
    from autoencode.embedding import ImageEncoder
    from autoencode.index.lance.tables import Source, Tables
    from autoencode.index.request import BuildRequest

SAMPLE = 20_000  # distinct contents that the vector space is fitted to
_VALUES_WRITTEN = 8 * 1024**2  # a commit of 32 MB

_NEW_SHARE = 0.1  # fraction of images outside the vector index, which every query compares one by one
_REBUILD_FACTOR = 2  # the vector index is rebuilt when it should have this many times as many lists
_BLOCK_ROWS = 65_536
# Measuring recall sends each vector of the sample to the store for every nprobe tried: few, from 8 on.
_RECALL_SAMPLE, _FIRST_NPROBE = 100, 8
_NEAREST = RECALL_NEIGHBOURS + 1  # one more, because each vector of the sample finds itself


class SourceUpdate:
    """The update of one source: contents without a vector are encoded, a random sample of them first.

    Attributes:
        encoder: with the reduction of the index.
        reduction: that reduction, fitted to the sample if the index is new; None for codes of a model.
        kept: distinct contents whose vectors are in the index.
        removed: distinct contents in the index that the source no longer has.
    """

    def __init__(
        self, encoder: ImageEncoder, pack: Pack, whole: Source, tables: Tables | None, request: BuildRequest
    ) -> None:
        """Compare the images of the source with those in the index; nothing is written yet."""
        self.pack, self.whole = pack, whole
        digests = pack.entries.digests
        self.ids = _ids(whole.name, pack)
        self.stored, there = (self.ids[:0], digests[:0]) if tables is None else tables.ids_of(whole.name)
        self.fresh = np.flatnonzero(~np.isin(self.ids, self.stored))
        contents, self.there = np.unique(digests), np.unique(there)
        is_missing = ~np.isin(contents, self.there)
        self.kept, self.removed = int((~is_missing).sum()), int((~np.isin(self.there, contents)).sum())
        self.order = _order(pack, np.isin(digests, contents[is_missing]))
        self.seconds = 0.0  # spent encoding
        reduction = None if tables is None else tables.settings.reduction
        self.encoder, self.reduction, self._codes = request.encoding(encoder, reduction, pack, self.order)
        self._first: list[Floats] = []

    def sample(self) -> Floats:
        """Return the codes (S, D) of a random sample of the missing contents; `write` writes them first."""
        self._first = self._encoded(SAMPLE)
        return np.concatenate(self._first)

    def write(self, tables: Tables) -> Update:
        """Add missing images, delete those that are gone, and only then mark the source as whole."""
        tables.start_update(self.whole)
        self._write_known(tables)
        self._write_encoded(tables)
        # Deleted last: until here, a search finds at least what it found before.
        gone = self.stored[~np.isin(self.stored, self.ids)]
        tables.delete([one.decode("ascii") for one in gone.tolist()])
        # In storage, where there is no lock, another process may have removed the same source meanwhile.
        if tables.count(condition(source=self.whole.name), latest=True) != len(self.pack):
            raise self._disturbed()
        tables.set_source(self.whole)
        maintain_vector_index(tables)
        changed, count = len(self.fresh) + len(gone), tables.count()
        # It takes a pass over all vectors: a few images more do not change what others score.
        if changed and (count <= EXACT_LIMIT or changed > _NEW_SHARE * count):
            measure_own_scores(tables)
        return Update(len(self.order), self.kept, self.removed, self.seconds, self.pack.skipped)

    def _encoded(self, count: int) -> list[Floats]:
        """Encode further missing contents until there are `count` codes or more; none are left at the end."""
        started = time.perf_counter()
        batches: list[Floats] = []
        while count > 0 and (batch := next(self._codes, None)) is not None:
            batches.append(batch)
            count -= len(batch)
        self.seconds += time.perf_counter() - started
        return batches

    def _write_encoded(self, tables: Tables) -> None:
        """Write the images of each content as it is encoded, a commit at a time."""
        rows = self.pack.entries.rows[self.fresh]
        by_row = np.argsort(rows, kind="stable")
        rows, fresh = rows[by_row], self.fresh[by_row]
        most, start = max(1, _VALUES_WRITTEN // self.encoder.size), 0
        while part := self._first or self._encoded(most):
            self._first = []
            vectors = tables.settings.vector_space.vectors(np.concatenate(part))
            written = self.order[start : start + len(vectors)]
            start += len(vectors)
            begin, end = np.searchsorted(rows, written), np.searchsorted(rows, written, "right")
            # A content may have several files, which are neighbours in the order of `by_row`.
            which = np.repeat(np.arange(len(vectors)), end - begin)
            files = np.concatenate([np.arange(one, last) for one, last in zip(begin, end, strict=True)])
            self._add(tables, fresh[files], vectors[which])

    def _write_known(self, tables: Tables) -> None:
        """Write images whose contents have vectors already: duplicates, and files that were moved."""
        is_known = np.isin(self.pack.entries.digests[self.fresh], self.there)
        fresh, most = self.fresh[is_known], max(1, _VALUES_WRITTEN // self.encoder.size)
        for start in range(0, len(fresh), most):
            part = fresh[start : start + most]
            contents = [str(self.pack.entries[index].sha256) for index in part.tolist()]
            found = tables.vectors_of(self.whole.name, sorted(set(contents)))
            if not found.keys() >= set(contents):
                raise self._disturbed()
            self._add(tables, part, np.stack([found[content] for content in contents]))

    def _disturbed(self) -> ImageIndexError:
        return ImageIndexError(
            f"Another process changed the images of {self.whole.name} in the index during the update. "
            "Give the command again."
        )

    def _add(self, tables: Tables, indices: Rows, vectors: Floats) -> None:
        entries = [self.pack.entries[index] for index in indices.tolist()]
        ids = [one.decode("ascii") for one in self.ids[indices].tolist()]
        tables.add(ids, self.whole.name, entries, vectors)


def _ids(source: str, pack: Pack) -> NDArray[np.bytes_]:
    """Return the id (N,) of each image in the index."""
    # In one buffer: a list of strings would take three times the memory.
    found, start = bytearray(), source.encode("utf-8", "surrogateescape") + b"\0"
    for entry in pack.entries:
        text = f"{entry.path}\0{entry.sha256}".encode("utf-8", "surrogateescape")
        found += hashlib.blake2b(start + text, digest_size=16).hexdigest().encode()
    return np.frombuffer(found, "S32")


def _order(pack: Pack, is_missing: NDArray[np.bool_]) -> Rows:
    """Return the row (R,) of each content to encode: a random sample first, then the others as stored."""
    rows = np.unique(pack.entries.rows[is_missing])
    mixed = epoch_order(rows, 0, 0, pack.rows_per_shard, pack.window)
    # Each part is in the order of the shards; a reduction is fitted to the first.
    parts = np.split(mixed, sorted(min(size, len(mixed)) for size in (MOST_FITTED, SAMPLE)))
    return np.concatenate([np.sort(part) for part in parts])


def maintain_vector_index(tables: Tables, exact_limit: int = EXACT_LIMIT) -> None:
    """Build the vector index where there are too many vectors to compare every one, or extend it.

    Its nprobe is the smallest that finds nearly all of the true nearest neighbours of a sample; one pass over
    the table tells those.
    """
    count = tables.count()
    if count <= exact_limit:
        tables.tidy()
        return
    nlist, wanted = tables.vector_index.nlist, round(math.sqrt(count))
    if not nlist or wanted > _REBUILD_FACTOR * nlist:
        nlist = wanted
        tables.create_vector_index(nlist)
    elif count - tables.indexed() > _NEW_SHARE * count:
        tables.tidy()
    else:
        return
    sample = tables.sample(min(_RECALL_SAMPLE, count))
    limits = _nearest(tables, sample)[:, -1]

    def recall_with(nprobe: int) -> float:
        found = [tables.nearest(vector, _NEAREST, None, nprobe)[1] for vector in sample]
        near = [_squared_distances(vector, vectors) for vector, vectors in zip(sample, found, strict=True)]
        hits = [min(_NEAREST, int((one <= limit).sum())) for one, limit in zip(near, limits, strict=True)]
        return (sum(hits) / len(hits) - 1) / RECALL_NEIGHBOURS

    tables.set_vector_index(nlist, *smallest_nprobe(recall_with, nlist, _FIRST_NPROBE))


def measure_own_scores(tables: Tables) -> None:
    """Measure what a sample of the images score with their nearest neighbour, and keep it in the settings."""
    settings = tables.settings
    own = settings.own or OwnScores(np.zeros(0), settings.vector_space.is_similarity)
    near = _nearest(tables, tables.sample(min(OWN_SAMPLE, tables.count())))
    # Files of the same bytes are all in the table; an image is not its own neighbour, and they are not.
    nearest = np.where(near > 0, near, np.inf).min(1)
    nearest = -np.sort(-nearest[np.isfinite(nearest)])
    # Vectors of similarities have length 1.
    scores = (1 - nearest / 2).clip(-1, 1) if own.is_similarity else np.sqrt(nearest)
    tables.set_settings(dataclasses.replace(settings, own=dataclasses.replace(own, scores=scores)))


def _nearest(tables: Tables, sample: Floats) -> NDArray[np.float64]:
    """Return the squared distances (S, _NEAREST) of vectors of the table (S, D) to the nearest, in order.

    The first is that of the vector to itself.
    """
    configure_faiss()
    best = np.full((len(sample), _NEAREST), np.inf)
    for block in tables.blocks(_BLOCK_ROWS):
        _, rows = faiss.knn(sample, block, min(_NEAREST, len(block)), metric=faiss.METRIC_L2)
        both = np.concatenate([best, _squared_distances(sample[:, None], block[rows])], axis=1)
        best = np.sort(both, axis=1)[:, :_NEAREST]
    return best


def _squared_distances(one: Floats, other: Floats) -> NDArray[np.float64]:
    return np.asarray(np.square(one.astype(np.float64) - other).sum(-1))
