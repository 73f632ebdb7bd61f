"""Image files -> pixels (H, W, 3) uint8 in 0..255, sRGB, of one size: all that a model needs of data.

`decoding` states the rule for every kind of image file. Resizing is bicubic with antialiasing. Lanczos takes
1.4 times as long and rings more at edges; the cheaper filters blur when enlarging. Large images other than
JPEGs are averaged down first, never below three times the target size.

JPEGs are decoded at 1/8, 1/4 or 1/2 of their size if that gives twice the target size, and also at 1/2 if
that gives the target size, which halves the time. Either may be short by 1/32; docs/performance.md shows how
little that changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.atomic import atomic_file
from autoencode.configuration import ResizeMode, check_fields
from autoencode.data import decoding, workers
from autoencode.errors import ConfigError, ImageError, ImageFolderError

Size = int | str | tuple[int, int]
WRITABLE = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"},
    **{".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"},
}
SIZE_MULTIPLE = 16  # the default network halves each side four times
_MOST = 16_384  # pixels per side
_MOST_PIXELS = 4096**2  # a forged size must not ask for gigabytes an image
# 200 million pixels with alpha, a PNG of 243 MB, took 3 s; other machines are slower.
_BYTES_PER_LIMIT = 100_000_000
_SHORT_BY = 33 / 32  # how much smaller than wanted a JPEG may be decoded: 250 pixels at 1/2 for 128


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes pixels of one size.

    Attributes:
        height: rows of the result in pixels, a positive multiple of 16.
        width: columns of the result in pixels, a positive multiple of 16.
        resize_mode: "crop" keeps the centre in the right aspect ratio, "pad" keeps the whole image with
            `background` around it, "stretch" changes the aspect ratio; "window" cuts the centre out
            of the image as large as it is, and mirrors what a smaller image lacks.
        background: red, green, blue in 0..255, shown through transparency and beside padded images.
        value_range: the values, low and high, of files of more than 8 bits that become black and white;
            values beyond are clipped. Empty: each file by its kind, see `decoding`.

    Raises:
        ConfigError: a value is out of range.
    """

    height: int = 128
    width: int = 128
    resize_mode: ResizeMode = "crop"
    background: tuple[int, int, int] = (255, 255, 255)
    value_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        sides = (self.height, self.width)
        size = "{}" if self.height == self.width else "{}x{}"
        if not all(side > 0 and side % SIZE_MULTIPLE == 0 for side in sides):
            below = [max(SIZE_MULTIPLE, side // SIZE_MULTIPLE * SIZE_MULTIPLE) for side in sides]
            above = [max(SIZE_MULTIPLE, -(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE) for side in sides]
            nearest = " or ".join(dict.fromkeys((size.format(*below), size.format(*above))))
            raise ConfigError(
                f"The size {size.format(*sides)} is not a positive multiple of {SIZE_MULTIPLE}. "
                f"Nearest: {nearest}."
            )
        if max(sides) > _MOST:
            raise ConfigError(f"The size {size.format(*sides)} is above {_MOST}, the largest side supported.")
        if self.height * self.width > _MOST_PIXELS:
            raise ConfigError(
                f"The size {size.format(*sides)} has more than {_MOST_PIXELS:,} pixels, the most supported."
            )
        if len(self.background) != 3 or not all(0 <= channel <= 255 for channel in self.background):
            raise ConfigError(f"The background {self.background!r} is not three whole numbers from 0 to 255.")
        if self.value_range and not (
            len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]
        ):
            raise ConfigError(f"The range {self.value_range!r} is not a low and a higher value.")

    def __str__(self) -> str:
        """Return the settings in words, for messages."""
        colour = "#" + bytes(self.background).hex()
        values = ", values {:g}:{:g}".format(*self.value_range) if self.value_range else ""
        return (
            f"{self.height}x{self.width} pixels (resize mode {self.resize_mode}, background {colour}{values})"
        )

    def differences(self, other: Preprocessing) -> str:
        """Return "height 32, not 16; ...", its settings that `other` has not; "" if they are equal."""
        mine, theirs = self.to_json(), other.to_json()
        return "; ".join(
            f"{name} {mine.get(name)}, not {theirs.get(name)}"
            for name in {**mine, **theirs}
            if mine.get(name) != theirs.get(name)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, for `from_json`."""
        values = {**asdict(self), "background": list(self.background)}
        # Left out where it is empty: the fingerprint of a pack of photographs stays what it was.
        return values | {"value_range": list(self.value_range)} if values.pop("value_range") else values

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Preprocessing:
        """Return the settings saved by `to_json`.

        Raises:
            ConfigError: `value` was not saved by `to_json`, or a setting is out of range.
        """
        names = {field.name for field in fields(cls)}
        optional = {"value_range"}
        if (
            not isinstance(value, dict)
            or not names - optional <= set(value) <= names
            or not isinstance(value["background"], list)
        ):
            raise ConfigError(
                f"Not saved preprocessing settings (needs {', '.join(sorted(names))}): {value!r}."
            )
        return cls(**{**value, "background": tuple(value["background"])})


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a file is skipped.

    Attributes:
        max_pixels: width times height of the image as stored.
        max_bytes: size of the file.
        seconds_per_file: longest processor time for reading, and again for decoding, when packing or in the
            page, plus as much for each 100 MB of the file; by the clock six times as long.

    Raises:
        ConfigError: a limit is not positive.
    """

    max_pixels: int = 200_000_000
    max_bytes: int = 256 * 1024**2
    seconds_per_file: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(
                    f"The limit {field.name} must be above 0, not {getattr(self, field.name)!r}."
                )

    def seconds_for(self, size: int) -> float:
        """Return the seconds that a file of `size` bytes may take to decode."""
        return self.seconds_per_file * (1 + size / _BYTES_PER_LIMIT)


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) in pixels from "128" or "96x160".

    Raises:
        ConfigError: `text` is neither.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:[xX×]\s*([0-9]{1,6})\s*)?", text)
    if match is None:
        raise ConfigError(f"The size {text!r} is not understood. Write 128, or HEIGHTxWIDTH such as 96x160.")
    return int(match[1]), int(match[2] or match[1])


def fields_asked_for(
    size: Size | None, preprocessing: Preprocessing | Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the fields of `Preprocessing` that a caller decides; the images decide the others.

    Args:
        size: 128, "128", "96x160" or (96, 160): a side, or height and width, in pixels.
        preprocessing: everything at once, or some fields by name.

    Raises:
        ConfigError: both were given, or the size cannot be used.
    """
    if size is not None and preprocessing is not None:
        raise ConfigError(f"Give either size={size!r} or preprocessing, not both.")
    if isinstance(preprocessing, Preprocessing):
        every = {field.name: getattr(preprocessing, field.name) for field in fields(preprocessing)}
        # Without a range, the images decide it, as they alone show how many bits are used.
        if not preprocessing.value_range:
            del every["value_range"]
        return every
    asked = dict(preprocessing or {})
    if isinstance(size, tuple | list) and len(size) != 2:
        raise ConfigError(f"The size {size!r} is not understood. Give a side, or (height, width).")
    if size is not None:
        pair = parse_size(size) if isinstance(size, str) else size
        asked["height"], asked["width"] = pair if isinstance(pair, tuple | list) else (pair, pair)
    checked = Preprocessing(**asked)
    if {"height", "width"} & set(asked):  # one side alone would leave a shape that nobody asked for
        asked["height"], asked["width"] = checked.height, checked.width
    return asked


def read_chunks(
    paths: Sequence[Path],
    size: int,
    preprocessing: Preprocessing,
    limits: Limits,
    skipped: list[tuple[Path, str]],
) -> Iterator[tuple[list[Path], NDArray[np.uint8]]]:
    """Read many files, a chunk at a time; unusable files are skipped.

    Args:
        paths: the files.
        size: files per chunk, which bounds the memory.
        preprocessing: as for `read_image`.
        limits: as for `read_image`.
        skipped: unusable files are appended to it, with the reason.

    Yields:
        Per chunk, the files that could be read and their pixels (B, H, W, 3); B may be 0.

    Raises:
        ImageFolderError: no file could be used; raised after the last chunk.
        ConfigError: there is not enough memory for a chunk.
    """
    usable = 0
    # Checked first, because the system gives memory only when it is written to, and a forged model can ask
    # for any size. Each value takes four more bytes as fp32.
    count = min(size, len(paths))
    needed = 5 * count * preprocessing.height * preprocessing.width * 3
    if needed > (free := workers.free_bytes()):
        raise ConfigError(
            f"There is not enough memory for {count} images of {preprocessing}: they take "
            f"{needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free."
        )
    for start in range(0, len(paths), size):
        read: list[Path] = []
        # A new array each time: the caller may keep the one before.
        pixels = np.empty((size, preprocessing.height, preprocessing.width, 3), np.uint8)
        for path in paths[start : start + size]:
            try:
                pixels[len(read)] = read_image(path, preprocessing, limits)
                read.append(path)
            except ImageError as err:
                skipped.append((path, str(err)))
        usable += len(read)
        yield read, pixels[: len(read)]
    check_usable(usable, paths, skipped)


def check_usable(usable: int, paths: Sequence[Path], skipped: Sequence[tuple[Path, str]]) -> None:
    """Raise ImageFolderError if none of `paths` was usable, with some of the reasons."""
    if not paths:
        raise ImageFolderError("No image was given.")
    if not usable:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        raise ImageFolderError(f"No image could be used, of {len(paths)} given. {reasons}.")


def read_image(
    source: Path | bytes | Image.Image, preprocessing: Preprocessing, limits: Limits | None = None
) -> NDArray[np.uint8]:
    """Return one image as pixels (H, W, 3) in 0..255, sRGB, of the size in `preprocessing`.

    Args:
        source: a file, its content, or a Pillow image, which is not changed.
        preprocessing: the size, and how to resize to it.
        limits: larger images and files are rejected unread; time is not limited here.

    Raises:
        ImageError: the image cannot be used; the message is the plain reason, without the file's name.
    """
    limits = limits or Limits()
    content = decoding.read_bytes(source, limits.max_bytes) if isinstance(source, Path) else source
    with decoding.reading(limits.max_pixels):
        return _read(content, preprocessing, limits)


def _read(source: bytes | Image.Image, preprocessing: Preprocessing, limits: Limits) -> NDArray[np.uint8]:
    image = decoding.open_image(source) if isinstance(source, bytes) else source
    decoding.check_pixels(image, limits.max_pixels)
    is_ppm = image.format == "PPM"
    # A caller's image may be loaded already and must not change; only a file can be decoded smaller.
    if image is source:
        image = image.copy()
        extent: tuple[float, float] = image.size
    else:
        extent = _decode_smaller(image, preprocessing)
        is_deep = decoding.is_deep_colour(image)
        image.load()
        if is_deep:
            decoding.check_brightness(image)
    # Resized before colours are converted and alpha is removed: both take time per pixel.
    turn = decoding.orientation(image)
    image = decoding.upright(decoding.resizable(image, is_ppm, preprocessing.value_range), turn)
    size, box = _region(_turned(extent, turn), preprocessing)
    image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    image = decoding.over_background(image, preprocessing.background)
    return _on_canvas(image, preprocessing)


def _decode_smaller(image: Image.Image, preprocessing: Preprocessing) -> tuple[float, float]:
    """Ask the JPEG decoder for no more pixels than needed; return the (width, height) it then has."""
    if image.format not in ("JPEG", "MPO") or preprocessing.resize_mode == "window":
        return image.size
    turn = decoding.orientation(image)
    target, (left, top, right, bottom) = _region(_turned(image.size, turn), preprocessing)
    scale = min((right - left) / target[0], (bottom - top) / target[1]) * _SHORT_BY
    divisor = next((n for n in (8, 4) if scale >= 2 * n), 2)
    if scale < divisor:
        return image.size
    drafted = image.draft(None, (image.width // divisor, image.height // divisor))
    return image.size if drafted is None else drafted[1][2:]


def _turned(size: tuple[float, float], turn: int) -> tuple[float, float]:
    return (size[1], size[0]) if turn >= 5 else size


def _region(
    extent: tuple[float, float], preprocessing: Preprocessing
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Return the (width, height) to resize to, and the box (left, top, right, bottom) to resize from.

    Args:
        extent: (width, height) of the upright image in pixels.
        preprocessing: the size asked for. With "pad" one side of the result can be smaller, with
            "window" both.
    """
    width, height = extent
    target = (preprocessing.width, preprocessing.height)
    if preprocessing.resize_mode == "window":
        target = (min(target[0], int(width)), min(target[1], int(height)))
        corner = ((int(width) - target[0]) // 2, (int(height) - target[1]) // 2)
        return target, (*corner, corner[0] + target[0], corner[1] + target[1])
    if preprocessing.resize_mode == "crop":
        scale = min(width / target[0], height / target[1])
        # Rounding may take a corner below 0, which Pillow rejects.
        left, top = (max(0.0, (side - scale * want) / 2) for side, want in zip(extent, target, strict=True))
        return target, (left, top, width - left, height - top)
    if preprocessing.resize_mode == "pad":
        scale = max(width / target[0], height / target[1])
        # An image a thousand times as wide as high keeps one row.
        target = (max(1, round(width / scale)), max(1, round(height / scale)))
    return target, (0.0, 0.0, width, height)


def _on_canvas(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    pixels = np.array(image, dtype=np.uint8)
    height, width = pixels.shape[:2]
    if (height, width) == (preprocessing.height, preprocessing.width):
        return pixels
    if preprocessing.resize_mode == "window":
        missing = ((0, preprocessing.height - height), (0, preprocessing.width - width), (0, 0))
        return np.pad(pixels, missing, mode="symmetric")
    canvas = np.empty((preprocessing.height, preprocessing.width, 3), np.uint8)
    canvas[:] = preprocessing.background
    top, left = (preprocessing.height - height) // 2, (preprocessing.width - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def save_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels (H, W, 3) in 0..255 to `path`, whole or not at all, in the format of its extension.

    Raises:
        ConfigError: the extension of `path` is not that of a writable image format.
        ImageError: `pixels` has another shape or type.
        OutputError: the file cannot be written; an existing file is unchanged.
    """
    file_format = WRITABLE.get(path.suffix.lower())
    if file_format is None:
        raise ConfigError(f"Cannot write {path.name}: use one of {', '.join(WRITABLE)}.")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(f"Not pixels (H, W, 3) uint8: {pixels.shape} {pixels.dtype}.")
    # The default of 75 leaves blocks, which would look like faults of a model.
    options: dict[str, Any] = {"quality": 95} if file_format in ("JPEG", "WEBP", "AVIF") else {}
    with atomic_file(path) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, file_format, **options)
