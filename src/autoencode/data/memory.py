"""Images in memory, one by one, as Pillow images: arrays, tensors, Pillow images, bytes, datasets.

given                       rule
--------------------------  --------------------------------------------------------------------------------
Pillow image, bytes         as the content of a file
array or tensor             uint8 or other whole numbers in 0..255, floats in [0, 1], or true and false;
                            grey uint16 as a file of 16 bits, where it is read with a range of values
  (H, W)                    one grey image
  (H, W, C), (C, H, W)      one image where C is 1, 3 or 4; if both sides could be C, the last of an array
                            and the first of a tensor is
  (N, H, W)                 N grey images, if no side can be C
  (N, H, W, C), ...         N images
torch Dataset, list         each item an image of these, (image, label), or (image, label, path) as in a pack
Hugging Face Dataset        its column of images and, if there is one, `label`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from autoencode.data.decoding import NEEDS_RANGE
from autoencode.errors import ConfigError

_CHANNELS = (1, 3, 4)
_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "pixels")


class Given(NamedTuple):
    """One image that was given, and its label or None."""

    image: Path | bytes | Image.Image
    label: str | None = None


def is_path(given: object) -> bool:
    """Whether something is one path."""
    return isinstance(given, str | Path)


def given_images(given: Any) -> Iterator[Given]:  # noqa: ANN401 - see the module
    """Yield every image that was given.

    Raises:
        ConfigError: it is nothing that an image can be made of; the message says what would do.
    """
    if is_path(given):
        yield Given(Path(given))
    elif isinstance(given, bytes | bytearray):
        yield Given(bytes(given))
    elif isinstance(given, Image.Image):
        yield Given(given)
    elif _is_array(given):
        yield from map(Given, _of_array(given))
    elif hasattr(given, "features") and hasattr(given, "column_names"):
        yield from _of_hugging_face(given)
    elif hasattr(given, "dataset") and hasattr(given, "batch_size"):
        raise ConfigError(f"A {type(given).__name__} gives batches. Give what it loads: its .dataset.")
    elif isinstance(given, dict) or not (isinstance(given, Iterable) or _is_sequence(given)):
        raise no_images(given)
    else:
        yield from _of_items(given)


def no_images(given: object) -> ConfigError:
    """Return the error about something that no image can be made of."""
    kind = type(given).__name__
    if isinstance(given, dict) and given:
        first = next(iter(given))
        return ConfigError(f"A {kind} is no source of images. Give one of its values: [{first!r}].")
    return ConfigError(
        f"{'An' if kind[:1] in 'aeiou' else 'A'} {kind} is no source of images. Give a folder, image files, "
        "a table (CSV or Parquet) with a column path, arrays, Pillow images, or a dataset of them."
    )


def _is_array(given: object) -> bool:
    return hasattr(given, "__array__") and hasattr(given, "shape")


def _is_sequence(given: object) -> bool:
    return hasattr(given, "__len__") and hasattr(given, "__getitem__")


def _of_items(given: Any) -> Iterator[Given]:  # noqa: ANN401
    # A torch Dataset need not be iterable, and need not end with an IndexError.
    items = (given[index] for index in range(len(given))) if _is_sequence(given) else given
    for item in items:
        is_pair = isinstance(item, tuple | list) and len(item) == 2 and not is_path(item[1])
        is_of_pack = isinstance(item, tuple) and len(item) == 3 and all(map(is_path, item[1:]))
        if is_of_pack or (is_pair and (isinstance(item[1], int | float) or getattr(item[1], "ndim", 1) == 0)):
            [image] = given_images(item[0])
            label = item[1].item() if hasattr(item[1], "item") else item[1]
            yield image._replace(label=str(label))
        elif isinstance(item, tuple | list | dict):
            raise ConfigError(
                f"An item of the {type(given).__name__} is a {type(item).__name__} of {len(item)}. Give "
                "images, or pairs of an image and the number of its class."
            )
        else:
            yield from given_images(item)


def _of_hugging_face(given: Any) -> Iterator[Given]:  # noqa: ANN401
    kinds = {name: type(feature).__name__ for name, feature in given.features.items()}
    column = next((name for name, kind in kinds.items() if kind == "Image"), None)
    column = column or next((name for name in _IMAGE_COLUMNS if name in kinds), None)
    if column is None:
        raise ConfigError(f"The dataset has no column of images; its columns: {', '.join(kinds)}.")
    labels = getattr(given.features.get("label"), "names", None)
    for item in given:
        label = item.get("label")
        named = labels[label] if labels and isinstance(label, int) and label >= 0 else label
        [image] = given_images(item[column])
        yield image._replace(label=None if named is None else str(named))


def _of_array(given: Any) -> Iterator[Image.Image]:  # noqa: ANN401
    is_tensor = hasattr(given, "detach")
    values = np.asarray(given.detach().cpu() if is_tensor else given)
    shape = values.shape
    if values.ndim == 4:
        images, sides = list(values), shape[1:]
    elif values.ndim == 3:
        is_one = shape[0] in _CHANNELS or shape[2] in _CHANNELS
        images, sides = ([values], shape) if is_one else (list(values), shape[1:])
    else:
        images, sides = [values], shape
    if len(sides) not in (2, 3) or (len(sides) == 3 and not {sides[0], sides[2]} & set(_CHANNELS)):
        raise ConfigError(
            f"An array of shape {shape} is no image. Give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 "
            "channels C, or several of one size as (N, ...)."
        )
    if 0 in shape[values.ndim - len(sides) :]:
        raise ConfigError(f"An array of shape {shape} has no pixels.")
    channels_first = len(sides) == 3 and sides[0] in _CHANNELS and (is_tensor or sides[2] not in _CHANNELS)
    for image in images:
        pixels = np.moveaxis(image, 0, 2) if channels_first else image
        pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        is_deep = pixels.dtype.newbyteorder("=") == np.uint16
        yield _deep(pixels) if is_deep else Image.fromarray(_levels(pixels))


def _deep(values: np.ndarray[Any, Any]) -> Image.Image:
    """Return one grey image of 16 bits, which is read like a file of 16 bits, but never without a range.

    How many of the bits are used shows only in all images together: of these values alone, a dark image of
    12 bits would be one of 8 bits.
    """
    if values.ndim == 3:
        raise ConfigError(
            "An array of uint16 with colours is no image. Scale it: uint8 in 0..255 or floats in [0, 1]."
        )
    image = Image.fromarray(np.ascontiguousarray(values, np.uint16))
    image.info[NEEDS_RANGE] = "uint16"
    return image


def _levels(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the values of one image in 0..255."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ConfigError(
            f"An array of {values.dtype} is no image. Give uint8 in 0..255 or floats in [0, 1]."
        )
    low, high = float(values.min()), float(values.max())
    if np.isnan(low):
        raise ConfigError(f"An array of {values.dtype} has values that are not numbers. Replace them.")
    most = 1 if values.dtype.kind == "f" else 255
    # Rounding of resized images goes a little beyond.
    if not -0.01 * most <= low <= high <= 1.01 * most:
        raise ConfigError(
            f"An array of {values.dtype} has values from {low:.4g} to {high:.4g}. Scale it: uint8 in 0..255 "
            "or floats in [0, 1]."
        )
    scale = 255 if most == 1 else 1
    return np.ascontiguousarray((values * scale).round().clip(0, 255).astype(np.uint8))
