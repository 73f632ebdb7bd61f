"""What Pillow and the libraries beneath it say of a damaged file, in words for whoever has the file."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path

from PIL import Image

_DAMAGED = "damaged, or not what its name says"
# Sentences about the inside of a decoder.
_OF_DECODERS = ("decoder object", "decoder error", "encoder error", "codec configuration", "unpack requires")


def plain_reason(err: Exception) -> str:
    """Return why a file cannot be decoded: what Pillow says of the file, or that it is damaged."""
    text = " ".join(str(err).split())[:200].rstrip(".")
    # Other errors, such as an AssertionError, are of a decoder that met what its authors did not expect.
    is_of_file = isinstance(err, OSError | SyntaxError | ValueError | EOFError)
    return text if text and is_of_file and not any(words in text for words in _OF_DECODERS) else _DAMAGED


@functools.cache
def silence_libtiff() -> None:
    """Keep libtiff from printing its errors, which name no file; Pillow raises them as well."""
    for folder in ("../pillow.libs", ".dylibs"):  # of Pillow's wheels for Linux and macOS
        for path in (Path(Image.__file__).parent / folder).glob("libtiff*"):
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(str(path)).TIFFSetErrorHandler(None)
