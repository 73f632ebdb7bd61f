"""Similar images: an index of vectors, the stores that can keep it, and search.

Shapes: R distinct contents, D code dimensions.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np

from autoencode.cluster import joined_cluster
from autoencode.data.pack import Pack, local_folder
from autoencode.data.sources import listed
from autoencode.embedding import ONNX_SUFFIX, find_encoder
from autoencode.errors import ConfigError, ImageFolderError, OutputError, check_choice
from autoencode.index.memory import FileStore, in_memory
from autoencode.index.request import BuildRequest
from autoencode.metrics.retrieval import MOST_QUERIES, RetrievalQuality, retrieval_quality
from autoencode.models.model_file import MODEL_NAME, as_model
from autoencode.storage import folder_or_url

if TYPE_CHECKING:
    from autoencode.configuration import Distance, Split, Store
    from autoencode.data.entries import Entry
    from autoencode.data.listing import Listing
    from autoencode.data.pack import Progress
    from autoencode.data.preprocessing import Limits
    from autoencode.index.base import Index
    from autoencode.index.interface import IndexStore
    from autoencode.models.autoencoder import Autoencoder

# The one place that knows every store. The first is the default, and stores do not know of each other.
# LanceDB is optional: named by its path, it is removed by deleting its folder and its line.
STORES: dict[Store, IndexStore] = {
    "file": FileStore(),
    "lance": resolve_name("autoencode.index.lance:LanceStore")(),
}


def build_index(
    source: Any,  # noqa: ANN401 - see `listed`
    out: str | Path,
    model: Autoencoder | str | Path | None = None,
    *,
    embedding: str | None = None,
    distance: Distance | None = None,
    store: Store | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    packing_progress: Progress | None = None,
) -> Index:
    """Index the images of a folder, or update an index of it: only new images are encoded.

    A kill, a crash or a full disk at any moment leaves the old index whole, or the new one. LanceDB adds
    images as they are encoded: a new index cannot be opened before it is complete, and an index under update
    names the folders that are incomplete (`Index.unfinished`).

    Args:
        source: a folder of images, in sub-folders or not, or whatever `listed` takes; or a pack, which is
            used as it is, also by its URL in storage (see `open_pack`). Images in memory are written beside
            the index.
        out: the folder of the index, made if missing. For LanceDB also a URL, such as s3://bucket/index.
        model: for the embedding "code": a model file, the run folder that holds one, or a model from
            `load_model`; one given by its path is found again when the index is searched.
        embedding: what images are compared by, see `find_encoder`: "pretrained" or "pretrained-224" (the
            default of a new index, with a model too, by the size of its images), "code", or an ONNX file.
        distance: "whitened" (the default of a new index of codes) compares the angle between codes whose
            principal directions are scaled to unit variance, "cosine" (the default of pretrained networks)
            the angle between the codes themselves, "l2" their Euclidean distance. Changing it encodes
            nothing again; LanceDB rejects a change.
        store: "file" (the default of a new index) is held in memory as a whole; "lance" is kept by LanceDB
            (extra `lance`), which reads what a query needs: for more images than fit in memory, of one folder
            or several, and for several machines that each index a folder at once.
        limits: the largest files and pictures to accept.
        ray: the address of a Ray cluster to encode on; this machine must be one of its nodes, and every node
            must see the pack: the one in `out`, or the one given. See `joined_cluster`.
        progress: called with (images encoded, images to encode).
        packing_progress: called with (files done, files to read).

    Raises:
        ModelFileError: the model cannot be loaded.
        ImageFolderError: the folder is missing, has no images, or none that can be used.
        ImageIndexError: the index there is of another model or folder, damaged, of another version, or being
            written.
        PackError: the pack cannot be used.
        StorageError: the storage cannot be reached.
        ConfigError: the embedding, distance or store is unknown, the model was never saved, or the pack has
            another size.
        MissingExtraError: an ONNX file needs the optional part `onnx`, LanceDB `lance`, a cluster `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        OutputError: `out` is not an index, or cannot be written; what was there before is unchanged.
    """
    if store is not None:
        check_choice("store", store, STORES)
    # Before anything is locked or made, so that a mistyped path leaves nothing behind.
    location, loaded = folder_or_url(out), None if model is None else as_model(model)
    source = _source(source, location)
    chosen = _store_for(location, store)
    # Kept in the index, so that a search finds the model without being told where it is.
    path = Path(model) if isinstance(model, str | Path) else None
    if path is not None and path.is_dir():
        path = path / MODEL_NAME
    with joined_cluster(ray, "Encoding on a cluster") as cluster:
        request = BuildRequest(
            loaded, path, source, embedding, distance, limits, progress, packing_progress, cluster
        )
        return chosen.build(request, location)


def _source(given: Any, out: Path | str) -> Path | Listing:  # noqa: ANN401
    """Return a folder or a pack as its path, and anything else as a listing."""
    if isinstance(given, Pack):
        return given.path
    if isinstance(given, str | Path):
        path = local_folder(given)
        if path.is_dir():
            return path
        if not path.is_file():
            raise ImageFolderError(f"No folder of images and no pack at {path}.")
        given = path
    return listed(given, beside=out.absolute().parent if isinstance(out, Path) else None)


def open_index(path: str | Path, model: Autoencoder | str | Path | None = None) -> Index:
    """Open an index.

    Args:
        path: what `build_index` made: a folder, or the URL of an index in storage (extra `lance`).
        model: the model or ONNX file it was made with, if it was moved. None is needed to search with codes,
            or by pretrained features.

    Raises:
        ImageIndexError: there is no index, or it is damaged, not finished, of another version, or made with
            another model.
        ModelFileError: the model given cannot be loaded.
        MissingExtraError: an index kept by LanceDB needs the optional part `lance`.
        StorageError: the storage cannot be reached.
        ConfigError: no store can keep an index at such a URL, or a model is given where it needs an ONNX
            file.
    """
    location = folder_or_url(path)
    opened = _existing(location).open(location)
    if model is not None:
        embedding = opened.embedding
        if not embedding.endswith(ONNX_SUFFIX):
            opened.use(find_encoder(embedding, as_model(model)))
        elif not str(model).endswith(ONNX_SUFFIX):
            raise ConfigError(
                f"{path} compares by an ONNX file, like {Path(embedding).name}. Give that file."
            )
        else:
            opened.use(find_encoder(str(model)))
    return opened


def remove_source(index: str | Path, source: str | Path) -> int:
    """Remove the images of a folder or pack from an index of several; return how many there were.

    The folder is not touched, and need not be there any more. After a kill, the same call continues.

    Args:
        index: the folder of the index, or its URL.
        source: as it was given to `build_index`; a relative path is taken from the current folder.

    Raises:
        ImageIndexError: there is no index, its store keeps only one source, it is damaged or being written.
        ConfigError: the index has no images of the source.
        StorageError: the storage cannot be reached.
        OutputError: the index cannot be written.
        MissingExtraError: LanceDB is not installed.
    """
    location, given = folder_or_url(index), folder_or_url(source)
    store = _existing(location)
    # A folder that is gone cannot be asked whether it is a pack: only its path counts.
    return store.remove_source(location, given if isinstance(given, str) else str(given.resolve()))


def evaluate_search(
    index: Index, *, split: Split | None = None, most_queries: int = MOST_QUERIES, seed: int = 0
) -> RetrievalQuality:
    """Measure how well an index finds images of the same label, leaving each query out.

    A query is compared with every image, however the index is searched, as this measures the codes. Only
    one of several files with the same bytes takes part; images whose label no other has are not queries.

    Args:
        index: from `build_index` or `open_index`, of a folder with one sub-folder per label.
        split: take queries only from this split, such as "test": images the model was not trained on. They
            are compared with all images.
        most_queries: the most queries to use, drawn at random where there are more images.
        seed: for that draw and the bootstrap intervals.

    Raises:
        ConfigError: there are fewer than two labels, no query has another image of its label, or the index is
            not held in memory.
    """
    index = in_memory(index, "Measuring a search")
    # One file of each content: copies of the query would all be hits.
    entry_of: dict[int, Entry] = {}
    for entry in index.entries:
        if entry.label is not None and entry.row is not None:
            entry_of.setdefault(entry.row, entry)
    rows, entries = np.array(list(entry_of), np.int64), list(entry_of.values())
    return retrieval_quality(
        index.vector_space.vectors(index.codes[rows]),
        np.array([entry.label for entry in entries], np.str_),
        queries=np.flatnonzero([split in (None, entry.split) for entry in entries]),
        most_queries=most_queries,
        seed=seed,
    )


def store_at(location: Path | str) -> IndexStore | None:
    """Return the store of the index at a folder or URL, usable or not; None if there is none.

    Raises:
        ConfigError: no store can keep an index at such a URL.
        StorageError: the storage cannot be reached.
    """
    return next((store for store in _stores_for(location) if store.holds(location)), None)


def _existing(location: Path | str) -> IndexStore:
    """Return the store of the index at a folder or URL; raise ImageIndexError if there is none."""
    store = store_at(location)
    if store is None:
        raise _stores_for(location)[0].nothing_at(location)
    return store


def _stores_for(location: Path | str, problem: str = "No index can be at") -> list[IndexStore]:
    """Return the stores that can keep an index at a folder or URL, the default first."""
    stores = list(STORES.values())
    if isinstance(location, Path):
        return stores
    able = [store for store in stores if location.startswith(store.schemes)]
    if not able:
        schemes = ", ".join(scheme for store in stores for scheme in store.schemes)
        or_url = f", or a URL of {schemes}" if schemes else ""
        raise ConfigError(f"{problem} {location}. Give a folder{or_url}.")
    return able


def _store_for(location: Path | str, name: Store | None) -> IndexStore:
    """Return the store asked for; by default that of the index there is, or the first."""
    able, default = _stores_for(location, "Cannot keep an index at"), next(iter(STORES.values()))
    # Storage is asked, which needs credentials, only if the store asked for can keep an index there.
    found = store_at(location) if name is None or STORES[name] in able else None
    store = STORES[name] if name else found or default
    if store not in able:
        names = " or ".join(f"--store {one.name}" for one in able)
        raise ConfigError(f"An index at {location} needs another store. Add {names}, or name a folder.")
    if found not in (None, store):
        raise OutputError(
            f"{location} is an index of the store {found.name}. "
            f"Choose another output, or --store {found.name}."
        )
    return store
