"""One image file -> one upright sRGB image. Every kind of image has a stated rule.

content of the file                  result
-----------------------------------  ----------------------------------------------------------------------
several frames or pages              the first
EXIF or XMP orientation              applied; ignored if the block itself is damaged
8-bit grey, 1-bit                    grey repeated in three channels; 1-bit is 0 and 255
palette                              looked up
16-bit grey                          divided by 257, rounded: 0..65535 becomes 0..255, nothing is clipped
16-bit colour                        the high byte of each channel, as Pillow reads it; rejected if all are in
                                     the lowest quarter, as 10 to 14 bits are, which would be nearly black
32-bit integers                      0..255 kept; 0..65535 divided by 257; any other range stretched
more than 8 bits, with a range, as   from that range to 0..255, clipped; without a range as follows
  every folder that is packed has
an array of uint16, grey             from that range to 0..255, clipped; rejected without a range
floating point                       0..1 times 255; 0..255 kept; any other range stretched from its least
                                     to its greatest value; skipped if a value is not finite
CMYK (and Adobe's inverted), YCbCr,  converted by Pillow
HSV, LAB
alpha, premultiplied alpha, a        resized with its alpha, then laid over the background
transparent palette entry or colour
an ICC profile other than sRGB       converted to sRGB; ignored if damaged or for other kinds of pixel
PNG gAMA and cHRM                    ignored
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from autoencode.data.pillow_errors import plain_reason, silence_libtiff
from autoencode.errors import ImageError
from autoencode.untrusted import UnsafeFileError, read_file

# Importing a plugin registers its format. Image.init() would import all, some of which run other programs.
_READERS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "WEBP": WebPImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
    "AVIF": AvifImagePlugin,
    "PPM": PpmImagePlugin,
    "DIB": BmpImagePlugin,
    "JPEG2000": Jpeg2KImagePlugin,
    "TGA": TgaImagePlugin,  # last: it has no magic number
}
ORIENTATION_TAG = 0x0112
NEEDS_RANGE = "autoencode-needs-range"  # in the info of a wide image that was an array: names its type
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND_VALUES = 2**20  # scaled at once, in fp64: all of 200 million pixels at once took 3.8 GB
_MARKER = re.compile(rb"\xff+([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)  # of a JPEG, with a length
_MOST_READS = 2**19  # a second; a PNG of 256 MB in chunks of 8 KB takes a quarter of them
_MOST_SCANS = 100  # encoders write about ten; each costs a pass over the whole picture, for a few bytes
_MOST_FRACTIONS = 2**18  # in a tag of TIFF or EXIF, each an object in Python: 25 MB of them took 6.6 s
_FRACTIONS = (5, 10)  # types of such a tag, without and with a sign
_DARK = 64  # high bytes of values of 14 bits end below it
_PROFILE_SPACE = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_pillow_lock = threading.Lock()


def read_bytes(path: str | Path, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        ImageError: the file cannot be read, is larger than the limit, or is not a regular file.
    """
    try:
        return read_file(path, max_bytes)
    except UnsafeFileError as err:
        raise ImageError(str(err)) from err
    except OSError as err:
        raise ImageError(f"cannot be read: {err.strerror or err}") from err


@contextlib.contextmanager
def pillow_limited_to(max_pixels: int) -> Iterator[None]:
    """Let Pillow open images of up to `max_pixels` pixels and tags of bounded length, without its warnings.

    These are settings of the process: they are restored at the end, and one thread at a time decodes.
    """
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        loaders = TiffImagePlugin.ImageFileDirectory_v2._load_dispatch  # Pillow has no limit of its own
        patient = {kind: loaders[kind] for kind in _FRACTIONS}
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)  # Pillow rejects above twice this, and warns below
        loaders.update({kind: (size, _impatient(load)) for kind, (size, load) in patient.items()})
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
            loaders.update(patient)


def _impatient(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return what loads the fractions of a tag, and raises a ValueError where there are too many."""

    def loading(directory: object, data: bytes, *rest: object) -> Any:  # noqa: ANN401 - as Pillow's own
        if len(data) > 8 * _MOST_FRACTIONS:
            raise ValueError(
                f"a tag of more than {_MOST_FRACTIONS:,} fractions, which would take long to read"
            )
        return load(directory, data, *rest)

    return loading


@contextlib.contextmanager
def reading(max_pixels: int) -> Iterator[None]:
    """Decode inside the context: with Pillow limited to so many pixels, and its errors made plain.

    Raises:
        ImageError: Pillow raised anything; the message is the plain reason.
    """
    try:
        with pillow_limited_to(max_pixels):
            yield
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("too large for the memory of this machine") from err
    except Exception as err:  # Pillow raises almost anything at a damaged file
        raise ImageError(f"cannot be decoded: {plain_reason(err)}") from err


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Reject an image of no pixels, or of more than `max_pixels`.

    Raises:
        ImageError: it is one of these.
    """
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(f"{image.width:,}x{image.height:,} pixels are more than the limit of {max_pixels:,}")
    if pixels == 0:
        raise ImageError("has no pixels")


def open_image(content: bytes) -> Image.Image:
    """Return the image in `content`; only its header is read.

    `Image.open` would also try formats that run other programs, and gives no plain reasons.

    Raises:
        ImageError: `content` is empty or in no known format.
        Exception: whatever Pillow raises at a damaged header.
    """
    if not content:
        raise ImageError("the file is empty")
    for name in _formats():
        factory, accept = Image.OPEN[name]
        accepted = _is_tga(content) if name == "TGA" else accept(content[:16]) if accept else True
        if isinstance(accepted, str):
            raise ImageError(f"{name} is not supported by the Pillow installed here")
        if accepted:
            if name == "JPEG" and _has_too_many_scans(content):
                raise ImageError(f"a JPEG of more than {_MOST_SCANS} scans, which would take long to decode")
            if name == "TIFF":
                silence_libtiff()
            image = factory(_Content(content), "")
            if name == "TIFF" and _is_planar_of_16_bits(image):
                raise ImageError("a planar TIFF of 16-bit channels, which Pillow decodes wrongly")
            return image
    known = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PPM, JPEG 2000, TGA"
    raise ImageError(f"not an image of a known format ({known})")


class _Content(io.BytesIO):
    """The content of a file, for Pillow, which reads the padding and parts of some headers one by one."""

    _left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"of more than {_MOST_READS:,} parts, which would take long to read")
        return super().read(size)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Names of the formats that are read, in the order in which they are tried."""
    if not find_spec("pillow_heif"):
        return tuple(_READERS)
    import pillow_heif

    pillow_heif.register_heif_opener()
    *first, tga = _READERS
    return (*first, "HEIF", tga)


def _is_planar_of_16_bits(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, ())
    return tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and len(bits) > 1 and max(bits) > 8


def _is_tga(content: bytes) -> bool:
    """Whether a header can be that of a TGA, by its kind, palette, depth and size."""
    return (
        len(content) > 18
        and content[1] in (0, 1)
        and content[2] in (1, 2, 3, 9, 10, 11)
        and content[16] in (8, 15, 16, 24, 32)
        and bytes(content[12:14]) != b"\0\0" != bytes(content[14:16])
    )


def _has_too_many_scans(content: bytes) -> bool:
    """Whether a JPEG has more scans than any encoder writes; bytes after the image do not count."""
    # A scan begins with these bytes, which are rare elsewhere. To go from marker to marker took a fifth of
    # the time of decoding.
    if content.count(b"\xff\xda") <= _MOST_SCANS:
        return False
    scans, position = 0, 2
    for _ in range(_MOST_READS):
        marker = _MARKER.search(content, position)
        if marker is None or marker[1] == b"\xd9":
            return False
        scans += marker[1] == b"\xda"
        if scans > _MOST_SCANS:
            return True
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
    return True  # of so many parts that scans may follow them


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation 1..8 still to be applied; 1, upright, if it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # a damaged EXIF block raises almost anything, and says nothing about the pixels
        return 1
    return value if value in _UPRIGHT else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height in pixels of an image as it is shown, without decoding it."""
    return image.size if orientation(image) < 5 else (image.height, image.width)


def upright_size(content: bytes, max_pixels: int) -> tuple[int, int]:
    """Return the width and height in pixels of the image in `content`, as it is shown, from its header.

    Raises:
        ImageError: `content` is in no known format, or its header is damaged.
    """
    with reading(max_pixels):
        return shown_size(open_image(content))


def upright(image: Image.Image, turn: int) -> Image.Image:
    """Apply an EXIF orientation."""
    return image.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else image


def is_wide(image: Image.Image) -> bool:
    """Whether the values of an image have more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def resizable(image: Image.Image, is_ppm: bool, value_range: tuple[float, ...] = ()) -> Image.Image:
    """Convert to a mode in which neighbouring pixels can be averaged: L, LA, RGB, RGBA or CMYK.

    Args:
        image: of any mode.
        is_ppm: whether it was read from a PPM file.
        value_range: the values that become black and white, if it has more than 8 bits; see `Preprocessing`.
    """
    if is_wide(image):
        return _eight_bit(image, is_ppm, value_range)
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA")
        return image.convert("LA" if grey else "RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _eight_bit(image: Image.Image, is_ppm: bool, value_range: tuple[float, ...]) -> Image.Image:
    # The file does not state the range of its values, so the common ranges are recognised by their extremes.
    values = np.asarray(image)
    least, greatest = float(values.min()), float(values.max())
    if not np.isfinite((least, greatest)).all():
        raise ImageError("has values that are not finite")
    if NEEDS_RANGE in image.info and not value_range:
        raise ImageError(
            f"is an array of {image.info[NEEDS_RANGE]}, for which no range of values is known: scale it to "
            "uint8 in 0..255 or floats in [0, 1]"
        )
    if value_range:
        low, high = value_range
        offset, scale = low, 255 / (high - low)
    elif image.mode.startswith("I;16") or (image.mode == "I" and is_ppm):
        offset, scale = 0.0, 1 / 257
    elif image.mode == "F" and least >= 0 and greatest <= 1:
        offset, scale = 0.0, 255.0
    elif least >= 0 and greatest <= 255:
        offset, scale = 0.0, 1.0
    elif image.mode == "I" and least >= 0 and greatest <= 65535:
        offset, scale = 0.0, 1 / 257
    else:
        offset, scale = least, 255 / max(greatest - least, np.finfo(np.float64).tiny)
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND_VALUES // values.shape[1])
    for start in range(0, len(values), rows):
        levels = np.rint((values[start : start + rows] - np.float64(offset)) * scale)
        scaled[start : start + rows] = levels.clip(0, 255)  # a hot pixel is beyond the range of its folder
    grey = Image.fromarray(scaled)
    grey.info = dict(image.info)
    key = grey.info.pop("transparency", None)
    if key is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, np.uint8(0), np.uint8(255))))
    return grey


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an image has colours of 16 bits, of which Pillow is going to read the high byte alone."""
    return image.mode in ("RGB", "RGBA") and any(";16" in str(tile) for tile in getattr(image, "tile", ()))


def check_brightness(image: Image.Image) -> None:
    """Reject the high bytes of 16-bit colours if all of them are in the lowest quarter.

    Raises:
        ImageError: they are.
    """
    brightest = max(high for _, high in image.convert("RGB").getextrema())  # type: ignore[misc]
    if brightest < _DARK:
        raise ImageError(
            "16-bit colour of fewer bits, or very dark, of which Pillow reads the high byte alone: save it "
            "with 8 bits a channel"
        )


def over_background(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert an image of a resizable mode to sRGB, and lay it over `background` if it has alpha."""
    if image.mode not in ("LA", "RGBA"):
        return _to_srgb(image)
    # The profile describes the colours in the file, not those blended with the background.
    colour = _to_srgb(image.convert(image.mode.removesuffix("A")))
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colour, mask=image.getchannel("A"))
    return canvas


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    transform = _profile_transform(profile, image.mode) if isinstance(profile, bytes) and profile else None
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image as well


# The images of one camera share a profile, and building a transform takes as long as decoding a small image.
@functools.lru_cache(maxsize=32)
def _profile_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        is_srgb = mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower()
        if is_srgb or source.profile.xcolor_space.strip() != _PROFILE_SPACE[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception:  # a damaged profile, or a Pillow without LittleCMS: the pixels are still good
        return None
