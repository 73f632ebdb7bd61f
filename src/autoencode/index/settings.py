"""What every index states of itself, wherever it is kept: what made its codes, and how they are compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from autoencode.configuration import Distance, Embedding
from autoencode.data.preprocessing import Preprocessing
from autoencode.embedding import EMBEDDINGS, ImageEncoder, image_encoder
from autoencode.errors import ImageIndexError, ModelFileError
from autoencode.index.neighbours import Space
from autoencode.models.model_file import load_model

AGAIN = "Delete the index and make it again, or restore it from a copy."

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Place:
    """Where something is: absolute, and seen from the index, for when both are moved together."""

    absolute: str
    relative: str

    @classmethod
    def of(cls, path: Path, index: Path | str) -> Place:
        """Return the place of `path`, seen from an index in a folder, or at a URL."""
        absolute = str(path.resolve())
        if isinstance(index, str):
            return cls(absolute, absolute)
        return cls(absolute, os.path.relpath(absolute, index.resolve()))

    def candidates(self, index: Path | str) -> list[Path]:
        """Return where it may be, the likeliest place first."""
        if isinstance(index, str):
            return [Path(self.absolute)]
        return [Path(self.absolute), Path(os.path.normpath(index.resolve() / self.relative))]


@dataclass(frozen=True)
class IndexSettings:
    """What the codes of an index are.

    Attributes:
        embedding: what they are, see `ImageEncoder.kind`.
        encoder_digest: what they were made with, see `ImageEncoder.digest`.
        preprocessing: how images became what the encoder saw.
        model: where the model was; None where that was not known.
        space: how they are compared.
    """

    embedding: Embedding
    encoder_digest: str
    preprocessing: Preprocessing
    model: Place | None
    space: Space

    def to_content(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the settings as arrays and JSON."""
        arrays = {"centre": self.space.centre, "matrix": self.space.matrix}
        content = {
            "embedding": self.embedding,
            "encoder_digest": self.encoder_digest,
            "preprocessing": self.preprocessing.to_json(),
            "model": None if self.model is None else asdict(self.model),
            "distance": self.space.distance,
        }
        return {name: array for name, array in arrays.items() if array is not None}, content


def settings_of(arrays: Mapping[str, Array], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the settings that `to_content` gave, not yet checked; see `check_settings`.

    Raises:
        ConfigError, KeyError, TypeError, ValueError: they are something else.
    """
    return {
        "embedding": content["embedding"],
        "encoder_digest": content["encoder_digest"],
        "preprocessing": Preprocessing.from_json(content["preprocessing"]),
        "model": None if content["model"] is None else Place(**content["model"]),
        "space": Space(content["distance"], arrays.get("centre"), arrays.get("matrix")),
    }


def check_settings(settings: IndexSettings, size: int) -> None:
    """Reject settings that do not fit codes of `size` values.

    Raises:
        ValueError: names the part.
    """
    check_texts([settings.encoder_digest, *(vars(settings.model).values() if settings.model else ())])
    if settings.embedding not in get_args(Embedding) or settings.space.distance not in get_args(Distance):
        raise ValueError("unknown embedding or distance")
    check_array("centre", settings.space.centre, (size,))
    check_array("matrix", settings.space.matrix, (size, size))


def check_texts(texts: list[Any]) -> None:
    """Reject what is no text that could be a name.

    Raises:
        ValueError: one is not.
    """
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("a name is no text")


def check_array(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Reject an array that is there and is not fp32, finite, not empty and of this shape.

    Raises:
        ValueError: names it.
    """
    if array is not None and (
        array.shape != shape or 0 in shape or array.dtype != np.float32 or not np.isfinite(array).all()
    ):
        raise ValueError(f"{name} of shape {array.shape} or not finite")


def check_encoder(path: Path | str, settings: IndexSettings, encoder: ImageEncoder, advice: str) -> None:
    """Reject an encoder that did not make the codes of the index at `path`.

    Raises:
        ImageIndexError: names both.
    """
    if settings.embedding != encoder.kind:
        raise ImageIndexError(
            f"{path} holds the embedding {settings.embedding}, not {encoder.kind}. {advice}"
        )
    if settings.encoder_digest != encoder.digest:
        raise ImageIndexError(
            f"{path} was made with another model ({settings.encoder_digest[:12]}, not "
            f"{encoder.digest[:12]}): its codes cannot be compared. {advice}"
        )


def find_encoder(path: Path | str, settings: IndexSettings) -> ImageEncoder:
    """Return what made the codes of the index at `path`: the model from where it was, or pretrained features.

    Raises:
        ModelFileError: the model is not where it was, or is another one by now.
        ImageIndexError: the pretrained features installed are of another version.
        MissingExtraError: pretrained features need the optional part `eval`.
    """
    embedding = EMBEDDINGS[settings.embedding]
    if not embedding.needs_model:
        encoder = embedding.encoder(settings.preprocessing, None)
        if encoder.digest != settings.encoder_digest:
            raise ImageIndexError(
                f"{path} was made with another version of the {settings.embedding} features. {AGAIN}"
            )
        return encoder
    advice = "Give the model it was made with (--model), or make the index again."
    candidates = settings.model.candidates(path) if settings.model else []
    places = [place for place in candidates if place.is_file()]
    for place in places:
        encoder = image_encoder(load_model(place))
        if encoder.digest == settings.encoder_digest:
            return encoder
    if places:
        raise ModelFileError(f"The model {places[0]} has changed since {path} was made with it. {advice}")
    where = settings.model.absolute if settings.model else "a place that was not noted"
    raise ModelFileError(f"The model of {path} is not at {where}. {advice}")
