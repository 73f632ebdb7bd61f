"""Image files at their full size: pixels out of a file, and other pixels into a file of the same kind.

Training needs images of one size and three channels. A result that is written back to a user must be
the file that was given, with other pixels: the same size, bit depth, colour mode, transparency, colour
profile and EXIF block, and so the same orientation. Of a TIFF, whose pixels are turned upright, the tags
that describe the picture are kept. Nothing is converted that need not be:

mode of the file                     channels
-----------------------------------  ----------------------------------------------------------------------
8-bit or 16-bit grey, grey and alpha the grey; alpha is kept
RGB, RGB and alpha                   red, green, blue; alpha is kept
CMYK                                 the four inks, as the file has them
1-bit, palette                       looked up, and written as 8-bit grey or RGB
16-bit colour                        the high byte of each channel, which is what Pillow reads
YCbCr, LAB, HSV                      converted to RGB, without a profile of the old colours
floating point, 32-bit integers      rejected
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from autoencode.atomic import atomic_file
from autoencode.data import decoding
from autoencode.data.preprocessing import Limits
from autoencode.errors import ImageError

Levels = NDArray[np.uint8] | NDArray[np.uint16]

# The first extension of each format that can be written; a file of another one is written as PNG.
_ENDINGS = {
    **{"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "PNG": (".png", ".apng"), "WEBP": (".webp",)},
    **{"BMP": (".bmp", ".dib"), "TIFF": (".tif", ".tiff"), "AVIF": (".avif", ".avifs")},
    "PPM": (".ppm", ".pgm", ".pnm"),
}
_HOLDS = {
    "JPEG": "L RGB CMYK",
    "BMP": "L RGB",
    "PPM": "L RGB I;16",
    "WEBP": "RGB RGBA",
    "AVIF": "RGB RGBA",
    "TIFF": "L LA RGB RGBA CMYK I;16",
    "PNG": "L LA RGB RGBA I;16",
}
# Without subsampled colours, and well above the 40 dB that an unchanged image is to come back with. WebP
# subsamples unless it is lossless; its quality is then the effort, and more of it takes many times as long.
_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 96, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True, "quality": 20, "method": 0},
    "AVIF": {"quality": 94, "subsampling": "4:4:4"},
    "TIFF": {"compression": "tiff_lzw"},
}
# The data colour space in the header of a profile for each mode that is written.
_PROFILE_SPACES = {
    "L": b"GRAY",
    "LA": b"GRAY",
    "I;16": b"GRAY",
    "RGB": b"RGB ",
    "RGBA": b"RGB ",
    "CMYK": b"CMYK",
}

# The tags of a TIFF that are kept, with the only type in which libtiff is given each: another could crash
# it. Other tags say how the old pixels are stored, are offsets into the old file, or belong to one program.
_TEXT_TAGS = "DocumentName ImageDescription Make Model PageName Software DateTime Artist Copyright"
_TITLE_TAGS = "XPTitle XPComment XPAuthor XPKeywords XPSubject"
_KEPT_TAGS = {ExifTags.Base[name]: TiffTags.ASCII for name in _TEXT_TAGS.split()} | {
    ExifTags.Base[name]: TiffTags.BYTE for name in _TITLE_TAGS.split()
}
_TAG_FOLDERS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_NOT_OF_THE_RESULT = (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight, ExifTags.IFD.Interop)
_XMP_TAG = 0x02BC

# What Pillow raises at metadata that it cannot write; an OSError is of the disk.
_UNWRITABLE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    SyntaxError,
    struct.error,
    RuntimeError,
)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image file at its full size.

    Attributes:
        levels: (H, W, C), uint8 or uint16; C is 1 (grey), 3 (RGB) or 4 (CMYK).
        alpha: (H, W) of the same type, or None.
        format: name of the file's format in Pillow.
        info: what is written back beside the pixels, by the names of Pillow's `save`.
        turn: the EXIF orientation, 1 to 8, which is kept in `info` and not applied to the levels.
        has_more_frames: whether the file has more pages or frames than this first one.
        was_16_bit_colour: whether the file has colours of 16 bits, of which these are the high bytes.
    """

    levels: Levels
    alpha: Levels | None = None
    format: str = "PNG"
    info: dict[str, Any] = field(default_factory=dict)
    turn: int = 1
    has_more_frames: bool = False
    was_16_bit_colour: bool = False

    @property
    def mode(self) -> str:
        """The mode of Pillow that it is written in."""
        if self.levels.dtype == np.uint16:
            return "I;16"
        colours = {1: "L", 3: "RGB", 4: "CMYK"}[self.levels.shape[2]]
        return colours if self.alpha is None else f"{colours}A"

    @property
    def ending(self) -> str:
        """Extension of the file that it can be written to."""
        return _ENDINGS[self._written_format][0]

    @property
    def _written_format(self) -> str:
        found = "JPEG" if self.format == "MPO" else self.format
        mode = "RGB" if found in ("WEBP", "AVIF") and self.mode == "L" else self.mode
        return found if mode in _HOLDS.get(found, "").split() else "PNG" if mode != "CMYK" else "TIFF"

    def name_of(self, path: Path) -> str:
        """Return the name of its file, for a result of the file `path`: the same, unless it cannot be."""
        if path.suffix.lower() in _ENDINGS[self._written_format]:
            return path.name
        return f"{path.stem}{self.ending}"

    def with_levels(self, levels: Levels) -> Picture:
        """Return a picture with other pixels, of any height and width; alpha is enlarged to it."""
        alpha = self.alpha
        if alpha is not None and alpha.shape != levels.shape[:2]:
            size = (levels.shape[1], levels.shape[0])
            alpha = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BICUBIC))
        return replace(self, levels=levels, alpha=alpha)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height as people see it: upright, where `levels` may lie on their side."""
        height, width = self.levels.shape[:2]
        return (height, width) if self.turn >= 5 else (width, height)

    def levels_in(self, turn: int) -> Levels:
        """Return the levels as a file of another EXIF orientation, 1 to 8, has them."""
        if turn == self.turn:
            return self.levels
        back = {6: 8, 8: 6}.get(turn, turn)  # a quarter turn is undone by the other, the rest by themselves
        return _turned(_turned(self.levels, self.turn), back).copy()  # without steps back through memory

    def image(self) -> Image.Image:
        """Return it as people see it on white: 8-bit RGB, upright."""
        return decoding.upright(self._on_white(), self.turn)

    def _on_white(self) -> Image.Image:
        shown = (
            self
            if self.levels.dtype == np.uint8
            else replace(self, levels=(self.levels >> 8).astype(np.uint8))
        )
        image = shown._image()
        if self.alpha is None:
            return image.convert("RGB")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return canvas

    def _image(self) -> Image.Image:
        channels = self.levels if self.alpha is None else np.dstack([self.levels, self.alpha])
        if self.mode in ("CMYK", "LA"):  # which an array of that many channels does not say
            return Image.frombytes(self.mode, (channels.shape[1], channels.shape[0]), channels.tobytes())
        return Image.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            OutputError: the file cannot be written; what was there before is unchanged.
        """
        with atomic_file(path) as file:
            self._write(file)

    def encoded(self) -> bytes:
        """Return the file that `save` writes."""
        file = io.BytesIO()
        self._write(file)
        return file.getvalue()

    def shown(self, kind: Literal["jpeg", "png"] = "jpeg") -> bytes:
        """Return a file that every browser shows, of `image`: JPEG, or PNG, which is exact and slower."""
        file = io.BytesIO()
        # The profile describes RGB or grey; of inks only those of a press would be described.
        profile = self.info.get("icc_profile") if self.levels.shape[2] == 3 else None
        options = _OPTIONS["JPEG"] if kind == "jpeg" else {"compress_level": 1}
        self.image().save(file, kind.upper(), icc_profile=profile, **options)
        return file.getvalue()

    def _write(self, file: IO[bytes]) -> None:
        written, image = self._written_format, self._image()
        options = _OPTIONS.get(written, {})
        if any(isinstance(value, dict) for value in self.info.get("tiffinfo", {}).values()):
            options = {"compression": "raw"}  # libtiff, which compresses, gets no folders of tags from Pillow
        try:
            image.save(file, written, **options, **self.info)
        except _UNWRITABLE:
            # Metadata too long or too odd to be written again are left out, but for how the picture lies.
            turned = Image.Exif()
            turned[decoding.ORIENTATION_TAG] = self.turn
            file.seek(0)
            file.truncate()
            image.save(file, written, **options, **({"exif": turned} if self.turn != 1 else {}))


def _turned(levels: Levels, turn: int) -> Levels:
    """Apply an EXIF orientation to (H, W, C): four of them swap the axes, then any may mirror either."""
    if turn >= 5:
        levels = levels.swapaxes(0, 1)
    rows, columns = (-1 if turn in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return levels[::rows, ::columns]


def read_picture(file: Path | bytes, limits: Limits | None = None) -> Picture:
    """Read an image file at its full size.

    Args:
        file: its path, or its content.
        limits: larger images and files are rejected unread.

    Raises:
        ImageError: the image cannot be used; the message is the plain reason, without the file's name.
    """
    limits = limits or Limits()
    content = file if isinstance(file, bytes) else decoding.read_bytes(file, limits.max_bytes)
    with decoding.reading(limits.max_pixels):
        image = decoding.open_image(content)
        decoding.check_pixels(image, limits.max_pixels)
        kept = {name: image.info[name] for name in ("exif", "icc_profile", "dpi") if image.info.get(name)}
        if image.format == "TIFF":
            kept.pop("exif", None)  # in its tags, which are read below
        file_format = image.format or "PNG"
        is_deep = decoding.is_deep_colour(image)  # before the orientation, for which Pillow decodes a PNG
        turn = decoding.orientation(image) if file_format != "TIFF" else 1
        # The further pictures in the JPEG of a telephone are previews and the like, and no pages.
        has_more = file_format != "MPO" and bool(getattr(image, "is_animated", False))
        image.load()
        if file_format == "TIFF":
            kept["tiffinfo"] = _describing_tags(image)
        plain = _plain(image)
        if plain is not image and kept.get("icc_profile", b"")[16:20] != _PROFILE_SPACES[plain.mode]:
            kept.pop("icc_profile", None)
        levels, alpha = _channels(plain)
        return Picture(levels, alpha, file_format, kept, turn, has_more, is_deep)


def _describing_tags(image: Image.Image) -> ImageFileDirectory_v2:
    """Return the tags of a decoded TIFF that are as true of other pixels; none if they are damaged."""
    tags = ImageFileDirectory_v2()
    try:
        found: ImageFileDirectory_v2 = image.tag_v2  # type: ignore[attr-defined]
        for tag, kind in _KEPT_TAGS.items():
            if tag in found and found.tagtype[tag] == kind:
                tags[tag] = _bytes_of_text(found[tag])
                tags.tagtype[tag] = kind
        for folder in _TAG_FOLDERS:
            known = TiffTags.TAGS_V2_GROUPS[folder]
            inner = {
                tag: _bytes_of_text(value) if tag in known and known[tag].type == TiffTags.ASCII else value
                for tag, value in image.getexif().get_ifd(folder).items()
                if tag not in _NOT_OF_THE_RESULT
            }
            if inner:
                tags[folder] = inner
        xmp = image.info.get("xmp")  # from which Pillow took the orientation that it applied
        if isinstance(xmp, bytes):
            tags[_XMP_TAG] = xmp
    except Exception:  # damaged tags raise almost anything, and say nothing about the pixels
        tags = ImageFileDirectory_v2()
    tags[decoding.ORIENTATION_TAG] = 1  # lest a reader takes one that is left in the XMP
    return tags


def _bytes_of_text(value: object) -> object:
    """Return a text as the bytes of its file, which Pillow reads as Latin-1, and would write as ASCII."""
    return value.encode("latin-1") if isinstance(value, str) else value


def _plain(image: Image.Image) -> Image.Image:
    """Convert to 8-bit or 16-bit grey, RGB or CMYK, with or without alpha.

    Raises:
        ImageError: the values of the image have no stated range.
    """
    if image.mode.startswith("I;16"):
        return image
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() >= 0 and values.max() <= 65_535:
            return Image.fromarray(values.astype(np.uint16))
    if image.mode in ("I", "F"):
        raise ImageError("has 32-bit values, of which no file format says what is black and what is white")
    if image.mode in ("L", "RGB", "CMYK", "LA", "RGBA") and not image.has_transparency_data:
        return image
    return decoding.resizable(image, is_ppm=False)


def _channels(image: Image.Image) -> tuple[Levels, Levels | None]:
    """Return the levels (H, W, C) and alpha (H, W) of an image of a plain mode."""
    levels = np.asarray(image)
    if image.mode.startswith("I;16"):
        levels = levels.astype(np.uint16)  # of either byte order
    if levels.ndim == 2:
        levels = levels[..., None]
    if image.mode in ("LA", "RGBA"):
        return levels[..., :-1], levels[..., -1]
    return levels, None
