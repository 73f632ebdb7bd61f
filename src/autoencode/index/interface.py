"""The interface of every store of indexes, and the settings of an index, whichever store keeps it.

Shapes: N rows of a pack, B batch, D code dimensions.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from autoencode.atomic import exclusive, names_in
from autoencode.configuration import Distance, Store
from autoencode.data.preprocessing import Preprocessing
from autoencode.embedding import (
    EMBEDDINGS,
    ONNX_SUFFIX,
    PRETRAINED_KINDS,
    ImageEncoder,
    Reduction,
    find_encoder,
)
from autoencode.errors import ConfigError, ImageIndexError, ModelFileError, OutputError
from autoencode.index.neighbours import OwnScores, VectorSpace
from autoencode.models.model_file import load_model, read_tensors

if TYPE_CHECKING:
    from autoencode.index.base import Index
    from autoencode.index.request import BuildRequest

FORMAT_VERSION = 4  # raised with every change of what an index holds
REBUILD = "Delete the index and make it again, or restore it from a copy."
CHOOSE_ANOTHER = "Choose another output, or delete the index and make it again."

Array = NDArray[Any]
_OF_REDUCTION = ("mean", "matrix", "cosines")  # the arrays of a `Reduction`


class IndexStore(ABC):
    """A way to keep indexes: how one is recognised, opened and built.

    Attributes:
        name: the store, as `build_index` and the command line call it.
        contents: names of the files and folders that an index of it consists of.
        schemes: what the URLs start with at which it can keep an index; none for folders alone.
    """

    name: Store
    contents: Collection[str]
    schemes: tuple[str, ...] = ()

    @abstractmethod
    def holds(self, location: Path | str) -> bool:
        """Whether an index of this store, usable or not, is at a folder or URL.

        Raises:
            StorageError: the storage cannot be reached.
        """

    @abstractmethod
    def open(self, location: Path | str) -> Index:
        """Open the index at a folder or URL; see `open_index`."""

    @abstractmethod
    def build(self, request: BuildRequest, location: Path | str) -> Index:
        """Build an index at a folder or URL, or update the one there; see `build_index`."""

    def remove_source(self, location: Path | str, source: str) -> int:
        """Remove the images of a source from the index; return how many there were. See `remove_source`.

        Raises:
            ImageIndexError: an index of this store has one source alone.
        """
        raise ImageIndexError(f"{location} is an index of one folder: delete it to remove its images.")

    def nothing_at(self, location: Path | str) -> ImageIndexError:
        """Return the error that there is no index at a folder or URL."""
        option = "" if isinstance(location, Path) else f"--store {self.name} "
        # A folder of images in its place is the likeliest mistake: the index must not be made inside it.
        if isinstance(location, Path) and location.exists():
            return ImageIndexError(
                f"No index at {location}. If it is a folder of images, index it first: autoencode index "
                f"{shlex.quote(str(location))}"
            )
        return ImageIndexError(
            f"No index at {location}. Make one: autoencode index FOLDER {option}--out {location}"
        )

    @contextlib.contextmanager
    def lock(self, folder: Path, source: Path | None = None) -> Iterator[None]:
        """Let one process write the index in a folder; the folder may be empty, but hold nothing else.

        One that is made is for readers of `source` alone.

        Raises:
            OutputError: the path is a file, or a folder that holds something other than an index.
            ImageIndexError: another process is writing the index.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file. Choose another output.")
        # Files of its owner may lie beside an index; but a folder of other files does not become one.
        if names_in(folder) - set(self.contents) and not self.holds(folder):
            raise OutputError(f"{folder} is not an index, and not empty. Choose another output.")
        busy = f"Another process is writing {folder}. Wait until it is done, or choose another output."
        with exclusive(folder, busy, ImageIndexError, source):
            yield


@dataclass(frozen=True)
class StoredPath:
    """A path kept in an index: absolute, and relative to the index, for when both are moved together."""

    absolute: str
    relative: str

    @classmethod
    def of(cls, path: Path, index: Path | str) -> StoredPath:
        """Return `path` as an index in a folder, or at a URL, keeps it."""
        absolute = str(path.resolve())
        # No folder is moved together with an index in storage.
        relative = absolute if isinstance(index, str) else os.path.relpath(absolute, index.resolve())
        return cls(absolute, relative)

    def candidates(self, index: Path | str) -> list[Path]:
        """Return where the path may lead to today, the likeliest first."""
        if isinstance(index, str):
            return [Path(self.absolute)]
        return [Path(self.absolute), Path(os.path.normpath(index.resolve() / self.relative))]

    def folder(self, index: Path | str) -> Path:
        """Return the first candidate that is a folder, or the likeliest if none is."""
        candidates = self.candidates(index)
        return next((path for path in candidates if path.is_dir()), candidates[0])


@dataclass(frozen=True)
class IndexSettings:
    """How the codes of an index were made, and how they are compared.

    Attributes:
        embedding: the kind of code, see `ImageEncoder.kind`.
        encoder_digest: of the encoder that made the codes, see `ImageEncoder.digest`.
        preprocessing: how files became the images that were encoded.
        model_path: where the file of the model or of the ONNX network was; None where there was none.
        vector_space: how the codes are compared.
        reduction: of the vectors of a pretrained network; None for codes of a model.
        own: what the images score with each other, where it is kept here; None in an index in memory.
    """

    embedding: str
    encoder_digest: str
    preprocessing: Preprocessing
    model_path: StoredPath | None
    vector_space: VectorSpace
    reduction: Reduction | None = None
    own: OwnScores | None = None

    def to_content(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the settings as arrays and JSON."""
        arrays: dict[str, Array | None] = {
            "mean": self.vector_space.mean,
            "whitening": self.vector_space.whitening,
        }
        if self.reduction is not None:
            arrays |= {f"reduction_{name}": getattr(self.reduction, name) for name in _OF_REDUCTION}
        if self.own is not None:
            arrays |= {"own_scores": self.own.scores, "own_lengths": self.own.lengths}
        content = {
            "embedding": self.embedding,
            "encoder_digest": self.encoder_digest,
            "preprocessing": self.preprocessing.to_json(),
            "model": None if self.model_path is None else asdict(self.model_path),
            "distance": self.vector_space.distance,
            "reduced_from": None if self.reduction is None else self.reduction.images,
        }
        return {name: array for name, array in arrays.items() if array is not None}, content

    @classmethod
    def from_content(
        cls, arrays: Mapping[str, Array], content: Mapping[str, Any], size: int
    ) -> IndexSettings:
        """Return the settings that `to_content` gave, for codes of `size` dimensions.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: the content is something else; see `checked`.
        """
        model = None if content["model"] is None else StoredPath(**content["model"])
        space = VectorSpace(content["distance"], arrays.get("mean"), arrays.get("whitening"))
        named = [content["embedding"], content["encoder_digest"]]
        check_texts([*named, *(vars(model).values() if model else ())])
        is_known = content["embedding"] in EMBEDDINGS or content["embedding"].endswith(ONNX_SUFFIX)
        if not is_known or space.distance not in get_args(Distance):
            raise ValueError("unknown embedding or distance")
        check_array("mean", space.mean, (size,))
        check_array("whitening", space.whitening, (size, size))
        reduction = None
        if content["reduced_from"] is not None:
            mean, matrix, cosines = (arrays[f"reduction_{name}"] for name in _OF_REDUCTION)
            check_array("reduction_mean", mean, (mean.size,))
            check_array("reduction_matrix", matrix, (mean.size, size))
            check_array("reduction_cosines", cosines, (2,))
            reduction = Reduction(mean, matrix, cosines, int(content["reduced_from"]))
        own = None
        if "own_lengths" in arrays:
            own = OwnScores(arrays["own_scores"], space.is_similarity, arrays["own_lengths"])
            own.check()
        preprocessing = Preprocessing.from_json(content["preprocessing"])
        embedding, digest = named
        return cls(embedding, digest, preprocessing, model, space, reduction, own)

    def check_encoder(self, index: Path | str, encoder: ImageEncoder, advice: str) -> None:
        """Reject an encoder that did not make the codes of `index`.

        Raises:
            ImageIndexError: the kinds or the digests differ; the message names both.
        """
        if self.encoder_digest == encoder.digest:
            return
        if self.embedding != encoder.kind:
            raise ImageIndexError(
                f"{index} holds the embedding {self.embedding}, not {encoder.kind}. {advice}"
            )
        raise ImageIndexError(
            f"{index} was made with another {'network' if encoder.is_backbone else 'model'} "
            f"({self.encoder_digest[:12]}, not {encoder.digest[:12]}): its codes cannot be compared. {advice}"
        )

    def fitted(self, encoder: ImageEncoder) -> ImageEncoder:
        """Return the encoder with the reduction of the index."""
        return encoder if self.reduction is None else encoder.reduced(self.reduction)

    def find_encoder(self, index: Path | str) -> ImageEncoder:
        """Return what made the codes of `index`, without the reduction: a model or a pretrained network.

        Raises:
            ModelFileError: the file is missing, or holds another model or network.
            ImageIndexError: the pretrained features installed are of another version.
            MissingExtraError: an optional part is not installed.
        """
        if self.embedding in PRETRAINED_KINDS:
            encoder = find_encoder(self.embedding)
            if encoder.digest != self.encoder_digest:
                raise ImageIndexError(
                    f"{index} was made with another version of the pretrained features. {REBUILD}"
                )
            return encoder
        is_network = self.embedding.endswith(ONNX_SUFFIX)
        what = "network" if is_network else "model"
        option = f"--model {Path(self.embedding).name}" if is_network else "--model"
        advice = f"Give the {what} it was made with ({option}), or make the index again."
        candidates = self.model_path.candidates(index) if self.model_path else []
        files = [path for path in candidates if path.is_file()]
        # A model at the old path may be another one by now, and the one beside the index still the right one.
        for path in files:
            encoder = (
                find_encoder(str(path)) if is_network else find_encoder(self.embedding, load_model(path))
            )
            if encoder.digest == self.encoder_digest:
                return encoder
        if files:
            raise ModelFileError(
                f"The {what} {files[0]} has changed since {index} was made with it. {advice}"
            )
        where = self.model_path.absolute if self.model_path else "a path that was not stored"
        raise ModelFileError(f"The {what} of {index} is not at {where}. {advice}")


def read_parts(path: Path, kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read arrays and JSON from a file of the current version.

    Raises:
        ImageIndexError: the file is missing, damaged, or of another version.
    """
    tensors, content, _ = read_tensors(
        path, kind, FORMAT_VERSION, ImageIndexError, advice=REBUILD, remake=CHOOSE_ANOTHER
    )
    return {name: tensor.numpy() for name, tensor in tensors.items()}, content


@contextlib.contextmanager
def checked(location: Path | str) -> Iterator[None]:
    """Turn what reading forged or damaged content raises into one line.

    Raises:
        ImageIndexError: the content is not that of an index.
    """
    try:
        yield
    except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as err:
        raise ImageIndexError(f"{location} does not hold a usable index ({err}). {REBUILD}") from err


def check_texts(texts: Collection[Any]) -> None:
    """Reject values that are not usable names.

    Raises:
        ValueError: an item is not text, or has a zero byte.
    """
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("a name is not text")


def check_array(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Reject an array that is not finite fp32 of this shape; None is accepted.

    Raises:
        ValueError: the array is of another type or shape, empty, or not finite.
    """
    # Whatever comes from a file goes to FAISS, which reads where the shapes tell it to.
    if array is not None and (
        array.shape != shape or 0 in shape or array.dtype != np.float32 or not np.isfinite(array).all()
    ):
        raise ValueError(f"{name} of shape {array.shape} or not finite")
