"""An index on disk: the codes of images, which files they are of, and how they are compared.

    I/index.safetensors    all of it; replaced in one rename, so that an index is the old one or the new one
    I/pack/                the images, decoded; not there where a pack was indexed

Codes are what the index's encoder makes of an image: the codes of a model, or pretrained features. There is
one for each distinct content, ordered by sha256: an updated index is the same as one made anew.

Shapes: R distinct contents, D values in a code.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from autoencode.applications.encoders import Features, ImageEncoder, image_encoder, pretrained_encoder
from autoencode.applications.nearest import Cells, Distance, Floats, Space
from autoencode.data.images import Preprocessing
from autoencode.data.pack import Entries, Entry
from autoencode.errors import ConfigError, ImageIndexError, ModelFileError
from autoencode.files import parse_json
from autoencode.models.modelfile import load_model
from autoencode.models.tensorfile import read_tensors, write_tensors

INDEX_NAME, PACK_NAME = "index.safetensors", "pack"
_KIND, _VERSION = "search-index", 1
_AGAIN = "Delete the index and make it again, or restore it from a copy."


@dataclass(frozen=True)
class Place:
    """Where something is: absolute, and seen from the index, for when both are moved together."""

    absolute: str
    relative: str

    @classmethod
    def of(cls, path: Path, index: Path) -> Place:
        """Return the place of `path`."""
        absolute = path.resolve()
        return cls(str(absolute), os.path.relpath(absolute, index.resolve()))

    def candidates(self, index: Path) -> list[Path]:
        """Return where it may be, the likeliest place first."""
        return [Path(self.absolute), Path(os.path.normpath(index.resolve() / self.relative))]


@dataclass(frozen=True)
class StoredIndex:
    """What the file of an index holds.

    Attributes:
        features: what the codes are, see `ImageEncoder.kind`.
        encoder_digest: what they were made with, see `ImageEncoder.digest`.
        preprocessing: how images became what the encoder saw.
        model: where the model was; None where that was not known.
        source: the folder or pack that was indexed, absolute.
        folder: the image folder that the paths of the entries are relative to.
        fingerprint: of the images, see `Pack.fingerprint`.
        entries: the images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D).
        space: how codes are compared.
        cells: groups of codes, where there are too many to compare each.
        near_duplicate_threshold: see `Index.near_duplicates`.
    """

    features: Features
    encoder_digest: str
    preprocessing: Preprocessing
    model: Place | None
    source: str
    folder: Place
    fingerprint: str
    entries: Entries
    codes: Floats
    space: Space
    cells: Cells | None
    near_duplicate_threshold: float


def is_index(path: Path) -> bool:
    """Whether there is an index at `path`, usable or not."""
    return (path / INDEX_NAME).is_file()


def write_index(path: Path, index: StoredIndex) -> None:
    """Write an index into the folder `path`, whole or not at all.

    Raises:
        OutputError: it cannot be written; what was there before is unchanged.
    """
    lines = bytearray()
    for entry in index.entries:
        lines += json.dumps(entry.to_json()).encode() + b"\n"
    arrays: dict[str, np.ndarray[Any, Any] | None] = {
        "codes": index.codes,
        "entries": np.frombuffer(lines, np.uint8),
        "centre": index.space.centre,
        "matrix": index.space.matrix,
    }
    content: dict[str, Any] = {
        "features": index.features,
        "encoder_digest": index.encoder_digest,
        "preprocessing": index.preprocessing.to_json(),
        "model": None if index.model is None else asdict(index.model),
        "source": index.source,
        "folder": asdict(index.folder),
        "fingerprint": index.fingerprint,
        "distance": index.space.distance,
        "near_duplicate_threshold": index.near_duplicate_threshold,
    }
    if index.cells is not None:
        arrays |= {"centroids": index.cells.centroids, "assignment": index.cells.assignment}
        content |= {"probes": index.cells.probes, "recall": index.cells.recall}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    write_tensors(path / INDEX_NAME, _KIND, _VERSION, tensors, content)


def read_index(path: Path) -> StoredIndex:
    """Read what `write_index` wrote.

    Raises:
        ImageIndexError: there is none, it is damaged, or a newer version wrote it.
    """
    if not is_index(path):
        raise ImageIndexError(f"No index at {path}. Make one: autoencode index MODEL FOLDER --out {path}")
    tensors, content, _ = read_tensors(path / INDEX_NAME, _KIND, _VERSION, ImageIndexError, advice=_AGAIN)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    cells = None
    try:
        if "centroids" in arrays:
            cells = Cells(arrays["centroids"], arrays["assignment"], content["probes"], content["recall"])
        stored = StoredIndex(
            features=content["features"],
            encoder_digest=content["encoder_digest"],
            preprocessing=Preprocessing.from_json(content["preprocessing"]),
            model=None if content["model"] is None else Place(**content["model"]),
            source=content["source"],
            folder=Place(**content["folder"]),
            fingerprint=content["fingerprint"],
            entries=Entries(Entry.from_json(parse_json(line)) for line in io.BytesIO(arrays["entries"].data)),
            codes=arrays["codes"],
            space=Space(content["distance"], arrays.get("centre"), arrays.get("matrix")),
            cells=cells,
            near_duplicate_threshold=float(content["near_duplicate_threshold"]),
        )
        _check(stored)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as err:
        raise ImageIndexError(f"{path} does not hold a usable index ({err}). {_AGAIN}") from err
    return stored


def _check(index: StoredIndex) -> None:
    """Refuse parts that do not fit together: FAISS would read outside them.

    Raises:
        ValueError: names the part.
    """
    texts = [index.encoder_digest, index.source, index.fingerprint]
    texts += [part for place in (index.model, index.folder) if place for part in vars(place).values()]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("a name is no text")
    if index.features not in get_args(Features) or index.space.distance not in get_args(Distance):
        raise ValueError("unknown features or distance")
    count, size = index.codes.shape if index.codes.ndim == 2 else (0, 0)
    shapes = {
        "codes": (index.codes, (count, size)),
        "centre": (index.space.centre, (size,)),
        "matrix": (index.space.matrix, (size, size)),
    }
    if cells := index.cells:
        shapes["centroids"] = (cells.centroids, (len(cells.centroids), size))
        groups = range(len(cells.centroids))
        if cells.assignment.shape != (count,) or cells.assignment.dtype != np.int64:
            raise ValueError("not a cell for each code")
        if not _within(cells.assignment, groups) or type(cells.probes) is not int or cells.probes < 1:
            raise ValueError("cells that are not there")
    for name, (array, shape) in shapes.items():
        if array is not None and (
            array.shape != shape or 0 in shape or array.dtype != np.float32 or not np.isfinite(array).all()
        ):
            raise ValueError(f"{name} of shape {array.shape} or not finite")
    rows = np.array([-1 if entry.row is None else entry.row for entry in index.entries])
    if not len(rows) or (rows[0], rows[-1]) != (0, count - 1) or not _within(np.diff(rows), range(2)):
        raise ValueError("not an entry for each code, in their order")


def _within(values: np.ndarray[Any, Any], allowed: range) -> bool:
    return bool(((values >= allowed.start) & (values < allowed.stop)).all())


def find_encoder(path: Path, stored: StoredIndex) -> ImageEncoder:
    """Return what made the codes of the index at `path`: the model from where it was, or pretrained features.

    Raises:
        ModelFileError: the model is not where it was, or is another one by now.
        ImageIndexError: the pretrained features installed are of another version.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    if stored.features == "pretrained":
        encoder = pretrained_encoder(stored.preprocessing)
        if encoder.digest != stored.encoder_digest:
            raise ImageIndexError(
                f"{path} was made with another version of the pretrained features. {_AGAIN}"
            )
        return encoder
    advice = "Give the model it was made with (--model), or make the index again."
    places = [place for place in (stored.model.candidates(path) if stored.model else []) if place.is_file()]
    for place in places:
        encoder = image_encoder(load_model(place))
        if encoder.digest == stored.encoder_digest:
            return encoder
    if places:
        raise ModelFileError(f"The model {places[0]} has changed since {path} was made with it. {advice}")
    where = stored.model.absolute if stored.model else "a place that was not noted"
    raise ModelFileError(f"The model of {path} is not at {where}. {advice}")
