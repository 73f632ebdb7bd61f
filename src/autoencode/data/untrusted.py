"""The content of an image file from a stranger -> pixels, decoded in a process of bounded memory and time."""

from __future__ import annotations

import contextlib
import functools
import resource

import numpy as np
from numpy.typing import NDArray

from autoencode.data.preprocessing import Limits, Preprocessing, read_image
from autoencode.data.workers import Helper, Lost, allow
from autoencode.errors import ImageError

# What a phone or a camera makes fits, with room; what does not fit is no picture that somebody took.
UPLOAD_LIMITS = Limits(max_pixels=64_000_000, max_bytes=32 * 1024**2)

# Of the whole process: 64 million pixels with alpha are 256 MB, and decoding holds some three copies.
MEMORY_BYTES = 2 * 1024**3

Pixels = NDArray[np.uint8]


class UntrustedDecoder:
    """Decodes one file at a time in another process, which may hang, crash or run out of memory alone.

    Args:
        preprocessing: the size of the pixels, and how files come to it.
        limits: what is skipped.
        memory_bytes: address space of the process; not held on macOS.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        limits: Limits = UPLOAD_LIMITS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.limits = limits
        function = functools.partial(_decode, preprocessing, limits, memory_bytes)
        self._helper: Helper[bytes, Pixels] = Helper(function, seconds=limits.seconds_per_file)

    def decode(self, content: bytes) -> Pixels:
        """Return pixels (H, W, 3) in 0..255, sRGB.

        Raises:
            ImageError: it cannot be used; the message is the plain reason.
        """
        if len(content) > self.limits.max_bytes:
            raise ImageError(f"more bytes than the limit of {self.limits.max_bytes:,}")
        decoded = self._helper.call(content)
        if isinstance(decoded, Lost):
            raise ImageError(f"cannot be decoded: {decoded.reason}")
        return decoded

    def close(self) -> None:
        """End the process."""
        self._helper.close()


def _decode(preprocessing: Preprocessing, limits: Limits, memory_bytes: int, content: bytes) -> Pixels:
    with contextlib.suppress(ValueError, OSError):  # where the system does not hold it, or it is set already
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    allow(limits.seconds_for(len(content)))
    return read_image(content, preprocessing, limits)
