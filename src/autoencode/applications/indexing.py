"""Make an index of a folder of images, or bring one in step with its folder: only what is new is encoded.

The pack inside the index is brought in step first, then the file of the index is replaced. A kill between
the two leaves the old index whole, beside a pack that the next update goes on from.

Shapes: R distinct contents, D values in a code.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autoencode.applications.duplicates import copy_threshold
from autoencode.applications.encoders import Features, ImageEncoder, image_encoder
from autoencode.applications.encoding import Columns, over_pack
from autoencode.applications.indexfile import (
    INDEX_NAME,
    PACK_NAME,
    Place,
    StoredIndex,
    is_index,
    read_index,
    write_index,
)
from autoencode.applications.nearest import Distance, Floats, fit_cells, fit_space
from autoencode.applications.search import Index, Update
from autoencode.data.cluster import Cluster, joined_cluster
from autoencode.data.images import Limits, Preprocessing
from autoencode.data.mirror import local, named
from autoencode.data.pack import Entries, Pack, is_pack, open_pack, pack_folder
from autoencode.errors import ConfigError, ImageFolderError, ImageIndexError, OutputError
from autoencode.files import TEMPORARY_SUFFIX, exclusive, remove_temporaries
from autoencode.models.autoencoder import INFERENCE_BATCH, Autoencoder
from autoencode.models.modelfile import MODEL_NAME, as_model

DEFAULT_FEATURES: Features = "code"
# Some models' codes share a direction, which whitening takes away; pretrained features lose by it (results).
DEFAULT_DISTANCE: dict[Features, Distance] = {"code": "whitened", "pretrained": "cosine"}

_ROWS_WRITTEN = 4096

_Report = Callable[[int, int], None]


def build_index(
    model: Autoencoder | str | Path,
    source: str | Path,
    out: str | Path,
    *,
    features: Features | None = None,
    distance: Distance | None = None,
    limits: Limits | None = None,
    ray: str | None = None,
    progress: _Report | None = None,
    packing_progress: _Report | None = None,
) -> Index:
    """Index the images of a folder, or bring an index in step with the folder: only what is new is encoded.

    A kill, a crash or a full disk at any moment leaves the old index whole, or the new one.

    Args:
        model: a model file, the run folder that holds one, or a model from `load_model`; by its path the
            model is found again when the index is searched.
        source: a folder of images, in sub-folders or not, or a pack, which is taken as it is; a pack
            also by its URL in storage (see `open_pack`).
        out: the folder of the index; made here.
        features: "code" (the default of a new index) compares what the model was trained to keep,
            "pretrained" what EfficientNet-Lite0 sees in images of the model's size (extra `eval`).
        distance: "whitened" (the default of a new index of codes) compares the angle between codes whose
            principal directions are scaled to unit variance, "cosine" (the default of pretrained features)
            that between the codes themselves, "l2" their Euclidean distance. Another than before encodes
            nothing anew.
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
        ConfigError: unknown features or distance, a model that was never saved, or a pack of another size.
        MissingExtraError: pretrained features need the optional part `eval`, a cluster `ray`.
        RunError: no cluster answers at the address, or it could not do the work.
        OutputError: `out` is something else, or cannot be written; what was there before is unchanged.
    """
    source, out = local(source), Path(out)
    loaded = as_model(model)
    if not source.is_dir():
        raise ImageFolderError(f"No folder of images and no pack at {source}.")
    _refuse_what_is_not_ours(out)
    busy = f"Another process is writing {out}. Wait until it is done, or choose another output."
    with (
        joined_cluster(ray, "Encoding on a cluster") as cluster,
        exclusive(out, busy, ImageIndexError),
    ):
        old = read_index(out) if is_index(out) else None
        encoder = image_encoder(loaded, features or (old.features if old else DEFAULT_FEATURES))
        if not encoder.digest:
            raise ConfigError(
                "The model has no file yet, by which its codes are known. Save and load it first."
            )
        if old is not None:
            _refuse_another(out, old, encoder, source)
        pack = _packed(encoder.preprocessing, source, out, limits, packing_progress)
        remove_temporaries(out)
        chosen = distance or (old.space.distance if old else DEFAULT_DISTANCE[encoder.kind])
        stored, update = _in_step(
            old, encoder, pack, chosen, _places(model, source, pack, out), out, progress, cluster
        )
        if stored is not old:
            write_index(out, stored)
    return Index(out, stored, encoder, update)


@dataclasses.dataclass(frozen=True)
class _Places:
    model: Place | None
    source: str
    folder: Place


def _places(model: Autoencoder | str | Path, source: Path, pack: Pack, out: Path) -> _Places:
    place = None
    if not isinstance(model, Autoencoder):
        path = Path(model)
        place = Place.of(path / MODEL_NAME if path.is_dir() else path, out)
    return _Places(place, named(source), Place.of(pack.folder, out))


def _in_step(
    old: StoredIndex | None,
    encoder: ImageEncoder,
    pack: Pack,
    distance: Distance,
    places: _Places,
    out: Path,
    progress: _Report | None,
    cluster: Cluster | None,
) -> tuple[StoredIndex, Update]:
    """Return the index of the images of `pack`; the old one itself where nothing differs."""
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
        refused=pack.refused,
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
    _encode(encoder, pack, pack_rows[missing], codes, missing, progress, cluster)
    update = dataclasses.replace(update, seconds=time.perf_counter() - started)
    space = fit_space(codes, distance)
    stored = StoredIndex(
        features=encoder.kind,
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


def _encode(
    encoder: ImageEncoder,
    pack: Pack,
    rows: NDArray[np.int64],
    codes: Floats,
    places: NDArray[np.int64],
    progress: _Report | None,
    cluster: Cluster | None,
) -> None:
    """Encode the images of `rows` (N,) of a pack into `codes` (R, D), at `places` (N,)."""
    done = 0
    order = np.argsort(rows)  # as they lie in the pack
    rows, places = rows[order], places[order]

    def encode(images: Tensor) -> Columns:
        return {"codes": encoder.encode(images)}

    for columns in over_pack(encode, pack, rows, INFERENCE_BATCH, cluster):
        made = columns["codes"]
        if not np.isfinite(made).all():
            raise ImageIndexError("The model gives codes that are not finite; they cannot be compared.")
        codes[places[done : done + len(made)]] = made
        done += len(made)
        if progress:
            progress(done, len(rows))


def _packed(
    wanted: Preprocessing, source: Path, out: Path, limits: Limits | None, progress: _Report | None
) -> Pack:
    if not is_pack(source):
        return pack_folder(source, out / PACK_NAME, wanted, limits=limits, progress=progress)
    pack = open_pack(source)
    have, want = pack.preprocessing.to_json(), wanted.to_json()
    different = [f"{name} {have[name]}, not {want[name]}" for name in have if have[name] != want[name]]
    if different:
        raise ConfigError(
            f"The pack {source} was made with {'; '.join(different)} as the model needs. "
            f"Give the folder it was made of: {pack.folder}"
        )
    if not len(pack):
        raise ImageFolderError(f"The pack {source} has no image that can be used.")
    return pack


def _refuse_what_is_not_ours(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file. Choose another output.")
    names = [path.name for path in out.iterdir()] if out.exists() else []
    others = [n for n in names if n not in (".lock", PACK_NAME) and not n.endswith(TEMPORARY_SUFFIX)]
    if INDEX_NAME not in names and others:
        raise OutputError(f"{out} is not an index, and not empty. Choose another output.")


def _refuse_another(out: Path, old: StoredIndex, encoder: ImageEncoder, source: Path) -> None:
    advice = "Choose another output, or delete the index to make it anew."
    if old.source != named(source):
        raise ImageIndexError(f"{out} is an index of {old.source}, not of {named(source)}. {advice}")
    if old.features != encoder.kind:
        raise ImageIndexError(f"{out} holds {old.features} features, not {encoder.kind}. {advice}")
    if old.encoder_digest != encoder.digest:
        raise ImageIndexError(
            f"{out} was made with another model ({old.encoder_digest[:12]}, not {encoder.digest[:12]}): "
            f"its codes cannot be compared. {advice}"
        )
