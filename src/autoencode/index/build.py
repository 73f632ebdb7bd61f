"""Make an index of a folder of images, or bring one in step with its folder: only what is new is encoded.

Of an index in a file, the pack inside it is brought in step first, then the file is replaced. A kill between
the two leaves the old index whole, beside a pack that the next update goes on from. `lanceindexing` makes the
other kind.

Shapes: R distinct contents, D values in a code.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import exclusive, names_in, remove_temporaries
from autoencode.cluster import joined_cluster
from autoencode.configuration import Distance, Store
from autoencode.data.remote import local, named
from autoencode.errors import ConfigError, ImageFolderError, ImageIndexError, OutputError
from autoencode.index.base import Index, Update
from autoencode.index.duplicates import copy_threshold
from autoencode.index.lance.store import is_lance_index
from autoencode.index.lance.update import build_lance_index
from autoencode.index.memory import (
    INDEX_NAME,
    PACK_NAME,
    FileIndex,
    StoredIndex,
    is_index,
    read_index,
    write_index,
)
from autoencode.index.neighbours import Floats, fit_cells, fit_space
from autoencode.index.request import ANOTHER, Request, codes_of
from autoencode.index.settings import Place, check_encoder
from autoencode.models.autoencoder import Autoencoder
from autoencode.models.model_file import MODEL_NAME, as_model
from autoencode.storage import folder_or_url

if TYPE_CHECKING:
    from autoencode.configuration import Embedding
    from autoencode.data.manifest import Entries
    from autoencode.data.pack import Pack
    from autoencode.data.preprocessing import Limits
    from autoencode.embedding import ImageEncoder


_ROWS_WRITTEN = 4096

_Report = Callable[[int, int], None]


def build_index(
    model: Autoencoder | str | Path,
    source: str | Path,
    out: str | Path,
    *,
    embedding: Embedding | None = None,
    distance: Distance | None = None,
    store: Store | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
    progress: _Report | None = None,
    packing_progress: _Report | None = None,
) -> Index:
    """Index the images of a folder, or bring an index in step with the folder: only what is new is encoded.

    A kill, a crash or a full disk at any moment leaves the old index whole, or the new one. An index kept by
    LanceDB takes images in as they are encoded: a new one is not opened before it is whole, and one that is
    updated names what is not (`Index.unfinished`).

    Args:
        model: a model file, the run folder that holds one, or a model from `load_model`; by its path the
            model is found again when the index is searched.
        source: a folder of images, in sub-folders or not, or a pack, which is taken as it is; a pack
            also by its URL in storage (see `open_pack`).
        out: the folder of the index; made here. For LanceDB also a URL in storage, such as s3://bucket/index.
        embedding: "code" (the default of a new index) compares what the model was trained to keep,
            "pretrained" what EfficientNet-Lite0 sees in images of the model's size (extra `eval`).
        distance: "whitened" (the default of a new index of codes) compares the angle between codes whose
            principal directions are scaled to unit variance, "cosine" (the default of pretrained features)
            that between the codes themselves, "l2" their Euclidean distance. Another than before encodes
            nothing anew, and is rejected by LanceDB.
        store: "file" (the default of a new index) is held in memory as a whole; "lance" is kept by LanceDB
            (extra `lance`), which reads what a query needs: for more images than fit a machine, of one folder
            or several, and for several machines that index a folder each at once.
        limits: the largest files and pictures to accept.
        ray: the address of a Ray cluster to encode on; this machine must be a node of it, and every node see
            the pack: that in `out`, or the one given. See `joined_cluster`.
        progress: called with (images encoded, images to encode).
        packing_progress: called with (files done, files to read).

    Raises:
        ModelFileError: the model cannot be loaded.
        ImageFolderError: the folder is missing, has no images, or none that can be used.
        ImageIndexError: the index there is of another model or folder, damaged, or being written.
        PackError: the pack cannot be used.
        StorageError: the storage cannot be reached.
        ConfigError: unknown embedding, distance or store, a model that was never saved, or a pack of another
            size.
        MissingExtraError: pretrained features need the optional part `eval`, LanceDB `lance`, a
            cluster `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        OutputError: `out` is something else, or cannot be written; what was there before is unchanged.
    """
    source, loaded = local(source), as_model(model)
    if not source.is_dir():
        raise ImageFolderError(f"No folder of images and no pack at {source}.")
    place = folder_or_url(out)
    path = _model_path(model)
    is_lance = _is_lance(place, store)
    with joined_cluster(ray, "Encoding on a cluster") as cluster:
        request = Request(
            loaded, path, source, embedding, distance, limits, progress, packing_progress, cluster
        )
        if is_lance:
            return build_lance_index(request, place)
        if isinstance(place, str):
            raise ConfigError(f"An index at {place} is kept by LanceDB. Add --store lance, or name a folder.")
        return _build_file(request, place)


def _is_lance(place: Path | str, store: Store | None) -> bool:
    """Whether LanceDB is to keep the index, or does so already."""
    if store not in (None, *get_args(Store)):
        raise ConfigError(f"Unknown store {store!r}. Choose one of: {', '.join(get_args(Store))}.")
    return is_lance_index(place) if store is None else store == "lance"


def _model_path(model: Autoencoder | str | Path) -> Path | None:
    if isinstance(model, Autoencoder):
        return None
    path = Path(model)
    return path / MODEL_NAME if path.is_dir() else path


def _build_file(request: Request, out: Path) -> Index:
    _reject_what_is_not_ours(out)
    busy = f"Another process is writing {out}. Wait until it is done, or choose another output."
    with exclusive(out, busy, ImageIndexError):
        old = read_index(out) if is_index(out) else None
        encoder = request.encoder(old)
        if old is not None:
            if old.source != named(request.source):
                raise ImageIndexError(
                    f"{out} is an index of {old.source}, not of {named(request.source)}. {ANOTHER}"
                )
            check_encoder(out, old, encoder, ANOTHER)
        pack = request.pack(encoder, out / PACK_NAME)
        remove_temporaries(out)
        model = None if request.model_path is None else Place.of(request.model_path, out)
        places = _Places(model, named(request.source), Place.of(pack.folder, out))
        stored, update = _in_step(old, encoder, pack, places, out, request)
        if stored is not old:
            write_index(out, stored)
    return FileIndex(out, stored, encoder, update)


@dataclasses.dataclass(frozen=True)
class _Places:
    model: Place | None
    source: str
    folder: Place


def _in_step(
    old: StoredIndex | None,
    encoder: ImageEncoder,
    pack: Pack,
    places: _Places,
    out: Path,
    request: Request,
) -> tuple[StoredIndex, Update]:
    """Return the index of the images of `pack`; the old one itself where nothing differs."""
    distance = request.distance_of(encoder, old)
    contents, first = np.unique(pack.entries.digests, return_index=True)
    pack_rows = pack.entries.rows[first]
    known = np.unique(old.entries.digests) if old else contents[:0]
    old_rows = _places_in(known, contents)
    missing = np.flatnonzero(old_rows < 0)
    update = Update(
        encoded=len(missing),
        kept=len(contents) - len(missing),
        removed=int((_places_in(contents, known) < 0).sum()),
        seconds=0.0,
        skipped=pack.skipped,
    )
    model = places.model or (old.model if old else None)
    if old and old.fingerprint == pack.fingerprint and old.space.distance == distance:
        is_same = (old.model, old.folder) == (model, places.folder)
        return (old if is_same else dataclasses.replace(old, model=model, folder=places.folder)), update
    codes = _on_disk(out, len(contents), encoder.size)
    for code, row in enumerate(old_rows.tolist()):
        if old and row >= 0:
            codes[code] = old.codes[row]
    started = time.perf_counter()
    order = missing[np.argsort(pack_rows[missing])]  # as they lie in the pack
    done = 0
    for made in codes_of(encoder, pack, pack_rows[order], request.cluster):
        codes[order[done : done + len(made)]] = made
        done += len(made)
        if request.progress:
            request.progress(done, len(order))
    update = dataclasses.replace(update, seconds=time.perf_counter() - started)
    space = fit_space(codes, distance)
    stored = StoredIndex(
        embedding=encoder.kind,
        encoder_digest=encoder.digest,
        preprocessing=pack.preprocessing,
        model=model,
        source=places.source,
        folder=places.folder,
        fingerprint=pack.fingerprint,
        entries=_with_rows(pack.entries, contents),
        codes=codes,
        space=space,
        cells=fit_cells(space, codes),
        near_duplicate_threshold=copy_threshold(encoder, space, codes, pack_rows, pack),
    )
    return stored, update


def _places_in(digests: NDArray[np.bytes_], wanted: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Return where each of `wanted` (N,) is among the sorted `digests` (M,), or -1."""
    places = np.searchsorted(digests, wanted)
    there = places < len(digests)
    there[there] = digests[places[there]] == wanted[there]
    return np.where(there, places, -1)


def _with_rows(entries: Entries, contents: NDArray[np.bytes_]) -> Entries:
    numbered = entries.take(np.arange(len(entries)))
    numbered.set_rows(_places_in(contents, entries.digests))
    return numbered


def _on_disk(folder: Path, count: int, size: int) -> Floats:
    """Return room for codes in a file without a name, mapped: the system need not keep its pages in memory.

    Raises:
        OutputError: the disk is full.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            # Written once, or a full disk would end the process when the map is written to.
            for start in range(0, count, _ROWS_WRITTEN):
                file.write(bytes(4 * size * min(_ROWS_WRITTEN, count - start)))
            file.flush()
            return np.asarray(np.memmap(file, np.float32, "r+", shape=(count, size)))
    except OSError as err:
        raise OutputError(
            f"Could not write to {folder}: {err.strerror or err}. The index is as before."
        ) from err


def _reject_what_is_not_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Choose another output.")
    if is_lance_index(out):
        raise OutputError(f"{out} is an index kept by LanceDB. Choose another output, or --store lance.")
    names = names_in(out)
    if INDEX_NAME not in names and names - {PACK_NAME}:
        raise OutputError(f"{out} is not an index, and not empty. Choose another output.")
