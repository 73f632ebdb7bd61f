"""Images to a table of vectors, which other programs open: pandas, polars, embedding-atlas, scikit-learn.

Shapes: N images, D dimensions of a vector.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import write_bytes
from autoencode.csv_files import csv_bytes
from autoencode.data.listing import Listing
from autoencode.data.manifest import is_pack
from autoencode.data.pack import Pack, open_pack
from autoencode.data.preprocessing import Limits, read_chunks
from autoencode.data.sources import listed
from autoencode.embedding import AUTO, find_encoder, pretrained_for
from autoencode.errors import ConfigError, MissingExtraError, any_of
from autoencode.models.model_file import as_model
from autoencode.pixels import to_float
from autoencode.storage import is_url

if TYPE_CHECKING:
    from autoencode.data.pack import Progress
    from autoencode.models.autoencoder import Autoencoder

FORMATS = (".parquet", ".npz", ".csv")
_CHUNK = 128  # images in memory at once


@dataclass(frozen=True)
class Vectors:
    """The result of `embed`.

    Attributes:
        paths: the images that could be used.
        labels: the label of each, or None.
        splits: the split of each where splits were given, otherwise None.
        vectors: (N, D) float32.
        skipped: the other files, with the reason.
    """

    paths: list[Path]
    labels: list[str | None]
    splits: list[str | None]
    vectors: NDArray[np.float32]
    skipped: list[tuple[Path, str]]

    def __repr__(self) -> str:
        """Return what it is."""
        images, size = self.vectors.shape
        return f"Vectors({images:,} images, {size} dimensions)"


def embed(
    images: Any,  # noqa: ANN401 - see `listed`
    model: Autoencoder | str | Path | None = None,
    out: str | Path | None = None,
    *,
    embedding: str | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Vectors:
    """Turn images into vectors, with the path, label and split of each.

    Args:
        images: a folder, files, a table, arrays, Pillow images or a dataset, see `listed`; or a pack, whose
            files are read again.
        model: from `load_model`, or its path; without one the vectors are features of a pretrained network.
        out: a table to write, with columns path, label, split and vector: .parquet (extra `tables`), .npz, or
            .csv, with a column for each dimension.
        embedding: see `find_encoder`; by default the codes of the model, or "auto" without one.
        limits: the largest files and pictures to accept.
        progress: called with (images done, images in all).

    Raises:
        ConfigError: the ending of `out` or the embedding is unknown, or what is given is no image.
        ImageFolderError: a folder is missing or has no image, or no image could be used.
        ModelFileError: the model cannot be loaded.
        MissingExtraError: an optional part is missing.
        OutputError: `out` cannot be written.
    """
    out = None if out is None else Path(out)
    check_format(out)  # before the work, which may take minutes
    # Whoever hands a model to this function wants its codes; a search wants what finds most.
    kind = embedding or (AUTO if model is None else "code")
    listing = _of_pack(images) or listed(images)
    labels, splits = listing.labels, listing.splits
    paths = listing.paths
    encoder = find_encoder(
        pretrained_for(paths, limits) if kind == AUTO else kind, None if model is None else as_model(model)
    )
    labels = [_first_folder(name) for name in listing.names] if labels is None else labels
    known = {path: number for number, path in enumerate(paths)}
    skipped, found, parts = list(paths.skipped), list[Path](), []
    for read, pixels in read_chunks(paths, _CHUNK, encoder.preprocessing, limits or Limits(), skipped):
        if read:
            parts.append(encoder.encode(to_float(pixels)))
        found += read
        if progress:
            progress(len(found) + len(skipped) - len(paths.skipped), len(paths))
    order = [known[path] for path in found]
    made = Vectors(
        found,
        [labels[number] for number in order],
        [None if splits is None else splits[number] for number in order],
        np.concatenate(parts),
        skipped,
    )
    if out is not None:
        write_bytes(out, _WRITERS[out.suffix.lower()](made))
    return made


def _of_pack(given: Any) -> Listing | None:  # noqa: ANN401
    """Return the files of a pack with their labels and splits; None for anything else."""
    if isinstance(given, str | Path) and (is_url(given) or is_pack(Path(given))):
        given = open_pack(given)
    if not isinstance(given, Pack):
        return None
    entries = sorted(given.entries, key=lambda entry: entry.path)
    return Listing(
        given.folder,
        [entry.path for entry in entries],
        labels=[entry.label for entry in entries],
        splits=[entry.split for entry in entries],
    )


def check_format(out: Path | None) -> None:
    """Reject a table of an unknown format, or one that needs an optional part which is missing.

    Raises:
        ConfigError: the ending is none of `FORMATS`.
        MissingExtraError: Parquet needs pyarrow.
    """
    if out is None:
        return
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"Cannot write {out}. Choose a name that ends in {any_of(FORMATS)}.")
    if out.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as err:
            raise MissingExtraError("tables", f"Writing {out}") from err


def _first_folder(name: str) -> str | None:
    first, inner, _ = name.partition("/")
    return first if inner else None


def _parquet(made: Vectors) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    size = made.vectors.shape[1]
    vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(made.vectors.ravel()), size)
    columns = {
        "path": [str(path) for path in made.paths],
        "label": arrow.array(made.labels, arrow.string()),
        "split": arrow.array(made.splits, arrow.string()),
        "vector": vectors,
    }
    content = io.BytesIO()
    parquet.write_table(arrow.table(columns), content)
    return content.getvalue()


def _npz(made: Vectors) -> bytes:
    # Text of a fixed width, "" for none: an array of objects would need a pickle to be read.
    text: dict[str, Any] = {
        "path": np.array([str(path) for path in made.paths], np.str_),
        "label": np.array([label or "" for label in made.labels], np.str_),
        "split": np.array([split or "" for split in made.splits], np.str_),
    }
    content = io.BytesIO()
    np.savez(content, vector=made.vectors, **text)
    return content.getvalue()


def _csv(made: Vectors) -> bytes:
    head = ["path", "label", "split", *(f"v{number}" for number in range(made.vectors.shape[1]))]
    rows = zip(made.paths, made.labels, made.splits, made.vectors, strict=True)
    lines = ([p, label or "", split or "", *(f"{v:.7g}" for v in vector)] for p, label, split, vector in rows)
    return csv_bytes([head, *lines])


_WRITERS = {".parquet": _parquet, ".npz": _npz, ".csv": _csv}
