"""Image files as they are: re-encoded at the size shown, by processes that may hang or crash alone.

The server sends a new file of the pixels alone: no metadata, no bytes after the image, and no format
that a browser has a decoder of its own for. Pixels become sRGB, upright, over the background of the model.
"""

from __future__ import annotations

import asyncio
import functools
import io
import queue
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from autoencode.data import decoding, workers
from autoencode.data.preprocessing import Limits, Preprocessing
from autoencode.errors import ImageError

# Longest sides that are made, in pixels. A few fixed ones: a person who drags the size of a grid gets
# pictures out of the cache, and no request makes the server work for another pixel.
SIDES = (160, 320, 640, 1280, 2560, 5120)
UPLOAD_SIDE = 2560  # of what is kept of an upload
CACHE_BYTES = 96 * 1024**2  # 5,000 thumbnails of 320 pixels
PROCESSES = 2  # more would take the cores from the model, which works at the same time

_LOSSLESS_SIDE = 256  # drawings and icons this small show every block of a JPEG, and are small files anyway
_QUALITY = 88
_MEMORY_BYTES = 4 * 1024**3  # of a process: 200 million pixels are 600 MB, and decoding holds a few copies


class Shown(NamedTuple):
    """A picture as it is sent.

    Attributes:
        content: a JPEG or PNG file.
        media_type: of it.
        width, height: of the original in pixels, upright.
    """

    content: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True)
class _Task:
    source: Path | bytes
    side: int


@dataclass(frozen=True)
class _Drawer:
    """Runs in a process of its own: draws a file at a size."""

    preprocessing: Preprocessing
    limits: Limits

    def __call__(self, task: _Task) -> Shown:
        workers.limit_memory(_MEMORY_BYTES)
        content = task.source
        if isinstance(content, Path):
            content = decoding.read_bytes(content, self.limits.max_bytes)
        workers.set_time_limit(self.limits.seconds_for(len(content)))
        return draw(content, task.side, self.preprocessing, self.limits)


def draw(content: bytes, side: int, preprocessing: Preprocessing, limits: Limits) -> Shown:
    """Return the image in `content`, its longest side at most `side` pixels; never enlarged.

    Raises:
        ImageError: the image cannot be used.
    """
    with decoding.reading(limits.max_pixels):
        image = decoding.open_image(content)
        decoding.check_pixels(image, limits.max_pixels)
        is_ppm, turn = image.format == "PPM", decoding.orientation(image)
        width, height = decoding.shown_size(image)
        if image.format in ("JPEG", "MPO"):
            # The decoder makes an eighth of a large photograph in a tenth of the time of all of it.
            image.draft(None, (side, side))
        image.load()
        image = decoding.resizable(image, is_ppm, preprocessing.value_range)
        image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
        image = decoding.over_background(decoding.upright(image, turn), preprocessing.background)
    file = io.BytesIO()
    if max(width, height) <= min(side, _LOSSLESS_SIDE):
        image.save(file, "PNG", compress_level=1)
        return Shown(file.getvalue(), "image/png", width, height)
    image.save(file, "JPEG", quality=_QUALITY)
    return Shown(file.getvalue(), "image/jpeg", width, height)


class Originals:
    """Draws image files in other processes, and keeps what was drawn last.

    Args:
        preprocessing: its background and range of values are used, so that a file looks as to the model.
        limits: the largest files and pictures to accept.
        cache_bytes: memory that drawn pictures may take.
    """

    def __init__(
        self, preprocessing: Preprocessing, limits: Limits | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        limits = limits or Limits()
        self._drawers: queue.SimpleQueue[workers.PersistentWorker[_Task, Shown]] = queue.SimpleQueue()
        for _ in range(PROCESSES):
            drawer = _Drawer(preprocessing, limits)
            self._drawers.put(workers.PersistentWorker(drawer, seconds=limits.seconds_per_file))
        self._threads = ThreadPoolExecutor(PROCESSES, thread_name_prefix="originals")
        self._cache: OrderedDict[tuple[object, ...], Shown] = OrderedDict()
        self._lock, self._room = threading.Lock(), cache_bytes

    async def shown(self, path: Path, side: int) -> Shown:
        """Return a file drawn at the smallest of `SIDES` that is no smaller than `side`.

        Raises:
            ImageError: the file is gone or cannot be used.
        """
        side = next((one for one in SIDES if one >= side), SIDES[-1])
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(self._from_file, path, side)
        )

    async def redrawn(self, content: bytes, side: int) -> Shown:
        """Return an image given as the content of a file; it is not cached.

        Raises:
            ImageError: the image cannot be used.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._drawn, content, side)

    def close(self) -> None:
        """End the processes and the threads, without waiting for work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for _ in range(PROCESSES):
            try:
                self._drawers.get_nowait().close()
            except queue.Empty:  # one that is drawing ends with the server: its socket closes
                return

    def _from_file(self, path: Path, side: int) -> Shown:
        try:
            status = path.stat()
        except OSError as err:
            raise ImageError(f"cannot be read: {err.strerror or err}") from err
        # With size and time: a file that is saved anew is drawn anew.
        key = (path, side, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        shown = self._drawn(path, side)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = shown
                self._room -= len(shown.content)
            while self._room < 0:
                self._room += len(self._cache.popitem(last=False)[1].content)
        return shown

    def _drawn(self, source: Path | bytes, side: int) -> Shown:
        drawer = self._drawers.get()
        try:
            drawn = drawer.call(_Task(source, side))
        finally:
            self._drawers.put(drawer)
        if isinstance(drawn, workers.Lost):
            raise ImageError(f"cannot be decoded: {drawn.reason}")
        return drawn
