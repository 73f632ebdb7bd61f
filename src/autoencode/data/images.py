"""Image files <-> pixels (H, W, 3) uint8 in 0..255, sRGB; `decoding` states the rule for every kind of image.

Resizing is bicubic with antialiasing. Lanczos takes 1.4 times as long and rings more at edges; the cheaper
filters blur when enlarging. Other large images than JPEGs are averaged down first, never below twice the
target size.

JPEGs are decoded at 1/8, 1/4 or 1/2 of their size where that gives twice the target size, and also at 1/2
where it gives the target size: that halves the time. Either may be short by 1/32. docs/performance.md has
how little that changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoencode.atomic import atomic_file
from autoencode.data import decoding
from autoencode.data.preprocessing import Limits, Preprocessing, region
from autoencode.errors import ConfigError, ImageError, ImageFolderError

_SHORT_BY = 33 / 32  # how much smaller than wanted a JPEG may be decoded: 250 pixels at 1/2 for 128
WRITABLE = {
    **{".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"},
    **{".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF"},
}


def read_chunks(
    paths: Sequence[Path],
    size: int,
    preprocessing: Preprocessing,
    limits: Limits,
    skipped: list[tuple[Path, str]],
) -> Iterator[tuple[list[Path], NDArray[np.uint8]]]:
    """Read many files a few at a time, passing over those that cannot be used.

    Args:
        paths: the files.
        size: files in a chunk, which bounds the memory.
        preprocessing: as for `read_image`.
        limits: as for `read_image`.
        skipped: takes the files that cannot be used, with the reason.

    Yields:
        For each chunk the files that could be read, and their pixels (B, H, W, 3); B may be 0.

    Raises:
        ImageFolderError: after the last chunk, if no file at all could be used.
        ConfigError: the memory is not enough for a chunk.
    """
    usable = 0
    for start in range(0, len(paths), size):
        read: list[Path] = []
        try:
            pixels = np.empty((size, preprocessing.height, preprocessing.width, 3), np.uint8)
        except MemoryError as err:
            raise ConfigError(f"The memory is not enough for {size} images of {preprocessing}.") from err
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


def read_bytes(path: str | Path, limits: Limits) -> bytes:
    """Return the content of a regular file.

    Raises:
        ImageError: it cannot be read, is larger than the limit, or is no regular file.
    """
    try:
        # A pipe or device must not even be opened: that alone can wait for ever or act on the device.
        _check_regular(os.stat(path), limits)  # noqa: PTH116
        # By now it may be another file, or a longer one.
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            _check_regular(status, limits)
            content = file.read(status.st_size + 1)
            if len(content) > status.st_size:
                content += file.read(limits.max_bytes + 1 - len(content))
    except OSError as err:
        raise ImageError(f"cannot be read: {err.strerror or err}") from err
    if len(content) > limits.max_bytes:
        raise ImageError(f"more bytes than the limit of {limits.max_bytes:,}")
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_regular(status: os.stat_result, limits: Limits) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")
    if status.st_size > limits.max_bytes:
        raise ImageError(f"{status.st_size:,} bytes are more than the limit of {limits.max_bytes:,}")


def read_image(
    source: Path | bytes | Image.Image, preprocessing: Preprocessing, limits: Limits | None = None
) -> NDArray[np.uint8]:
    """Return one image as pixels (H, W, 3) in 0..255, sRGB, of the size that `preprocessing` asks for.

    Args:
        source: a file, its content, or a Pillow image, which is left as it is.
        preprocessing: the size, and how to come to it.
        limits: what is skipped unread; time is not limited here.

    Raises:
        ImageError: it cannot be used; the message is the plain reason, without the file's name.
    """
    limits = limits or Limits()
    content = read_bytes(source, limits) if isinstance(source, Path) else source
    try:
        with decoding.pillow_limited_to(limits.max_pixels):
            return _read(content, preprocessing, limits)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("too large for the memory of this machine") from err
    except Exception as err:  # Pillow raises almost anything at a damaged file
        raise ImageError(f"cannot be decoded: {_one_line(err)}") from err


def _read(source: bytes | Image.Image, preprocessing: Preprocessing, limits: Limits) -> NDArray[np.uint8]:
    image = decoding.open_image(source) if isinstance(source, bytes) else source
    pixels = image.width * image.height
    if pixels > limits.max_pixels:
        raise ImageError(
            f"{image.width:,}x{image.height:,} pixels are more than the limit of {limits.max_pixels:,}"
        )
    if pixels == 0:
        raise ImageError("has no pixels")
    is_ppm = image.format == "PPM"
    if image is source:
        image = image.copy()
        extent: tuple[float, float] = image.size
    else:
        extent = _decode_smaller(image, preprocessing)
        image.load()
    turn = decoding.orientation(image)
    image = decoding.upright(decoding.resizable(image, is_ppm), turn)
    size, box = region(_turned(extent, turn), preprocessing)
    image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    image = decoding.over_background(image, preprocessing.background)
    return _on_canvas(image, preprocessing)


def _decode_smaller(image: Image.Image, preprocessing: Preprocessing) -> tuple[float, float]:
    """Ask the JPEG decoder for no more than is needed; return (width, height) that is left of the image."""
    if image.format not in ("JPEG", "MPO"):
        return image.size
    turn = decoding.orientation(image)
    target, (left, top, right, bottom) = region(_turned(image.size, turn), preprocessing)
    scale = min((right - left) / target[0], (bottom - top) / target[1]) * _SHORT_BY
    divisor = next((n for n in (8, 4) if scale >= 2 * n), 2)
    if scale < divisor:
        return image.size
    drafted = image.draft(None, (image.width // divisor, image.height // divisor))
    return image.size if drafted is None else drafted[1][2:]


def _turned(size: tuple[float, float], turn: int) -> tuple[float, float]:
    return (size[1], size[0]) if turn >= 5 else size


def _on_canvas(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    pixels = np.array(image, dtype=np.uint8)
    height, width = pixels.shape[:2]
    if (height, width) == (preprocessing.height, preprocessing.width):
        return pixels
    canvas = np.empty((preprocessing.height, preprocessing.width, 3), np.uint8)
    canvas[:] = preprocessing.background
    top, left = (preprocessing.height - height) // 2, (preprocessing.width - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def save_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write pixels (H, W, 3) in 0..255 to `path`, whole or not at all, in the format its name asks for.

    Raises:
        ConfigError: no image format goes by that extension.
        ImageError: these are not pixels.
        OutputError: it cannot be written; what was there before is unchanged.
    """
    file_format = WRITABLE.get(path.suffix.lower())
    if file_format is None:
        raise ConfigError(f"Cannot write {path.name}: use one of {', '.join(WRITABLE)}.")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(f"Not pixels (H, W, 3) uint8: {pixels.shape} {pixels.dtype}.")
    options: dict[str, Any] = {"quality": 95} if file_format in ("JPEG", "WEBP", "AVIF") else {}
    with atomic_file(path) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, file_format, **options)


def _one_line(err: Exception) -> str:
    text = " ".join(str(err).split())[:200]
    return text.rstrip(".") or type(err).__name__
