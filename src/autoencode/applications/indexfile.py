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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoencode.applications.indexsettings import (
    AGAIN,
    IndexSettings,
    Place,
    check_array,
    check_settings,
    check_texts,
    settings_of,
)
from autoencode.applications.nearest import Cells, Floats
from autoencode.data.pack import Entries, Entry
from autoencode.errors import ConfigError, ImageIndexError
from autoencode.files import parse_json
from autoencode.models.tensorfile import read_tensors, write_tensors

INDEX_NAME, PACK_NAME = "index.safetensors", "pack"
_KIND, _VERSION = "search-index", 1


@dataclass(frozen=True)
class StoredIndex(IndexSettings):
    """What the file of an index holds, beside its settings.

    Attributes:
        source: the folder or pack that was indexed, absolute.
        folder: the image folder that the paths of the entries are relative to.
        fingerprint: of the images, see `Pack.fingerprint`.
        entries: the images, ordered by (sha256, path); `row` of each is its row of `codes`.
        codes: (R, D).
        cells: groups of codes, where there are too many to compare each.
        near_duplicate_threshold: see `Index.near_duplicates`.
    """

    source: str
    folder: Place
    fingerprint: str
    entries: Entries
    codes: Floats
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
    arrays, content = index.to_content()
    arrays |= {"codes": index.codes, "entries": np.frombuffer(lines, np.uint8)}
    content |= {
        "source": index.source,
        "folder": asdict(index.folder),
        "fingerprint": index.fingerprint,
        "near_duplicate_threshold": index.near_duplicate_threshold,
    }
    if index.cells is not None:
        arrays |= {"centroids": index.cells.centroids, "assignment": index.cells.assignment}
        content |= {"probes": index.cells.probes, "recall": index.cells.recall}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    write_tensors(path / INDEX_NAME, _KIND, _VERSION, tensors, content)


def read_index(path: Path) -> StoredIndex:
    """Read what `write_index` wrote.

    Raises:
        ImageIndexError: there is none, it is damaged, or a newer version wrote it.
    """
    if not is_index(path):
        raise ImageIndexError(f"No index at {path}. Make one: autoencode index MODEL FOLDER --out {path}")
    tensors, content, _ = read_tensors(path / INDEX_NAME, _KIND, _VERSION, ImageIndexError, advice=AGAIN)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    cells = None
    try:
        if "centroids" in arrays:
            cells = Cells(arrays["centroids"], arrays["assignment"], content["probes"], content["recall"])
        stored = StoredIndex(
            **settings_of(arrays, content),
            source=content["source"],
            folder=Place(**content["folder"]),
            fingerprint=content["fingerprint"],
            entries=Entries(Entry.from_json(parse_json(line)) for line in io.BytesIO(arrays["entries"].data)),
            codes=arrays["codes"],
            cells=cells,
            near_duplicate_threshold=float(content["near_duplicate_threshold"]),
        )
        _check(stored)
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as err:
        raise ImageIndexError(f"{path} does not hold a usable index ({err}). {AGAIN}") from err
    return stored


def _check(index: StoredIndex) -> None:
    """Refuse parts that do not fit together: FAISS would read outside them.

    Raises:
        ValueError: names the part.
    """
    check_texts([index.source, index.fingerprint, *vars(index.folder).values()])
    count, size = index.codes.shape if index.codes.ndim == 2 else (0, 0)
    check_settings(index, size)
    check_array("codes", index.codes, (count, size))
    if cells := index.cells:
        check_array("centroids", cells.centroids, (len(cells.centroids), size))
        groups = range(len(cells.centroids))
        if cells.assignment.shape != (count,) or cells.assignment.dtype != np.int64:
            raise ValueError("not a cell for each code")
        if not _within(cells.assignment, groups) or type(cells.probes) is not int:
            raise ValueError("cells that are not there")
        if not 1 <= cells.probes <= len(groups):
            raise ValueError("more cells to look into than there are, or none")
    rows = np.array([-1 if entry.row is None else entry.row for entry in index.entries])
    if not len(rows) or (rows[0], rows[-1]) != (0, count - 1) or not _within(np.diff(rows), range(2)):
        raise ValueError("not an entry for each code, in their order")


def _within(values: np.ndarray[Any, Any], allowed: range) -> bool:
    return bool(((values >= allowed.start) & (values < allowed.stop)).all())
